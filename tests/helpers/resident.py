"""The memory and time of a process and of the processes that it started, from /proc. Linux only: 0 elsewhere."""

from __future__ import annotations

import os
import threading
from pathlib import Path


def status(process: int | str, field: str) -> int:
    """Return a field of /proc/PROCESS/status in bytes, such as VmRSS or VmHWM, or 0 if the process is gone."""
    try:
        lines = Path(f"/proc/{process}/status").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:")), 0)


def descendants(process: int) -> list[int]:
    """Return the ids of all processes that this one started, and that those started."""
    found = []
    try:
        for task in Path(f"/proc/{process}/task").iterdir():
            for child in (task / "children").read_text(encoding="ascii").split():
                found += [int(child), *descendants(int(child))]
    except OSError:  # it has ended
        pass
    return found


def cpu_time(process: int) -> float:
    """Return the seconds of a core that a process has taken, or 0 if it is gone."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Watch:
    """Samples the resident memory of a process's descendants, and its own if `itself`, while the block runs.

    peak: the largest sum so far, in bytes.
    """

    def __init__(self, process: int, *, itself: bool, interval: float = 0.02) -> None:
        self.peak = 0
        self._process, self._itself, self._interval = process, itself, interval
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _sample(self) -> None:
        while not self._stop.wait(self._interval):
            processes = descendants(self._process) + [self._process] * self._itself
            self.peak = max(self.peak, sum(status(process, "VmRSS") for process in processes))
