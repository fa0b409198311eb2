"""The host: cores, memory and CPU features that this process may use, container quotas included."""

from __future__ import annotations

import math
import os
import platform
import re
import shutil
import subprocess
from pathlib import Path

import msgspec

_CGROUPS = Path("/sys/fs/cgroup")
# Version 1 of control groups writes "no limit" as a huge number of bytes.
_UNLIMITED = 1 << 60
# CPU features that decide which precision pays, spelled as in /proc/cpuinfo.
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
    """This machine, as one process sees it.

    cores: those this process may run on.
    core_limit: the container's CPU quota, in cores, or None without one.
    memory: bytes this process may use, or None if the system does not report it.
    gpus: one line of nvidia-smi for each GPU.
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
    """Return this machine as this process sees it, within its affinity mask and container quotas."""
    cpu, features = this_cpu()
    return Machine(
        python=f"{platform.python_implementation()} {platform.python_version()}",
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        cpu=cpu or platform.processor() or "unknown",
        cpu_features=features,
        cores=affinity(),
        core_limit=core_limit(_CGROUPS, _membership()),
        memory=_memory(),
        gpus=_gpus(),
    )


def cores() -> int:
    """Return the number of cores worth using: the affinity mask's, capped by the container's quota, rounded up."""
    quota = core_limit(_CGROUPS, _membership())
    return affinity() if quota is None else min(affinity(), max(1, math.ceil(quota)))


def affinity() -> int:
    """Return the number of cores in this process's affinity mask, or in the machine if the system has no masks."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def core_limit(root: Path, membership: str) -> float | None:
    """Return the smallest CPU quota, in cores, of this process's control group and its ancestors, or None.

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
    """Return the smallest memory limit, in bytes, or None. The arguments are those of core_limit."""
    limits = []
    for folder in _groups(root, membership, "memory"):
        text = (text_of(folder / "memory.max") or text_of(folder / "memory.limit_in_bytes")).strip()
        if text.isdecimal() and int(text) < _UNLIMITED:
            limits.append(int(text))
    return min(limits, default=None)


def this_cpu() -> tuple[str, tuple[str, ...]]:
    """Return this machine's CPU model and features, as read_cpuinfo does."""
    return read_cpuinfo(text_of(Path("/proc/cpuinfo")))


def read_cpuinfo(text: str) -> tuple[str, tuple[str, ...]]:
    """Return (model name, features that matter) from the text of /proc/cpuinfo. Missing entries are empty."""
    model = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    flags = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", text, re.MULTILINE)
    present = set(flags[1].split()) if flags else set()
    return model[1].strip() if model else "", tuple(name for name in _FEATURES if name in present)


def saturates_int8() -> bool:
    """Return whether int8 kernels may saturate sums of products at 16 bits here.

    x86 kernels may, unless /proc/cpuinfo lists VNNI. A system without /proc/cpuinfo lists nothing.
    """
    x86 = platform.machine().lower() in ("x86_64", "amd64", "x86", "i386", "i686")
    return x86 and {"avx_vnni", "avx512_vnni"}.isdisjoint(this_cpu()[1])


def text_of(path: Path) -> str:
    """Return the text of a small system file, or "" if it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _membership() -> str:
    return text_of(Path("/proc/self/cgroup"))


def _groups(root: Path, membership: str, controller: str) -> list[Path]:
    """Return the folders of this process's control groups for one controller, and those of their ancestors."""
    folders = []
    for line in membership.splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers or controller in controllers.split(","):
            base = root / controller if controllers else root
            own = base / path.lstrip("/")
            folders += [folder for folder in (own, *own.parents) if folder == base or base in folder.parents]
    return folders


def _memory() -> int | None:
    try:
        whole = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None
    return min(whole, memory_limit(_CGROUPS, _membership()) or whole)


def _gpus() -> tuple[str, ...]:
    if shutil.which("nvidia-smi") is None:
        return ()
    query = ["nvidia-smi", "--query-gpu=name,memory.total,compute_cap,driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return ()
    return tuple(line.strip() for line in answer.stdout.splitlines() if line.strip())
