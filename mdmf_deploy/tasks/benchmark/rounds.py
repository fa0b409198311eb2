"""Rounds in which every configuration runs once, by turns, so that a change of the machine meets all of them alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

from mdmf_deploy.tasks.benchmark.statistics import variation

S = TypeVar("S")
R = TypeVar("R")
LEAST = 5


def interleave(
    subjects: Sequence[S],
    run: Callable[[S], R],
    watched: Callable[[R], float],
    clock: Clock,
    *,
    budget: float,
    limit: float,
    least: int = LEAST,
    warm_up: Callable[[S], object] | None = None,
) -> list[list[R]]:
    """A warm-up round, which is dropped, then rounds A B A B ...; for each subject, what its runs gave.

    warm_up: what the first round runs in place of `run`.
    They end when every subject's `watched` figure has a coefficient of variation within the limit, after at least
    `least` rounds, or once the budget, in seconds for all subjects together, is spent; two rounds come first always,
    of several subjects three, so that their ratios have an interval.
    """
    for subject in subjects:
        (warm_up or run)(subject)
    start = clock.now()
    results: list[list[R]] = [[] for _ in subjects]
    always = 2 if len(subjects) == 1 else 3
    while True:
        for subject, taken in zip(subjects, results, strict=True):
            taken.append(run(subject))
        rounds = len(results[0])
        if rounds >= always and clock.now() - start >= budget:
            return results
        if rounds >= least and all(settled([watched(one) for one in taken], limit) for taken in results):
            return results


def settled(values: Sequence[float], limit: float) -> bool:
    """Whether the values' coefficient of variation is known and within the limit."""
    cv = variation(values)
    return cv is not None and cv <= limit


class Clock(Protocol):
    """now, cpu: seconds from any origin; cpu: of all threads of this process."""

    def now(self) -> float: ...

    def cpu(self) -> float: ...

    def sleep_until(self, moment: float) -> None:
        """Return at once where the moment has passed."""
        ...


class RealClock:
    def now(self) -> float:
        return time.perf_counter()

    def cpu(self) -> float:
        return time.process_time()

    def sleep_until(self, moment: float) -> None:
        left = moment - self.now()
        if left > 0:
            time.sleep(left)


# A scenario's time holds eight runs and their warm-up, or about so.
_RUNS = 8
# Filling and draining the pipeline cost a run about the time of one batch: of so many they weigh little.
BATCHES = 16


def fitting(most: int, seconds: float, budget: float, runs: int = _RUNS) -> int:
    """How many items of `seconds` each one run should take, 1 to `most`, so that `runs` runs fit into the budget."""
    return max(1, min(most, int(budget / runs / max(seconds, 1e-9))))


def filling(batch_size: int, seconds: float, longest: float) -> int:
    """How many images of `seconds` each a run of BATCHES batches takes; of slow ones what `longest` seconds hold."""
    return fitting(BATCHES * batch_size, seconds, longest, runs=1)
