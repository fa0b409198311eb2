"""The server scenario on a clock of its own, where latencies are known: its search, its queue, its arrivals."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest
from fakes.fake_time import FakeClock, FakeDetector, subject
from hypothesis import given, settings
from hypothesis import strategies as st

from mdmf_deploy.tasks.benchmark import server
from mdmf_deploy.tasks.benchmark.results import Settings
from mdmf_deploy.tasks.benchmark.server import Served, highest_rate, keeps, poisson, serve

PATHS = [Path("a.jpg"), Path("b.jpg"), Path("c.jpg")]
SETTINGS = Settings(batch_size=8, seconds=8.0, p99_bound=100.0)


def changed(**changes: object) -> Settings:
    return msgspec.structs.replace(SETTINGS, **changes)


def test_the_server_finds_the_highest_rate_that_keeps_the_bound() -> None:
    clock = FakeClock()
    detector = FakeDetector(clock, 0.010)
    found = server.measure(subject(detector), PATHS, changed(seconds=600.0, batch_size=1), clock, pace=0.010)
    # M/D/1 with a service of 10 ms: p99 of 100 ms at a load of about 0.8.
    assert found.rate is not None
    assert 70 < found.rate < 90
    assert found.latency is not None
    assert found.latency.p99 <= 100
    assert found.trials[-1].held
    assert found.trials[-1].rate == found.rate
    assert any(not trial.held for trial in found.trials)
    assert "highest rate tried" not in found.note
    assert all(trial.held or trial.p99 is None or trial.p99 > 100 for trial in found.trials)


def test_a_rate_that_a_longer_run_does_not_confirm_is_lowered(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []

    def arrivals(rate: float, seconds: float, seed: int) -> np.ndarray:
        tried.append((rate, seconds))
        return np.array([1.0])

    def late_from_44(*_: object, **__: object) -> Served:
        return Served((0.01 if tried[-1][0] < 44 else 1.0,), (), 1)

    monkeypatch.setattr(server, "highest_rate", lambda *_: 50.0)
    monkeypatch.setattr(server, "poisson", arrivals)
    monkeypatch.setattr(server, "serve", late_from_44)
    clock = FakeClock()
    found = server.measure(subject(FakeDetector(clock, 0.01)), PATHS, SETTINGS, clock, pace=0.01)
    assert found.rate == pytest.approx(50 * 0.8)
    assert tried == [(pytest.approx(50 * share), 4.0) for share in (1.0, 0.9, 0.8)]


def test_no_two_trials_see_the_same_arrivals(monkeypatch: pytest.MonkeyPatch) -> None:
    seeds = []
    monkeypatch.setattr(
        server, "poisson", lambda rate, seconds, seed: seeds.append(seed) or poisson(rate, seconds, seed)
    )
    clock = FakeClock()
    server.measure(subject(FakeDetector(clock, 0.01)), PATHS, changed(seed=5), clock, pace=0.01)
    assert seeds == list(range(5, 5 + len(seeds)))


def test_batching_raises_that_rate() -> None:
    def best(batch_size: int) -> float:
        clock = FakeClock()
        detector = FakeDetector(clock, 0.002, a_batch=0.008)
        settings = changed(seconds=60.0, batch_size=batch_size)
        return server.measure(subject(detector), PATHS, settings, clock, pace=0.003).rate or 0.0

    assert best(8) > 2 * best(1)


def test_a_search_that_begins_far_too_low_finds_the_rate_or_reports_that_it_may_be_higher() -> None:
    clock = FakeClock()
    settings = changed(seconds=600.0, batch_size=1)
    found = server.measure(subject(FakeDetector(clock, 0.010)), PATHS, settings, clock, pace=0.060)
    assert found.rate is not None
    assert 65 < found.rate < 90
    assert "highest rate tried" not in found.note
    found = server.measure(subject(FakeDetector(clock, 0.001)), PATHS, settings, clock, pace=0.100)
    assert found.rate == pytest.approx(1.25 / 0.100 * 8)
    assert "the highest rate tried, so a higher one may hold as well" in found.note


def test_a_bound_that_an_image_alone_misses_is_reported_without_a_search() -> None:
    clock = FakeClock()
    found = server.measure(subject(FakeDetector(clock, 0.3)), PATHS, SETTINGS, clock, pace=0.3)
    assert (found.rate, found.latency, found.trials) == (None, None, ())
    assert "an image alone takes 300 ms" in found.note


def test_a_bound_that_holds_at_no_rate_is_reported_after_a_few_trials() -> None:
    clock = FakeClock()

    class Stuttering(FakeDetector):
        """A fast detector, but every tenth call takes a second."""

        def stream(self, sources: Iterable[Path]) -> Iterator[None]:
            rows = super().stream(sources)
            self.clock.time += len(self.log) % 10 == 0
            return rows

    found = server.measure(subject(Stuttering(clock, 0.001)), PATHS, SETTINGS, clock, pace=0.001)
    assert found.rate is None
    assert "no rate kept it" in found.note
    assert len(found.trials) <= 12


def test_a_given_rate_is_measured_as_it_is() -> None:
    clock = FakeClock()
    found = server.measure(subject(FakeDetector(clock, 0.010)), PATHS, changed(rate=10.0), clock, pace=0.010)
    assert (found.rate, found.bound, found.requests, found.unserved) == (10.0, None, 80, 0)
    assert found.latency is not None
    assert found.latency.count == 80
    assert found.note == ""


def test_a_rate_beyond_the_machine_is_given_up_and_reported() -> None:
    clock = FakeClock()
    found = server.measure(subject(FakeDetector(clock, 1.0)), PATHS, changed(rate=100.0), clock, pace=1.0)
    assert found.unserved > 700
    assert "too high" in found.note
    assert found.latency is not None
    assert found.latency.count == found.requests  # unserved requests count with the time they waited
    assert found.latency.p50 > 1000
    assert clock.now() < 40


def test_arrivals_do_not_wait_for_the_server() -> None:
    """Avoid coordinated omission: one stall delays all requests that arrive meanwhile, not only one."""
    clock = FakeClock()
    calls = iter(range(1000))

    def work(batch: range) -> None:
        clock.time += 1.0 if next(calls) == 0 else 0.001

    served = serve([0.01 * n for n in range(100)], work, clock, batch_size=1)
    assert sum(latency > 0.5 for latency in served.latencies) > 40


def run(
    arrivals: list[float], an_image: float = 0.0, a_batch: float = 0.0, batch_size: int = 1, **options: float
) -> tuple[Served, list[range]]:
    clock, batches = FakeClock(), []
    clock.time = 1000.0  # arrivals count from the start, whatever the clock shows

    def work(batch: range) -> None:
        batches.append(batch)
        clock.time += a_batch + an_image * len(batch)

    return serve(arrivals, work, clock, batch_size=batch_size, **options), batches


def test_an_idle_server_takes_its_service_time() -> None:
    served, _ = run([1.0, 3.0, 7.0], an_image=0.5)
    assert served.latencies == pytest.approx([0.5, 0.5, 0.5])
    assert served.batches == 3


def test_latency_counts_from_the_arrival_while_a_request_waits_for_earlier_ones() -> None:
    served, _ = run([0.0, 0.1, 0.2], an_image=1.0)
    assert served.latencies == pytest.approx([1.0, 1.9, 2.8])


def test_queued_requests_are_served_together() -> None:
    served, batches = run([0.0, 0.1, 0.2, 0.3, 0.4], a_batch=1.0, batch_size=3)
    assert batches == [range(1), range(1, 4), range(4, 5)]
    assert served.latencies == pytest.approx([1.0, 1.9, 1.8, 1.7, 2.6])


def test_a_batch_waits_for_others_no_longer_than_batch_wait() -> None:
    _, batches = run([0.0, 0.1, 0.3], a_batch=0.01, batch_size=8, batch_wait=0.2)
    assert batches == [range(2), range(2, 3)]


def test_a_full_batch_does_not_wait() -> None:
    served, batches = run([0.0, 0.1, 5.0], a_batch=0.5, batch_size=2, batch_wait=3.0)
    assert batches == [range(2), range(2, 3)]
    assert served.latencies == pytest.approx([0.6, 0.5, 3.5])


def test_a_full_batch_at_the_end_does_not_wait() -> None:
    served, _ = run([0.0, 0.1], a_batch=0.5, batch_size=2, batch_wait=3.0)
    assert served.latencies == pytest.approx([0.6, 0.5])


def test_a_bound_is_not_kept_if_requests_were_left_unserved() -> None:
    assert keeps(Served((0.1, 0.5), (), 2), 2, 0.5)
    assert not keeps(Served((0.1, 0.2), (0.1,), 2), 3, 0.5)
    assert not keeps(Served((0.1, 0.6), (), 2), 2, 0.5)


def test_a_bound_that_is_sure_to_be_missed_ends_the_run() -> None:
    arrivals = [0.01 * n for n in range(300)]
    served, _ = run(arrivals, an_image=1.0, bound=0.5)
    # 3 of 300 may be late; the fourth late one ends it.
    assert len(served.latencies) == 4
    assert not keeps(served, 300, 0.5)


def test_an_endless_queue_is_given_up_and_waiting_requests_count() -> None:
    served, _ = run([0.0, 0.1, 0.2, 50.0], an_image=3.0, longest=5.0)
    assert served.latencies == pytest.approx([3.0, 5.9])
    assert served.waiting == pytest.approx([5.8])  # the fourth has not come yet
    assert served.all == pytest.approx([3.0, 5.9, 5.8])


@settings(deadline=None)
@given(
    st.lists(st.floats(0, 1), min_size=1, max_size=40),
    st.integers(1, 5),
    st.floats(0, 0.3),
    st.floats(0, 0.2),
    st.floats(0, 0.3),
)
def test_every_request_is_served_once_in_order_after_arriving(
    gaps: list[float], batch_size: int, an_image: float, a_batch: float, batch_wait: float
) -> None:
    arrivals = [sum(gaps[: n + 1]) for n in range(len(gaps))]
    served, batches = run(arrivals, an_image, a_batch, batch_size, batch_wait=batch_wait)
    assert [n for batch in batches for n in batch] == list(range(len(arrivals)))
    assert max(map(len, batches)) <= batch_size
    assert served.waiting == ()
    assert all(latency >= a_batch + an_image - 1e-9 for latency in served.latencies)


def test_a_queue_of_random_arrivals_waits_as_theory_says() -> None:
    # M/D/1: the mean wait is rho / (2 (1 - rho)) service times (Pollaczek and Khinchine).
    arrivals = poisson(rate=0.5, seconds=40_000, seed=2).tolist()
    served, _ = run(arrivals, an_image=1.0)
    mean = sum(served.latencies) / len(served.latencies)
    assert mean == pytest.approx(1 + 0.5 / (2 * 0.5), rel=0.05)


def test_bisection_ends_just_below_the_highest_rate_that_holds() -> None:
    tried: list[float] = []

    def holds(rate: float) -> bool:
        tried.append(rate)
        return rate <= 37.0

    found = highest_rate(holds, ceiling=128.0, steps=7)
    assert 36.0 <= found <= 37.0
    assert len(tried) == 7
    assert highest_rate(lambda rate: False, 128.0) == 0


def test_a_ceiling_that_holds_is_raised_and_the_rest_bisected() -> None:
    for limit in (127.0, 130.0, 300.0, 1000.0):
        tried: list[float] = []

        def holds(rate: float, limit: float = limit, tried: list[float] = tried) -> bool:
            tried.append(rate)
            return rate <= limit

        found = highest_rate(holds, ceiling=128.0)
        assert found <= limit
        assert limit - found <= limit / 2**6
        assert any(rate > limit for rate in tried)
        assert len(tried) <= 6 + 4 + 6


def test_raising_the_ceiling_ends() -> None:
    assert highest_rate(lambda rate: True, 128.0) == 128.0 * 2**3


def test_counts_in_equal_windows_have_a_poisson_mean_and_variance() -> None:
    moments = poisson(rate=20, seconds=1000, seed=3)
    counts, _ = np.histogram(moments, bins=np.arange(0, 990))
    assert counts.mean() == pytest.approx(20, rel=0.03)
    # The variance equals the mean: regular arrivals would have none, bursts more.
    assert counts.var() == pytest.approx(20, rel=0.15)


def test_gaps_are_exponential() -> None:
    gaps = np.diff(poisson(rate=50, seconds=400, seed=1))
    assert np.mean(gaps > 1 / 50) == pytest.approx(np.exp(-1), abs=0.01)
    assert np.corrcoef(gaps[1:], gaps[:-1])[0, 1] == pytest.approx(0, abs=0.03)


def test_a_seed_repeats_and_another_does_not() -> None:
    assert (poisson(10, 5, seed=7) == poisson(10, 5, seed=7)).all()
    assert (poisson(10, 5, seed=7) != poisson(10, 5, seed=8)).any()


@pytest.mark.parametrize(("rate", "seconds", "count"), [(10, 5, 50), (0.1, 1, 1), (3, 0.5, 2)])
def test_the_number_of_requests_follows_rate_and_time(rate: float, seconds: float, count: int) -> None:
    moments = poisson(rate, seconds, seed=0)
    assert len(moments) == count
    assert (np.diff(moments) > 0).all()
    assert moments[0] > 0
