"""The server scenario: latency at a rate of Poisson arrivals, given or the highest that keeps a bound."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle, islice
from pathlib import Path

from mdmf_deploy.benchmarking.arrivals import poisson
from mdmf_deploy.benchmarking.clock import Clock
from mdmf_deploy.benchmarking.results import Latency, Server, Settings, Trial
from mdmf_deploy.benchmarking.serving import PERCENT, Served, highest_rate, keeps, serve
from mdmf_deploy.benchmarking.statistics import percentile
from mdmf_deploy.benchmarking.subjects import Subject

_STEPS = 6
_ALONE = 20
_CEILING = 1.25  # times the offline rate, which is not known exactly: above it a queue grows without end
_CONFIRMED = (1.0, 0.9, 0.8, 0.65, 0.5, 0.3)  # shares of the rate found that are tried at length, until one holds
_OVERTIME = 2.0
_FEW = 100


def measure(subject: Subject, paths: Sequence[Path], settings: Settings, clock: Clock, pace: float) -> Server:
    """pace: seconds an image, end to end and offline, roughly: where the search begins."""
    session = _Session(subject, list(paths), settings, clock)
    return session.at(settings.rate) if settings.rate is not None else session.search(_CEILING / pace)


class _Session:
    def __init__(self, subject: Subject, paths: list[Path], settings: Settings, clock: Clock) -> None:
        self._subject, self._paths, self._settings, self._clock = subject, paths, settings, clock
        self._trials: list[Trial] = []

    def at(self, rate: float) -> Server:
        """Latency at this rate, however bad."""
        served, requests = self._serve(rate, self._settings.seconds)
        unserved = requests - len(served.latencies)
        note = f"given up after {_OVERTIME:g} times the time asked for: the rate is too high" if unserved else ""
        return self._server(rate, served, requests, note)

    def search(self, ceiling: float) -> Server:
        """The highest rate whose 99th percentile keeps the bound, and latency there in a longer run of its own."""
        bound = self._settings.p99_bound
        alone = 1e3 * percentile([self._alone(path) for path in islice(cycle(self._paths), _ALONE)], 50)
        if alone > bound:
            return self._none(f"an image alone takes {alone:.3g} ms at the median, longer than the bound")
        found = highest_rate(lambda tried: self._try(tried, self._settings.seconds / _STEPS)[0], ceiling, _STEPS)
        for rate in (share * found for share in _CONFIRMED if found):
            # The best of several short trials flatters itself: a longer one, of other arrivals, must hold as well.
            held, served, requests = self._try(rate, self._settings.seconds / 2)
            if held:
                note = f"found in {len(self._trials)} trials"
                note += f"; p99 of only {requests} requests" if requests < _FEW else ""
                if all(trial.rate <= rate for trial in self._trials):
                    note += "; the highest rate tried, so a higher one may hold as well"
                return self._server(rate, served, requests, note)
        lowest = min(trial.rate for trial in self._trials)
        return self._none(f"no rate kept it, down to {lowest:.3g}/s, though an image alone takes {alone:.3g} ms")

    def _try(self, rate: float, seconds: float) -> tuple[bool, Served, int]:
        bound = self._settings.p99_bound / 1e3
        served, requests = self._serve(rate, seconds, bound)
        held = keeps(served, requests, bound)
        p99 = 1e3 * percentile(served.latencies, PERCENT) if len(served.latencies) == requests else None
        self._trials.append(Trial(rate=rate, requests=requests, p99=p99, held=held))
        return held, served, requests

    def _serve(self, rate: float, seconds: float, bound: float | None = None) -> tuple[Served, int]:
        moments = poisson(rate, seconds, self._settings.seed + len(self._trials)).tolist()
        served = serve(
            moments,
            lambda batch: self._work(batch),
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
        return Server(
            rate=None,
            bound=self._settings.p99_bound,
            latency=None,
            requests=0,
            unserved=0,
            batch=None,
            trials=tuple(self._trials),
            note=why,
        )
