"""Cold start and peak memory, each in a process of its own (mdmf_deploy.tasks.benchmark.child)."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mdmf_deploy.errors import RuntimeUnavailable
from mdmf_deploy.tasks.benchmark import child
from mdmf_deploy.tasks.benchmark.results import Settings, Start
from mdmf_deploy.tasks.benchmark.statistics import spread
from mdmf_deploy.tasks.benchmark.subjects import Subject


@dataclass(frozen=True, slots=True)
class Run:
    """seconds: from starting the process to its first row.  times: what child.main says of them."""

    seconds: float
    times: dict[str, float]
    peak_kib: int | None


def measure(subject: Subject, paths: Sequence[Path], settings: Settings) -> Start:
    """Several cold starts on one image, and one more process that scores many for its memory."""
    runs = [_run(subject, paths, 1, settings) for _ in range(settings.cold_starts)]
    # One batch is with the engine while two wait for it and the next are decoded: memory is at its most only once
    # more have passed than are in hand at any one time.
    many = 6 * settings.batch_size + 1
    full = _run(subject, paths, many, settings)
    middle = {name: 1e3 * float(np.median([run.times[name] for run in runs])) for name in runs[0].times}
    return Start(
        process=spread([1e3 * run.seconds for run in runs]),
        **middle,
        peak_mib=None if full.peak_kib is None else full.peak_kib / 1024,
        peak_images=many,
    )


def _run(subject: Subject, paths: Sequence[Path], count: int, settings: Settings) -> Run:
    order = {
        "bundle": str(subject.bundle.path),
        "runtime": subject.about.runtime,
        "threads": settings.threads,
        "batch_size": settings.batch_size,
        "paths": [str(path.absolute()) for path in paths],
        "count": count,
    }
    # -P: a script's own folder must not come first among the places to import from.
    command = [sys.executable, "-P", child.__file__]
    said: list[tuple[float, str]] = []
    with tempfile.TemporaryFile("w+") as orders, tempfile.TemporaryFile("w+") as errors:
        json.dump(order, orders)
        orders.seek(0)
        start = time.perf_counter()
        with subprocess.Popen(command, stdin=orders, stdout=subprocess.PIPE, stderr=errors, text=True) as process:
            for line in process.stdout or ():
                said.append((time.perf_counter() - start, line))
        if process.returncode or len(said) != 2:
            errors.seek(0)
            lines = errors.read().strip().splitlines() or [f"exit code {process.returncode}"]
            raise RuntimeUnavailable(f"{subject.about.name} does not run in a process of its own: {lines[-1]}")
    (seconds, first), (_, last) = said
    return Run(seconds, json.loads(first), json.loads(last)["peak_kib"])
