"""What the system lets this process have: the affinity mask and the quotas of its control groups."""

from __future__ import annotations

import math
import os
import platform
import re
import shutil
import subprocess
from pathlib import Path

import msgspec

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


# CPU features that decide which precision pays, as /proc/cpuinfo spells them.
_FEATURES = (
    "avx2",
    "avx512f",
    "avx_vnni",
    "avx512_vnni",
    "avx512_bf16",
    "amx_int8",
    "amx_bf16",
    "asimd",
    "i8mm",
    "bf16",
)


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """cores: those this process may run on.  core_limit: the container's quota, in cores, None without one.

    memory: bytes this process may use, None where the system does not say.  gpus: as nvidia-smi names them.
    """

    python: str
    system: str
    cpu: str
    cpu_features: tuple[str, ...]
    cores: int
    core_limit: float | None
    memory: int | None
    gpus: tuple[str, ...]


def look_at_machine() -> Machine:
    """This machine as this process sees it: affinity mask, container quotas, NVIDIA GPUs."""
    cpu, features = this_cpu()
    return Machine(
        python=f"{platform.python_implementation()} {platform.python_version()}",
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        cpu=cpu or platform.processor() or "unknown",
        cpu_features=features,
        cores=affinity(),
        core_limit=core_limit(Path("/sys/fs/cgroup"), text_of(Path("/proc/self/cgroup"))),
        memory=_memory(),
        gpus=_gpus(),
    )


def this_cpu() -> tuple[str, tuple[str, ...]]:
    """This machine's, as read_cpuinfo tells it."""
    return read_cpuinfo(text_of(Path("/proc/cpuinfo")))


def saturates_int8() -> bool:
    """Whether int8 kernels may cut sums of products off at 16 bits here: on x86, unless the CPU says it has VNNI.

    Where there is no /proc/cpuinfo, no CPU says so.
    """
    x86 = platform.machine().lower() in ("x86_64", "amd64", "x86", "i386", "i686")
    return x86 and {"avx_vnni", "avx512_vnni"}.isdisjoint(this_cpu()[1])


def read_cpuinfo(text: str) -> tuple[str, tuple[str, ...]]:
    """(model name, features that matter) from the text of /proc/cpuinfo; ("", ()) if it says neither."""
    model = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    flags = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", text, re.MULTILINE)
    present = set(flags[1].split()) if flags else set()
    return model[1].strip() if model else "", tuple(name for name in _FEATURES if name in present)


def _memory() -> int | None:
    try:
        whole = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None
    return min(whole, memory_limit(Path("/sys/fs/cgroup"), text_of(Path("/proc/self/cgroup"))) or whole)


def _gpus() -> tuple[str, ...]:
    if shutil.which("nvidia-smi") is None:
        return ()
    query = ["nvidia-smi", "--query-gpu=name,memory.total,compute_cap,driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return ()
    return tuple(line.strip() for line in answer.stdout.splitlines() if line.strip())
