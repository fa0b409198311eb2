"""The server scenario: latency of Poisson arrivals at a given rate, or at the highest rate that keeps a bound.

Arrivals are drawn beforehand, and a latency counts from its own arrival, however late the server is. So waiting counts
as waiting, and an overloaded server does not slow its clients down (no coordinated omission).
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mdmf_deploy.tasks.benchmark.results import Latency, RateTrial, Server, Settings
from mdmf_deploy.tasks.benchmark.rounds import Clock
from mdmf_deploy.tasks.benchmark.statistics import allowed_above, least_samples, percentile, sure_percentile
from mdmf_deploy.tasks.benchmark.subjects import Subject

PERCENT = 99
DOUBLINGS = 4
# Shares of the rate found by the search. They are tried in longer runs until one holds.
_CONFIRMED = (1.0, 0.9, 0.8, 0.65, 0.5, 0.3)
_STEPS = 6
_ALONE = 20  # images timed alone before the search
# Times the offline rate, which is only roughly known. Above that rate a queue grows without end.
_CEILING = 1.25
_OVERTIME = 2.0


@dataclass(frozen=True, slots=True)
class Served:
    """The outcome of a run.

    latencies: seconds, of requests that were served.
    waiting: seconds waited so far, of requests that had arrived but were not served.
    batches: how many the served requests were served in.
    """

    latencies: tuple[float, ...]
    waiting: tuple[float, ...]
    batches: int

    @property
    def all(self) -> tuple[float, ...]:
        """The latencies of all requests, counting the time that unserved ones had waited."""
        return self.latencies + self.waiting


def measure(subject: Subject, paths: Sequence[Path], settings: Settings, clock: Clock, pace: float) -> Server:
    """Measure latency at settings.rate, or search for the highest rate whose 99th percentile keeps the bound.

    pace: seconds an image takes offline, roughly, where the search begins.
    """
    session = _Session(subject, list(paths), settings, clock)
    return session.at(settings.rate) if settings.rate is not None else session.search(_CEILING / pace)


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

    arrivals: seconds from now, rising.
    work: serves these requests and returns when their rows are there.
    batch_wait: seconds that the first request of a batch may wait for others. A full batch does not wait.
    bound: give up once the 99th percentile is sure to exceed it, in seconds.
    longest: give up after so many seconds.
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
        # The request slept for has arrived, even if start + ready - start was rounded down.
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
    """Return whether all requests were served with a 99th percentile within the bound."""
    return len(served.latencies) == requests and percentile(served.latencies, PERCENT) <= bound


def highest_rate(holds: Callable[[float], bool], ceiling: float, steps: int = _STEPS) -> float:
    """Return the highest rate found to hold by bisection of (0, ceiling), or 0. It is exact to ceiling / 2**steps.

    If all rates tried hold, the ceiling is doubled while it holds, at most DOUBLINGS times. Then the interval between
    the highest rate that held and the lowest that did not is bisected.
    """
    found, failed = _bisected(holds, 0.0, ceiling, steps)
    doubled = 0
    while failed is None and doubled < DOUBLINGS:
        found, failed = (ceiling, None) if holds(ceiling) else (found, ceiling)
        ceiling, doubled = 2 * ceiling, doubled + 1
    return found if failed is None or not doubled else _bisected(holds, found, failed, steps)[0]


def poisson(rate: float, seconds: float, seed: int) -> NDArray[np.float64]:
    """Return the moments (n,) of a Poisson process in seconds, rising from 0: `rate` per second for about `seconds`.

    n = ceil(rate * seconds) is fixed, so that rates that hold and rates that do not are judged on as many requests.
    """
    count = max(1, math.ceil(rate * seconds))
    return np.cumsum(np.random.default_rng(seed).exponential(1.0 / rate, count))


class _Session:
    """The trials of one subject. Each has its own random arrivals."""

    def __init__(self, subject: Subject, paths: list[Path], settings: Settings, clock: Clock) -> None:
        self._subject, self._paths, self._settings, self._clock = subject, paths, settings, clock
        self._trials: list[RateTrial] = []

    def at(self, rate: float) -> Server:
        """Measure latency at this rate, even if it exceeds every bound."""
        served, requests = self._serve(rate, self._settings.seconds)
        unserved = requests - len(served.latencies)
        note = f"given up after {_OVERTIME:g} times the time asked for: the rate is too high" if unserved else ""
        return self._server(rate, served, requests, note)

    def search(self, ceiling: float) -> Server:
        """Find the highest rate whose 99th percentile keeps the bound, and measure latency there in a longer run."""
        bound = self._settings.p99_bound
        alone = 1e3 * percentile([self._alone(path) for path in islice(cycle(self._paths), _ALONE)], 50)
        if alone > bound:
            return self._none(f"an image alone takes {alone:.3g} ms at the median, longer than the bound")
        found = highest_rate(lambda tried: self._try(tried, self._settings.seconds / _STEPS)[0], ceiling)
        for rate in (share * found for share in _CONFIRMED if found):
            # The best of several short trials is biased upwards, so a longer one with other arrivals must hold as well.
            held, served, requests = self._try(rate, self._settings.seconds / 2)
            if held:
                note = f"found in {len(self._trials)} trials"
                if requests < least_samples(PERCENT):
                    note += f"; {requests} requests are too few to know p99, give more --seconds"
                if all(trial.rate <= rate for trial in self._trials):
                    note += "; the highest rate tried, so a higher one may hold as well"
                return self._server(rate, served, requests, note)
        lowest = min(trial.rate for trial in self._trials)
        return self._none(f"no rate kept it, down to {lowest:.3g}/s, though an image alone takes {alone:.3g} ms")

    def _try(self, rate: float, seconds: float) -> tuple[bool, Served, int]:
        bound = self._settings.p99_bound / 1e3
        served, requests = self._serve(rate, seconds, bound)
        held = keeps(served, requests, bound)
        p99 = sure_percentile(served.latencies, PERCENT) if len(served.latencies) == requests else None
        self._trials.append(RateTrial(rate=rate, requests=requests, p99=None if p99 is None else 1e3 * p99, held=held))
        return held, served, requests

    def _serve(self, rate: float, seconds: float, bound: float | None = None) -> tuple[Served, int]:
        moments = poisson(rate, seconds, self._settings.seed + len(self._trials)).tolist()
        served = serve(
            moments,
            self._work,
            self._clock,
            batch_size=self._settings.batch_size,
            batch_wait=self._settings.batch_wait / 1e3,
            bound=bound,
            longest=None if bound is not None else _OVERTIME * max(seconds, moments[-1]),
        )
        return served, len(moments)

    def _work(self, batch: range) -> None:
        self._subject.detector.detect([self._paths[n % len(self._paths)] for n in batch])

    def _alone(self, path: Path) -> float:
        start = self._clock.now()
        self._subject.detector.detect(path)
        return self._clock.now() - start

    def _server(self, rate: float, served: Served, requests: int, note: str) -> Server:
        return Server(
            rate=rate,
            bound=None if self._settings.rate is not None else self._settings.p99_bound,
            latency=Latency.of(served.all),
            requests=requests,
            unserved=requests - len(served.latencies),
            batch=len(served.latencies) / served.batches,
            trials=tuple(self._trials),
            note=note,
        )

    def _none(self, why: str) -> Server:
        return Server(rate=None, bound=self._settings.p99_bound, trials=tuple(self._trials), note=why)


def _bisected(holds: Callable[[float], bool], low: float, high: float, steps: int) -> tuple[float, float | None]:
    """Return (highest rate that held, or low; lowest that did not, or None if all held)."""
    failed = None
    for _ in range(steps):
        middle = (low + high) / 2
        if holds(middle):
            low = middle
        else:
            high = failed = middle
    return low, failed
