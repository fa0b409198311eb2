"""The processes that decode for another one, found in /proc."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

needs_proc = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="finds processes in /proc")


def decoding(of: int | None = None) -> set[int]:
    """Return the processes that decode for this one, or for another."""
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = (folder / "stat").read_text().rpartition(")")[2].split()[1]
            if int(parent) == (of or os.getpid()) and b"isolation.child" in (folder / "cmdline").read_bytes():
                found.add(int(folder.name))
        except OSError:
            continue
    return found


def gone(pid: int) -> bool:
    """Wait until a process has ended."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except OSError:
            return True
        time.sleep(0.01)
    return False


def busy_child(of: int) -> int:
    """Wait until a child has begun to decode for a process, and return it."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        for pid in decoding(of):
            ticks = sum(map(int, Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]))
            if ticks / os.sysconf("SC_CLK_TCK") > 0.4:  # starting takes less than half of this
                return pid
        time.sleep(0.01)
    raise AssertionError("no child is at work")
