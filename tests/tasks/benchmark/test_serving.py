"""The server's queue, on a clock of its own, where latencies are known."""

from __future__ import annotations

import pytest
from fakes.fake_time import FakeClock
from hypothesis import given, settings
from hypothesis import strategies as st

from mdmf_deploy.tasks.benchmark.server import Served, highest_rate, keeps, poisson, serve


def run(
    arrivals: list[float], an_image: float = 0.0, a_batch: float = 0.0, batch_size: int = 1, **options: float
) -> tuple[Served, list[range]]:
    clock, batches = FakeClock(), []
    clock.time = 1000.0  # moments count from the start, whatever the clock says

    def work(batch: range) -> None:
        batches.append(batch)
        clock.time += a_batch + an_image * len(batch)

    return serve(arrivals, work, clock, batch_size=batch_size, **options), batches


def test_an_idle_server_takes_its_service_time() -> None:
    served, _ = run([1.0, 3.0, 7.0], an_image=0.5)
    assert served.latencies == pytest.approx([0.5, 0.5, 0.5])
    assert served.batches == 3


def test_a_request_waits_for_those_before_it_and_its_latency_counts_from_its_arrival() -> None:
    served, _ = run([0.0, 0.1, 0.2], an_image=1.0)
    assert served.latencies == pytest.approx([1.0, 1.9, 2.8])


def test_what_queues_up_is_served_together() -> None:
    served, batches = run([0.0, 0.1, 0.2, 0.3, 0.4], a_batch=1.0, batch_size=3)
    assert batches == [range(1), range(1, 4), range(4, 5)]
    assert served.latencies == pytest.approx([1.0, 1.9, 1.8, 1.7, 2.6])


def test_a_batch_waits_for_others_no_longer_than_told() -> None:
    _, batches = run([0.0, 0.1, 0.3], a_batch=0.01, batch_size=8, batch_wait=0.2)
    assert batches == [range(2), range(2, 3)]


def test_a_full_batch_does_not_wait() -> None:
    served, batches = run([0.0, 0.1, 5.0], a_batch=0.5, batch_size=2, batch_wait=3.0)
    assert batches == [range(2), range(2, 3)]
    assert served.latencies == pytest.approx([0.6, 0.5, 3.5])


def test_nor_does_a_full_one_at_the_end() -> None:
    served, _ = run([0.0, 0.1], a_batch=0.5, batch_size=2, batch_wait=3.0)
    assert served.latencies == pytest.approx([0.6, 0.5])


def test_a_bound_is_not_kept_by_those_alone_that_were_served() -> None:
    assert keeps(Served((0.1, 0.2), (), 2), 2, 0.5)
    assert not keeps(Served((0.1, 0.2), (0.1,), 2), 3, 0.5)
    assert not keeps(Served((0.1, 0.6), (), 2), 2, 0.5)


def test_a_bound_that_is_sure_to_be_missed_ends_the_run() -> None:
    arrivals = [0.01 * n for n in range(300)]
    served, _ = run(arrivals, an_image=1.0, bound=0.5)
    # 3 of 300 may be late; the fourth late one ends it.
    assert len(served.latencies) == 4
    assert not keeps(served, 300, 0.5)


def test_an_endless_queue_is_given_up_and_what_waits_counts() -> None:
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
def test_everyone_is_served_once_in_order_after_arriving(
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
