"""The report recognises a machine that was busy during the measurements."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from fakes.fake_time import FakeClock

from mdmf_deploy.tasks.benchmark.noise import Noise, Observation, judge, observe

QUIET = Observation(load=0.1, busy=500, stolen=0, ticks=1000, switches=10, cpu=1.0, with_children=1.0)


def after(**changes: float | None) -> Observation:
    """Return counters after 20 s on one core, of which this process took 10 s and its children 2 s."""
    values = {"load": 2.0, "busy": 1700, "stolen": 0, "ticks": 3000, "switches": 30, "cpu": 11.0, "with_children": 13.0}
    return Observation(**(values | changes))  # type: ignore[arg-type]


def judged(
    before: Observation = QUIET, cores: int = 2, unsettled: tuple[str, ...] = (), **changes: float | None
) -> Noise:
    return judge(before, after(**changes), cores, unsettled, per_second=100)


def test_a_quiet_machine_has_no_warning_though_its_own_load_rose() -> None:
    noise = judged()
    assert noise.warnings == ()
    assert (noise.load_before, noise.others, noise.steal, noise.forced_off) == (0.1, 0.0, 0.0, 2.0)


@pytest.mark.parametrize(
    ("noise", "text"),
    [
        (judged(replace(QUIET, load=1.5)), "load average 1.50 on 2 cores"),
        (judged(busy=2100), "other programs took 20% of the machine's time"),
        (judged(stolen=60), "3.0% of the machine's time"),
        (judged(ticks=None, switches=2010), "200 times per second"),
        (judged(unsettled=("onnxruntime fp32 offline",)), "onnxruntime fp32 offline"),
    ],
)
def test_each_kind_of_noise_gives_a_warning(noise: Noise, text: str) -> None:
    (warning,) = noise.warnings
    assert text in warning


def test_threads_of_its_own_that_compete_for_cores_are_no_noise() -> None:
    noise = judged(switches=20_010)
    assert noise.forced_off == 2000
    assert noise.warnings == ()


def test_the_same_load_is_little_on_many_cores() -> None:
    assert judged(replace(QUIET, load=1.5), cores=32).warnings == ()


def test_counters_are_read_from_proc(tmp_path: Path) -> None:
    (tmp_path / "stat").write_text("cpu  100 5 50 800 10 0 5 30 7 7\ncpu0 1 1 1 1 1 1 1 1 0 0\n")
    (tmp_path / "loadavg").write_text("0.75 0.50 0.25 1/100 999\n")
    seen = observe(FakeClock(), tmp_path)
    assert (seen.load, seen.busy, seen.stolen, seen.ticks) == (0.75, 160, 30, 1000)


def test_counters_that_the_system_lacks_are_none(tmp_path: Path) -> None:
    (tmp_path / "stat").write_text("cpu nothing\n")
    seen = observe(FakeClock(), tmp_path)
    assert (seen.busy, seen.stolen, seen.ticks) == (None, None, None)
    silent = Observation(None, None, None, None, None, 0.0, 0.0)
    noise = judge(silent, silent, 2, (), 100)
    assert (noise.load_before, noise.others, noise.steal, noise.forced_off, noise.warnings) == (*[None] * 4, ())
