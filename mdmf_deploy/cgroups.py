"""What the system lets this process have: the affinity mask and the quotas of its control groups."""

from __future__ import annotations

import math
import os
from pathlib import Path

_UNLIMITED = 1 << 60


def cores() -> int:
    """Cores worth using: those of the affinity mask, and no more than a container's CPU quota, rounded up."""
    quota = core_limit(Path("/sys/fs/cgroup"), text_of(Path("/proc/self/cgroup")))
    return affinity() if quota is None else min(affinity(), max(1, math.ceil(quota)))


def affinity() -> int:
    """Cores this process may run on: its affinity mask where there is one, else the machine's."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def core_limit(root: Path, membership: str) -> float | None:
    """The smallest CPU quota, in cores, on the way from this process's control group up; None without one.

    root: where control groups are mounted.  membership: the text of /proc/self/cgroup.
    """
    limits = []
    for folder in _groups(root, membership, "cpu"):
        quota, _, period = text_of(folder / "cpu.max").strip().partition(" ")
        if not quota:
            quota, period = text_of(folder / "cpu.cfs_quota_us").strip(), text_of(folder / "cpu.cfs_period_us").strip()
        if quota.isdecimal() and period.isdecimal():
            limits.append(int(quota) / int(period))
    return min(limits, default=None)


def memory_limit(root: Path, membership: str) -> int | None:
    """The smallest memory limit, in bytes, as core_limit finds the CPU's."""
    limits = []
    for folder in _groups(root, membership, "memory"):
        text = (text_of(folder / "memory.max") or text_of(folder / "memory.limit_in_bytes")).strip()
        # Version 1 writes "no limit" as a huge number.
        if text.isdecimal() and int(text) < _UNLIMITED:
            limits.append(int(text))
    return min(limits, default=None)


def _groups(root: Path, membership: str, controller: str) -> list[Path]:
    folders = []
    for line in membership.splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers or controller in controllers.split(","):
            base = root / controller if controllers else root
            own = base / path.lstrip("/")
            folders += [folder for folder in (own, *own.parents) if folder == base or base in folder.parents]
    return folders


def text_of(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
