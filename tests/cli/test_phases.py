"""The display of a run's phases: one line for each, an estimate once, and bars on a terminal only."""

from __future__ import annotations

import io

import pytest
from fakes.fake_time import FakeClock
from rich.console import Console

from mdmf_deploy.cli.phases import PhaseDisplay, duration
from mdmf_deploy.tasks.train.phases import Count


def shown(steps: int, seconds: float, start: int = 0, terminal: bool = False) -> str:
    """Return what is displayed of a phase whose first unit takes 100 seconds, and each other this many."""
    clock, written = FakeClock(), io.StringIO()
    console = Console(file=written, force_terminal=terminal, width=100, color_system=None)
    with PhaseDisplay(lambda line: console.print(line, markup=False, highlight=False), console, clock.now) as display:
        count = Count("training", "steps", steps, display.follow, done=start)
        for step in range(start, steps):
            clock.time += 100 if step == start else seconds
            count.advance()
        display.log("[end] of it")
    return written.getvalue()


def test_a_phase_is_one_line_with_its_count_and_seconds() -> None:
    assert shown(1, 0).splitlines() == ["training: 1 steps in 100.0 s", "[end] of it"]
    assert "training: 1,200 steps in 219.9 s" in shown(1200, 0.1)
    assert "training: 40 of 1,200 steps in 139.0 s" in shown(1200, 1, start=1160)


def test_the_time_left_is_told_once_without_the_first_unit() -> None:
    [line] = [line for line in shown(5001, 2).splitlines() if "left" in line]
    # 5 s are measured after three steps of 2 s.
    assert line == "training: about 2 h 47 min left, after 4 of 5,001 steps"
    [line] = [line for line in shown(5001, 2, start=4000).splitlines() if "left" in line]
    assert line == "training: about 33 min left, after 4,004 of 5,001 steps"


@pytest.mark.parametrize(("steps", "seconds"), [(11, 2), (3, 50), (200, 0.01)])
def test_a_short_rest_is_not_worth_a_line(steps: int, seconds: float) -> None:
    assert "left" not in shown(steps, seconds)


def test_a_phase_that_comes_again_is_counted_again() -> None:
    clock, written = FakeClock(), []
    with PhaseDisplay(written.append, clock=clock.now) as display:
        for seconds in (3, 4):
            count = Count("validation", "crops", 2, display.follow)
            clock.time += seconds
            count.finish()
        Count("nothing", "images", 0, display.follow)
    assert written == ["validation: 2 crops in 3.0 s", "validation: 2 crops in 4.0 s"]


def test_bars_are_for_terminals() -> None:
    assert "0/4" in shown(4, 1, terminal=True)
    assert "training: 4 steps in 103.0 s" in shown(4, 1, terminal=True)
    assert "0/4" not in shown(4, 1)


@pytest.mark.parametrize(
    ("seconds", "text"), [(41.4, "41 s"), (89, "89 s"), (95, "2 min"), (5380, "1 h 30 min"), (36000, "10 h 0 min")]
)
def test_durations_have_few_digits(seconds: float, text: str) -> None:
    assert duration(seconds) == text
