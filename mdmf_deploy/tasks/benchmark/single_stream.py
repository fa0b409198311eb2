"""The single-stream scenario: one image after another, each from its file to its row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path

from mdmf_deploy.tasks.benchmark.results import Latency, Settings, SingleStream
from mdmf_deploy.tasks.benchmark.rounds import Clock, fitting, interleave, settled
from mdmf_deploy.tasks.benchmark.statistics import percentile, spread
from mdmf_deploy.tasks.benchmark.subjects import Subject

_MANY = 10_000


@dataclass(frozen=True, slots=True)
class Streamed:
    """rates: 1 / median latency of every round, for ratios."""

    rates: tuple[float, ...]
    result: SingleStream


def measure(
    subjects: Sequence[Subject], paths: Sequence[Path], settings: Settings, clock: Clock, pace: float
) -> list[Streamed]:
    """One for each subject.  pace: seconds an image of the slowest, roughly."""
    images = list(islice(cycle(paths), fitting(_MANY, pace, settings.seconds)))
    runs = interleave(
        subjects,
        lambda subject: _run(subject, images, clock),
        lambda latencies: percentile(latencies, 50),
        clock,
        budget=settings.seconds * len(subjects),
        limit=settings.cv_limit,
    )
    return [_streamed(taken, settings.cv_limit) for taken in runs]


def _run(subject: Subject, images: Sequence[Path], clock: Clock) -> list[float]:
    latencies = []
    for path in images:
        start = clock.now()
        subject.detector.detect(path)
        latencies.append(clock.now() - start)
    return latencies


def _streamed(runs: Sequence[Sequence[float]], limit: float) -> Streamed:
    medians = [percentile(run, 50) for run in runs]
    result = SingleStream(
        latency=Latency.of([latency for run in runs for latency in run]),
        medians=spread([1e3 * median for median in medians]),
        settled=settled(medians, limit),
    )
    return Streamed(tuple(1 / median for median in medians), result)
