"""Rounds that run every configuration once, in turn, so that a change of the machine affects all of them alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

from mdmf_deploy.tasks.benchmark.statistics import variation

S = TypeVar("S")
R = TypeVar("R")
LEAST = 5
# Filling and draining the pipeline cost a run about the time of one batch. In a run of 16 batches they weigh little.
BATCHES = 16
# A scenario's time holds its warm-up and about eight runs.
_RUNS = 8


class Clock(Protocol):
    """Wall-clock and CPU time, which tests replace."""

    def now(self) -> float:
        """Return seconds from any origin."""
        ...

    def cpu(self) -> float:
        """Return CPU seconds of all threads of this process, from any origin."""
        ...

    def sleep_until(self, moment: float) -> None:
        """Return at `moment`, or at once if it has passed."""
        ...


class RealClock:
    """The clock of this machine."""

    def now(self) -> float:
        return time.perf_counter()

    def cpu(self) -> float:
        return time.process_time()

    def sleep_until(self, moment: float) -> None:
        left = moment - self.now()
        if left > 0:
            time.sleep(left)


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
    """Run a warm-up round, then rounds A B A B ..., and return the results of each subject without its warm-up.

    The rounds end when, after at least `least` of them, the `watched` figure of every subject has a coefficient of
    variation within `limit`. They also end when the budget is spent. Two rounds always run. With several subjects it
    is three, so that their ratios have an interval.

    budget: seconds for all subjects together.
    warm_up: what the first round runs instead of `run`.
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
    """Return whether the values' coefficient of variation is known and within the limit."""
    cv = variation(values)
    return cv is not None and cv <= limit


def items_per_run(most: int, seconds: float, budget: float, runs: int = _RUNS) -> int:
    """Return how many items, 1 to `most`, each run should take so that `runs` runs fit into the budget.

    seconds: time an item takes.
    budget: seconds for all runs.
    """
    return max(1, min(most, int(budget / runs / max(seconds, 1e-9))))


def images_per_run(batch_size: int, seconds: float, longest: float) -> int:
    """Return the number of images of a run of BATCHES batches, or fewer if it would take longer than `longest` seconds.

    seconds: time an image takes.
    """
    return items_per_run(BATCHES * batch_size, seconds, longest, runs=1)
