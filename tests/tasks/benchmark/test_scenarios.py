"""The scenarios with a detector whose times are known."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec
import pytest
from fakes.fake_time import FakeClock, FakeDetector, subject

from mdmf_deploy.tasks.benchmark import offline, server, single_stream
from mdmf_deploy.tasks.benchmark.results import Settings
from mdmf_deploy.tasks.benchmark.server import Served, serve

PATHS = [Path("a.jpg"), Path("b.jpg"), Path("c.jpg")]
SETTINGS = Settings(batch_size=8, seconds=8.0, p99_bound=100.0)


def changed(**changes: object) -> Settings:
    return msgspec.structs.replace(SETTINGS, **changes)


def test_single_stream_gives_one_image_at_a_time_and_its_latency() -> None:
    clock = FakeClock()
    fast, slow = FakeDetector(clock, 0.010), FakeDetector(clock, 0.020)
    first, second = single_stream.measure(
        [subject(fast), subject(slow, "fake int8")], PATHS, SETTINGS, clock, pace=0.020
    )
    assert first.result.latency.p50 == pytest.approx(10)
    assert first.result.latency.max == pytest.approx(10)
    assert second.result.latency.p99 == pytest.approx(20)
    assert first.result.settled
    assert first.rates == pytest.approx([100] * 5)
    assert {count for _, count in fast.log} == {1}
    # A run takes an eighth of the time for one, of the slower; the warm-up run is not counted.
    assert len(slow.log) == 6 * 50
    assert second.result.latency.count == 5 * 50


def test_offline_gives_all_images_at_once_and_its_rate() -> None:
    clock, log = FakeClock(), []
    a, b = FakeDetector(clock, 0.010, name="a", log=log), FakeDetector(clock, 0.005, name="b", log=log)
    first, second = offline.measure([subject(a), subject(b)], PATHS, SETTINGS, clock, 0.010, Path("/nowhere"))
    assert first.result.images_per_second.median == pytest.approx(100)
    assert second.rates == pytest.approx([200] * 5)
    # 16 batches of 8 after two of them as a warm-up.
    assert log == [("a", 16), ("b", 16), *[("a", 128), ("b", 128)] * 5]
    assert first.result.joules is None
    assert "no RAPL counter" in first.result.energy


def test_offline_divides_the_energy_of_a_run_among_its_images(tmp_path: Path) -> None:
    zone = tmp_path / "intel-rapl:0"
    zone.mkdir()
    for name, text in {"name": "package-0", "energy_uj": "0", "max_energy_range_uj": "1000000000"}.items():
        (zone / name).write_text(text)

    class Burning(FakeDetector):
        def stream(self, sources: Iterable[Path]) -> Iterator[None]:
            (zone / "energy_uj").write_text(str(int((zone / "energy_uj").read_text()) + 64_000_000))
            return super().stream(sources)

    clock = FakeClock()
    (rated,) = offline.measure([subject(Burning(clock, 0.010))], PATHS, SETTINGS, clock, 0.010, tmp_path)
    assert rated.result.joules == pytest.approx(0.5)
    assert "idle power" in rated.result.energy


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
    lengths, seeds = [], []
    nothing = Served((0.01,), (), 1)

    def confirm(self: object, rate: float, seconds: float) -> tuple[bool, Served, int]:
        lengths.append(seconds)
        return rate < 44, nothing, 1

    monkeypatch.setattr(server, "highest_rate", lambda *_: 50.0)
    monkeypatch.setattr(server._Session, "_try", confirm)
    clock = FakeClock()
    found = server.measure(subject(FakeDetector(clock, 0.01)), PATHS, SETTINGS, clock, pace=0.01)
    assert found.rate == pytest.approx(50 * 0.8)
    assert lengths == [4.0] * 3
    monkeypatch.undo()
    draw = server.poisson
    monkeypatch.setattr(server, "poisson", lambda rate, seconds, seed: seeds.append(seed) or draw(rate, seconds, seed))
    server.measure(subject(FakeDetector(clock, 0.01)), PATHS, changed(seed=5), clock, pace=0.01)
    assert seeds == list(range(5, 5 + len(seeds)))  # no two trials see the same arrivals


def test_batching_raises_that_rate() -> None:
    def best(batch_size: int) -> float:
        clock = FakeClock()
        detector = FakeDetector(clock, 0.002, a_batch=0.008)
        settings = changed(seconds=60.0, batch_size=batch_size)
        return server.measure(subject(detector), PATHS, settings, clock, pace=0.003).rate or 0.0

    assert best(8) > 2 * best(1)


def test_a_search_that_begins_far_too_low_still_finds_it_or_says_that_it_did_not() -> None:
    clock = FakeClock()
    settings = changed(seconds=600.0, batch_size=1)
    found = server.measure(subject(FakeDetector(clock, 0.010)), PATHS, settings, clock, pace=0.060)
    assert found.rate is not None
    assert 65 < found.rate < 90
    assert "highest rate tried" not in found.note
    found = server.measure(subject(FakeDetector(clock, 0.001)), PATHS, settings, clock, pace=0.100)
    assert found.rate == pytest.approx(1.25 / 0.100 * 8)
    assert "the highest rate tried, so a higher one may hold as well" in found.note


def test_a_bound_that_an_image_alone_misses_is_said_without_a_search() -> None:
    clock = FakeClock()
    found = server.measure(subject(FakeDetector(clock, 0.3)), PATHS, SETTINGS, clock, pace=0.3)
    assert (found.rate, found.latency, found.trials) == (None, None, ())
    assert "an image alone takes 300 ms" in found.note


def test_a_bound_that_holds_at_no_rate_is_said_after_a_few_trials() -> None:
    clock = FakeClock()

    class Stuttering(FakeDetector):
        """Fast, but every tenth call takes a second."""

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


def test_a_rate_beyond_the_machine_is_given_up_and_said() -> None:
    clock = FakeClock()
    found = server.measure(subject(FakeDetector(clock, 1.0)), PATHS, changed(rate=100.0), clock, pace=1.0)
    assert found.unserved > 700
    assert "too high" in found.note
    assert found.latency is not None
    assert found.latency.count == found.requests  # those left waiting have waited, too
    assert found.latency.p50 > 1000
    assert clock.now() < 40


def test_arrivals_do_not_wait_for_the_server() -> None:
    """No coordinated omission: one stall makes everyone who came meanwhile late, not one request alone."""
    clock = FakeClock()
    calls = iter(range(1000))

    def work(batch: range) -> None:
        clock.time += 1.0 if next(calls) == 0 else 0.001

    served = serve([0.01 * n for n in range(100)], work, clock, batch_size=1)
    assert sum(latency > 0.5 for latency in served.latencies) > 40
