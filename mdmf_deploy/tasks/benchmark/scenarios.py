"""The scenarios that run configurations in turn: single-stream, and offline with its energy.

Single-stream scores one image after another, each from its file to its row. Offline scores all images at once, as fast
as possible. The names are MLPerf's. The third scenario is in server.py.

Energy is that of whole processor packages, read from RAPL. The name is Intel's, but Linux shows AMD's counters in the
same place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Generic, TypeVar

from mdmf_deploy.tasks.benchmark.results import Latency, Offline, Settings, SingleStream
from mdmf_deploy.tasks.benchmark.rounds import Clock, images_per_run, interleave, items_per_run, settled
from mdmf_deploy.tasks.benchmark.statistics import percentile, spread
from mdmf_deploy.tasks.benchmark.subjects import Subject

T = TypeVar("T")
POWERCAP = Path("/sys/class/powercap")
_MOST_STREAMED = 10_000
_MOST_OFFLINE = 100_000
_COVERS = "RAPL, all of the processor's packages, idle power and other programs included"


@dataclass(frozen=True, slots=True)
class Rated(Generic[T]):
    """A scenario's result, and the rate of every round in images per second, from which ratios are computed."""

    rates: tuple[float, ...]
    result: T


@dataclass(frozen=True, slots=True)
class EnergyReading:
    """Package -> (counter, value at which it wraps around), both in microjoules."""

    packages: dict[str, tuple[int, int]]


@dataclass(frozen=True, slots=True)
class _OfflineRun:
    """One run of one subject.

    rate: images per second.
    joules: energy per image, or None with the reason in `energy`.
    """

    rate: float
    joules: float | None
    energy: str


def measure_single_stream(
    subjects: Sequence[Subject], paths: Sequence[Path], settings: Settings, clock: Clock, pace: float
) -> list[Rated[SingleStream]]:
    """Return a result for each subject. A round's rate is 1 / its median latency.

    pace: seconds an image takes, roughly, on the slowest subject.
    """
    images = list(islice(cycle(paths), items_per_run(_MOST_STREAMED, pace, settings.seconds)))
    runs = interleave(
        subjects,
        lambda subject: _latencies(subject, images, clock),
        lambda latencies: percentile(latencies, 50),
        clock,
        budget=settings.seconds * len(subjects),
        limit=settings.cv_limit,
    )
    return [_single_stream(taken, settings.cv_limit) for taken in runs]


def measure_offline(
    subjects: Sequence[Subject],
    paths: Sequence[Path],
    settings: Settings,
    clock: Clock,
    pace: float,
    powercap: Path = POWERCAP,
) -> list[Rated[Offline]]:
    """Return a result for each subject.

    pace: seconds an image takes, roughly, on the slowest subject.
    powercap: the folder of RAPL's counters.
    """
    count = max(
        items_per_run(_MOST_OFFLINE, pace, settings.seconds),
        images_per_run(settings.batch_size, pace, settings.seconds),
    )
    images = list(islice(cycle(paths), count))
    runs = interleave(
        subjects,
        lambda subject: _offline_run(subject, images, clock, powercap),
        lambda run: run.rate,
        clock,
        budget=settings.seconds * len(subjects),
        limit=settings.cv_limit,
        warm_up=lambda subject: _offline_run(subject, images[: 2 * settings.batch_size], clock, powercap),
    )
    return [_offline(taken, len(images), settings.cv_limit) for taken in runs]


def read_energy(root: Path = POWERCAP) -> EnergyReading | str:
    """Return the counters of all packages, or the reason why there are none."""
    # A zone is intel-rapl:<n>. intel-rapl:<n>:<m> are parts of it, and "psys" is the whole board.
    zones = [zone for zone in sorted(root.glob("intel-rapl:*")) if zone.name.count(":") == 1]
    packages: dict[str, tuple[int, int]] = {}
    for zone in zones:
        try:
            if (zone / "name").read_text().strip() == "psys":
                continue
            counter = int((zone / "energy_uj").read_text())
            packages[zone.name] = (counter, int((zone / "max_energy_range_uj").read_text()))
        except PermissionError:
            return f"no permission to read {zone / 'energy_uj'}; run as root, or: sudo chmod a+r {zone / 'energy_uj'}"
        except (OSError, ValueError) as error:
            return f"{zone} cannot be read: {error}"
    return EnergyReading(packages) if packages else f"no RAPL counter in {root} (virtual machines rarely show one)"


def joules(before: EnergyReading, after: EnergyReading) -> float:
    """Return the energy between two readings, less than one turn of a counter apart (minutes at full load)."""
    used = 0
    for name, (start, turn) in before.packages.items():
        end = after.packages[name][0]
        used += end - start if end >= start else end - start + turn
    return used / 1e6


def _latencies(subject: Subject, images: Sequence[Path], clock: Clock) -> list[float]:
    latencies = []
    for path in images:
        start = clock.now()
        subject.detector.detect(path)
        latencies.append(clock.now() - start)
    return latencies


def _single_stream(runs: Sequence[Sequence[float]], limit: float) -> Rated[SingleStream]:
    medians = [percentile(run, 50) for run in runs]
    result = SingleStream(
        latency=Latency.of([latency for run in runs for latency in run]),
        medians=spread([1e3 * median for median in medians]),
        settled=settled(medians, limit),
    )
    return Rated(tuple(1 / median for median in medians), result)


def _offline_run(subject: Subject, images: Sequence[Path], clock: Clock, powercap: Path) -> _OfflineRun:
    before = read_energy(powercap)
    start = clock.now()
    for _ in subject.detector.stream(images):
        pass
    rate = len(images) / max(clock.now() - start, 1e-9)
    after = read_energy(powercap)
    if isinstance(before, str) or isinstance(after, str):
        return _OfflineRun(rate, None, before if isinstance(before, str) else str(after))
    return _OfflineRun(rate, joules(before, after) / len(images), _COVERS)


def _offline(runs: Sequence[_OfflineRun], images: int, limit: float) -> Rated[Offline]:
    rates = tuple(run.rate for run in runs)
    energies = [run.joules for run in runs if run.joules is not None]
    result = Offline(
        images_per_second=spread(rates),
        images_per_run=images,
        settled=settled(rates, limit),
        joules=spread(energies).median if len(energies) == len(runs) else None,
        energy=runs[-1].energy,
    )
    return Rated(rates, result)
