"""How quiet the machine was during the measurements."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path

import msgspec

from mdmf_deploy.hardware.host import text_of
from mdmf_deploy.tasks.benchmark.rounds import Clock

# Figures begin to suffer above these: load per core before the start, shares of the machine's time, and involuntary
# context switches per second of CPU time.
_LOAD_PER_CORE = 0.2
_OTHERS = 0.05
_STEAL = 0.005
_FORCED_OFF = 50.0


class Noise(msgspec.Struct, frozen=True, kw_only=True):
    """Disturbances by other programs. A figure is None where the system does not report it.

    load_before: processes that wanted a core when the benchmark began, averaged over the last minute.
    others: share of the machine's time that other programs took during the benchmark.
    steal: share that the machine's host gave to other virtual machines.
    forced_off: involuntary context switches of this process per second of CPU time. Its own threads cause some of them.
    warnings: reasons to call the figures noisy, none on a quiet machine.
    """

    load_before: float | None
    others: float | None
    steal: float | None
    forced_off: float | None
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Observation:
    """Counters at one moment.

    load: average of the last minute.
    busy, stolen, ticks: from /proc/stat, in ticks. `ticks` is the time of the whole machine, idle or not.
    switches: involuntary context switches of this process.
    cpu: CPU seconds of this process.
    with_children: the same, plus its child processes that have ended.
    """

    load: float | None
    busy: int | None
    stolen: int | None
    ticks: int | None
    switches: int | None
    cpu: float
    with_children: float


def observe(clock: Clock, proc: Path = Path("/proc")) -> Observation:
    """Read all counters."""
    busy, stolen, ticks = _ticks(text_of(proc / "stat"))
    load = text_of(proc / "loadavg").split(" ")[0]
    if not load and hasattr(os, "getloadavg"):
        load = str(os.getloadavg()[0])
    switches, children = _usage()
    cpu = clock.cpu()
    return Observation(float(load) if load else None, busy, stolen, ticks, switches, cpu, cpu + children)


def judge(before: Observation, after: Observation, cores: int, unsettled: tuple[str, ...], per_second: int) -> Noise:
    """Return the noise between two observations.

    cores: number that this process may use.
    unsettled: figures whose coefficient of variation stayed above its limit.
    per_second: ticks of one core in a second.
    """
    others = steal = forced_off = None
    if before.ticks is not None and after.ticks is not None and after.ticks > before.ticks:
        passed = after.ticks - before.ticks
        own = per_second * (after.with_children - before.with_children)
        # Ticks are coarse: with no other program the share may come out slightly negative.
        others = max(0.0, ((after.busy or 0) - (before.busy or 0) - own) / passed)
        steal = ((after.stolen or 0) - (before.stolen or 0)) / passed
    if before.switches is not None and after.switches is not None and after.cpu > before.cpu:
        forced_off = (after.switches - before.switches) / (after.cpu - before.cpu)
    warnings = []
    if before.load is not None and before.load > _LOAD_PER_CORE * cores:
        warnings.append(f"the machine was busy before: load average {before.load:.2f} on {cores} cores")
    if others is not None and others > _OTHERS:
        warnings.append(f"other programs took {100 * others:.0f}% of the machine's time meanwhile")
    if steal is not None and steal > _STEAL:
        warnings.append(f"the host gave {100 * steal:.1f}% of the machine's time to others (steal)")
    if others is None and forced_off is not None and forced_off > _FORCED_OFF:
        warnings.append(f"its threads were taken off their cores {forced_off:.0f} times per second of CPU time")
    if unsettled:
        warnings.append(f"runs differed by more than the limit: {', '.join(unsettled)}")
    return Noise(load_before=before.load, others=others, steal=steal, forced_off=forced_off, warnings=tuple(warnings))


def ticks_per_second() -> int:
    """Return the ticks of one core in a second in /proc/stat, or 100 where the system does not say."""
    return os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100


def _ticks(stat: str) -> tuple[int | None, int | None, int | None]:
    """Return (busy, stolen, all) from the first line of /proc/stat: user nice system idle iowait irq softirq steal."""
    fields = stat.partition("\n")[0].split()[1:]
    if len(fields) < 8 or not all(field.isdecimal() for field in fields):
        return None, None, None
    user, nice, system, idle, iowait, irq, softirq, steal = map(int, fields[:8])
    busy = user + nice + system + irq + softirq
    return busy, steal, busy + idle + iowait + steal


def _usage() -> tuple[int | None, float]:
    """Return the involuntary context switches of this process and the CPU seconds of its children."""
    if sys.platform == "win32":
        return None, 0.0
    import resource

    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw, children.ru_utime + children.ru_stime
