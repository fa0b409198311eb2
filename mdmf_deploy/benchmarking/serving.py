"""The server scenario: requests queue and are served in batches; and the highest rate that keeps a bound.

Moments of arrival are drawn beforehand and a latency counts from its own, however late the server is: what waits is
counted as waiting, and an overloaded server does not slow its clients down (no coordinated omission).
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mdmf_deploy.benchmarking.clock import Clock
from mdmf_deploy.benchmarking.statistics import allowed_above, percentile

PERCENT = 99
DOUBLINGS = 4


@dataclass(frozen=True, slots=True)
class Served:
    """latencies: seconds, of served requests.  waiting: seconds so far, of those that had come and were not served.

    batches: how many they were served in.
    """

    latencies: tuple[float, ...]
    waiting: tuple[float, ...]
    batches: int

    @property
    def all(self) -> tuple[float, ...]:
        """Every request's latency; of one left waiting, what it had waited."""
        return self.latencies + self.waiting


def serve(
    arrivals: Sequence[float],
    work: Callable[[range], None],
    clock: Clock,
    *,
    batch_size: int,
    batch_wait: float = 0.0,
    bound: float | None = None,
    longest: float | None = None,
) -> Served:
    """Serve requests in order of arrival, several at once.

    arrivals: seconds from now, rising.  work: serves these requests; returns when their rows are there.
    batch_wait: seconds that the first of a batch may wait for others to join it, unless the batch is full before.
    bound: give up once its 99th percentile is sure to be missed.  longest: give up after so many seconds.
    """
    start = clock.now()
    allowed = allowed_above(len(arrivals), PERCENT)
    latencies: list[float] = []
    at = batches = late = 0
    while at < len(arrivals):
        ready = arrivals[at] + batch_wait
        if at + batch_size <= len(arrivals):
            ready = min(ready, arrivals[at + batch_size - 1])
        clock.sleep_until(start + ready)
        now = clock.now() - start
        # The one slept for is there, though start + ready - start may have rounded to a little less.
        end = max(at + 1, bisect.bisect_right(arrivals, now, at, min(at + batch_size, len(arrivals))))
        work(range(at, end))
        done = clock.now() - start
        for moment in arrivals[at:end]:
            latencies.append(done - moment)
            late += bound is not None and latencies[-1] > bound
        at, batches = end, batches + 1
        if late > allowed or (longest is not None and done > longest):
            break
    now = clock.now() - start
    waiting = tuple(now - moment for moment in arrivals[at:] if moment <= now)
    return Served(tuple(latencies), waiting, batches)


def keeps(served: Served, requests: int, bound: float) -> bool:
    """Whether all were served and their 99th percentile is within the bound."""
    return len(served.latencies) == requests and percentile(served.latencies, PERCENT) <= bound


def highest_rate(holds: Callable[[float], bool], ceiling: float, steps: int = 6) -> float:
    """The highest rate found to hold by bisection of (0, ceiling); 0 if none did.  Within ceiling / 2**steps.

    Where all of them hold, the ceiling is doubled while it holds, DOUBLINGS times at most, and what is left bisected.
    """
    found, failed = _bisected(holds, 0.0, ceiling, steps)
    doubled = 0
    while failed is None and doubled < DOUBLINGS:
        found, failed = (ceiling, None) if holds(ceiling) else (found, ceiling)
        ceiling, doubled = 2 * ceiling, doubled + 1
    return found if failed is None or not doubled else _bisected(holds, found, failed, steps)[0]


def _bisected(holds: Callable[[float], bool], low: float, high: float, steps: int) -> tuple[float, float | None]:
    """(highest that held, or low; lowest that did not, None if all held)."""
    failed = None
    for _ in range(steps):
        middle = (low + high) / 2
        if holds(middle):
            low = middle
        else:
            high = failed = middle
    return low, failed
