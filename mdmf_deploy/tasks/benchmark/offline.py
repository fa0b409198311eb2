"""The offline scenario: all images at once, as fast as they go, and the energy of that."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path

from mdmf_deploy.tasks.benchmark import energy
from mdmf_deploy.tasks.benchmark.results import Offline, Settings
from mdmf_deploy.tasks.benchmark.rounds import Clock, filling, fitting, interleave, settled
from mdmf_deploy.tasks.benchmark.statistics import spread
from mdmf_deploy.tasks.benchmark.subjects import Subject

_MANY = 100_000
_COVERS = "RAPL, all of the processor's packages, idle power and other programs included"


@dataclass(frozen=True, slots=True)
class Rated:
    """rates: images a second of every round, for ratios."""

    rates: tuple[float, ...]
    result: Offline


@dataclass(frozen=True, slots=True)
class _Run:
    """joules: None where energy says why."""

    rate: float
    joules: float | None
    energy: str


def measure(
    subjects: Sequence[Subject],
    paths: Sequence[Path],
    settings: Settings,
    clock: Clock,
    pace: float,
    powercap: Path = energy.POWERCAP,
) -> list[Rated]:
    """One for each subject.  pace: seconds an image of the slowest, roughly.  powercap: where RAPL's counters are."""
    count = max(fitting(_MANY, pace, settings.seconds), filling(settings.batch_size, pace, settings.seconds))
    images = list(islice(cycle(paths), count))
    runs = interleave(
        subjects,
        lambda subject: _run(subject, images, clock, powercap),
        lambda run: run.rate,
        clock,
        budget=settings.seconds * len(subjects),
        limit=settings.cv_limit,
        warm_up=lambda subject: _run(subject, images[: 2 * settings.batch_size], clock, powercap),
    )
    return [_rated(taken, len(images), settings.cv_limit) for taken in runs]


def _run(subject: Subject, images: Sequence[Path], clock: Clock, powercap: Path) -> _Run:
    before = energy.read(powercap)
    start = clock.now()
    for _ in subject.detector.stream(images):
        pass
    rate = len(images) / max(clock.now() - start, 1e-9)
    after = energy.read(powercap)
    if isinstance(before, str) or isinstance(after, str):
        return _Run(rate, None, before if isinstance(before, str) else str(after))
    return _Run(rate, energy.joules(before, after) / len(images), _COVERS)


def _rated(runs: Sequence[_Run], images: int, limit: float) -> Rated:
    rates = tuple(run.rate for run in runs)
    joules = [run.joules for run in runs if run.joules is not None]
    result = Offline(
        images_per_second=spread(rates),
        images_per_run=images,
        settled=settled(rates, limit),
        joules=spread(joules).median if len(joules) == len(runs) else None,
        energy=runs[-1].energy,
    )
    return Rated(rates, result)
