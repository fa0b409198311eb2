"""Cold start and peak memory, each measured in a process of its own that runs child.py."""

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
from mdmf_deploy.tasks.benchmark.results import ColdStart, Settings
from mdmf_deploy.tasks.benchmark.statistics import spread
from mdmf_deploy.tasks.benchmark.subjects import Subject


@dataclass(frozen=True, slots=True)
class _ProcessRun:
    """The figures of one process.

    seconds: from its start to its first row.
    times: the parts of that time that child.main printed.
    """

    seconds: float
    times: dict[str, float]
    peak_kib: int | None


def measure(subject: Subject, paths: Sequence[Path], settings: Settings) -> ColdStart:
    """Measure settings.cold_starts cold starts on one image, and the memory of one more process that scores many.

    Raises RuntimeUnavailable if a process fails.
    """
    runs = [_run(subject, paths, 1, settings) for _ in range(settings.cold_starts)]
    # One batch is in the engine, two wait for it and the next are being decoded. Memory peaks only after more images
    # than are in flight at once.
    many = 6 * settings.batch_size + 1
    full = _run(subject, paths, many, settings)
    medians = {name: 1e3 * float(np.median([run.times[name] for run in runs])) for name in runs[0].times}
    return ColdStart(
        process=spread([1e3 * run.seconds for run in runs]),
        **medians,
        peak_mib=None if full.peak_kib is None else full.peak_kib / 1024,
        peak_images=many,
    )


def _run(subject: Subject, paths: Sequence[Path], count: int, settings: Settings) -> _ProcessRun:
    order = {
        "bundle": str(subject.bundle.path),
        "runtime": subject.about.runtime,
        "threads": settings.threads,
        "batch_size": settings.batch_size,
        "paths": [str(path.absolute()) for path in paths],
        "count": count,
    }
    # -P: keep the script's own folder out of the import path, where its modules would shadow others.
    command = [sys.executable, "-P", child.__file__]
    printed: list[tuple[float, str]] = []
    with tempfile.TemporaryFile("w+") as orders, tempfile.TemporaryFile("w+") as errors:
        json.dump(order, orders)
        orders.seek(0)
        start = time.perf_counter()
        with subprocess.Popen(command, stdin=orders, stdout=subprocess.PIPE, stderr=errors, text=True) as process:
            try:
                for line in process.stdout or ():
                    printed.append((time.perf_counter() - start, line))
            except BaseException:
                process.kill()  # an interrupt must not leave it behind, nor wait for it
                raise
        if process.returncode or len(printed) != 2:
            errors.seek(0)
            lines = errors.read().strip().splitlines() or [f"exit code {process.returncode}"]
            raise RuntimeUnavailable(f"{subject.about.name} does not run in a process of its own: {lines[-1]}")
    (seconds, first), (_, last) = printed
    return _ProcessRun(seconds, json.loads(first), json.loads(last)["peak_kib"])
