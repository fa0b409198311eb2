"""Configurations take turns until their runs agree or the time is up."""

from __future__ import annotations

import pytest
from fakes.fake_time import FakeClock

from mdmf_deploy.tasks.benchmark.rounds import images_per_run, interleave, items_per_run, settled


class Runs:
    """A run that logs its subject, takes a second and returns the next value."""

    def __init__(self, values: list[float]) -> None:
        self.clock, self.order, self.values = FakeClock(), [], iter(values)

    def __call__(self, subject: str) -> float:
        self.order.append(subject)
        self.clock.time += 1.0
        return next(self.values)


def test_the_warm_up_is_dropped_and_rounds_alternate() -> None:
    runs = Runs([99.0, 99.0, *[1.0, 2.0] * 3])
    results = interleave("ab", runs, float, runs.clock, budget=100, limit=0.05, least=3)
    assert runs.order == list("ab" * 4)
    assert results == [[1.0] * 3, [2.0] * 3]


def test_a_warm_up_may_differ_from_the_runs() -> None:
    runs, warmed = Runs([1.0, 2.0] * 3), []
    interleave("ab", runs, float, runs.clock, budget=100, limit=0.05, least=3, warm_up=warmed.append)
    assert (warmed, runs.order) == (["a", "b"], list("ab" * 3))


def test_it_ends_once_every_subject_has_settled() -> None:
    # b's second run is off: it takes eight rounds until its coefficient of variation is below 20%.
    b = [1.0, 1.6, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]
    values = [value for pair in zip([1.0] * 10, b, strict=True) for value in pair]
    runs = Runs([0.0, 0.0, *values])
    results = interleave("ab", runs, float, runs.clock, budget=1000, limit=0.2, least=3)
    assert len(results[0]) == len(results[1]) == 8
    assert settled(results[1], 0.2)
    assert not settled(results[1][:-1], 0.2)


def test_the_budget_ends_what_never_settles() -> None:
    runs = Runs([0.0, *[1.0, 9.0] * 50])
    (result,) = interleave("a", runs, float, runs.clock, budget=7, limit=0.05)
    assert len(result) == 7
    assert not settled(result, 0.05)


@pytest.mark.parametrize(("subjects", "rounds"), [("a", 2), ("ab", 3)])
def test_two_or_three_rounds_run_however_small_the_budget(subjects: str, rounds: int) -> None:
    runs = Runs([1.0] * 20)
    first, *_ = interleave(subjects, runs, float, runs.clock, budget=0.001, limit=0.05)
    assert len(first) == rounds


@pytest.mark.parametrize("values", [[], [1.0]])
def test_one_run_alone_has_not_settled(values: list[float]) -> None:
    assert not settled(values, 1.0)


@pytest.mark.parametrize(("most", "seconds", "count"), [(32, 0.001, 32), (32, 0.1, 10), (32, 60.0, 1), (32, 0.0, 32)])
def test_a_run_takes_about_an_eighth_of_the_time(most: int, seconds: float, count: int) -> None:
    assert items_per_run(most, seconds, budget=8.0) == count


@pytest.mark.parametrize(("seconds", "count"), [(0.001, 128), (0.1, 80), (60.0, 1)])
def test_a_run_holds_enough_batches_to_overlap_or_takes_all_of_the_time(seconds: float, count: int) -> None:
    assert images_per_run(8, seconds, longest=8.0) == count
