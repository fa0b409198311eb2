"""The cost of decoding files in a process of its own: code, seconds and peak memory, of any checkout."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from helpers.resident import Watch

ROOT = Path(__file__).resolve().parents[2]
CHILD = Path(__file__).with_name("decoding_child.py")
_ENDS = {0: "", -24: "timeout"}  # SIGXCPU


@dataclass(frozen=True, slots=True)
class Cost:
    """code: of the error, "ok" for none, "timeout" or "died".
    seconds: by the clock.  cpu: seconds of a core.  peak: bytes. Both are of the process and its children.
    """

    code: str
    notes: tuple[str, ...]
    seconds: float
    cpu: float
    peak: int | None


def costs(
    paths: Sequence[Path],
    *,
    checkout: Path = ROOT,
    threads: int = 1,
    seconds: float = 60.0,
    cpu: int = 60,
    memory: int = 4 * 2**30,
) -> tuple[list[Cost], str]:
    """Decode the central crops of files in one process of a checkout. Return each file's cost, and its stderr.

    threads: files that are decoded at a time, whose peak is the same.
    seconds, cpu: of the whole process, by the clock and of a core. The file in work when they are over counts as
        "timeout", and later ones are left out.
    memory: bytes of its address space.
    """
    command = [sys.executable, "-P", str(CHILD), str(memory), str(cpu), str(threads), *map(str, paths)]
    path = os.pathsep.join((str(checkout), str(ROOT / "tests")))
    # A thread of OpenBLAS takes address space for itself.
    environment = os.environ | {"PYTHONPATH": path, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    with Watch(process.pid, itself=True) as watch:
        try:
            out, err = process.communicate(timeout=seconds)
            end = _ENDS.get(process.returncode, "died")
        except subprocess.TimeoutExpired:
            # Its children notice that their pipe has closed.
            process.kill()
            out, err = process.communicate()
            end = "timeout"
    rows = [json.loads(line) for line in out.splitlines()]
    found = [Cost(row["code"], tuple(row["notes"]), row["seconds"], row["cpu"], row["peak"]) for row in rows]
    if end:
        found.append(Cost(end, (), seconds, float(cpu), watch.peak or None))
    return found, err
