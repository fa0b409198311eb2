"""Single-stream and offline with a detector whose times are known, and RAPL's counters in a tree like the kernel's."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from fakes.fake_time import FakeClock, FakeDetector, subject

from mdmf_deploy.tasks.benchmark.results import Settings
from mdmf_deploy.tasks.benchmark.scenarios import (
    EnergyReading,
    joules,
    measure_offline,
    measure_single_stream,
    read_energy,
)

PATHS = [Path("a.jpg"), Path("b.jpg"), Path("c.jpg")]
SETTINGS = Settings(batch_size=8, seconds=8.0, p99_bound=100.0)


def zone(root: Path, name: str, label: str, energy: int | str, turn: int = 1_000_000) -> Path:
    folder = root / name
    folder.mkdir(parents=True)
    (folder / "name").write_text(f"{label}\n")
    (folder / "energy_uj").write_text(f"{energy}\n")
    (folder / "max_energy_range_uj").write_text(f"{turn}\n")
    return folder


def test_single_stream_gives_one_image_at_a_time_and_its_latency() -> None:
    clock = FakeClock()
    fast, slow = FakeDetector(clock, 0.010), FakeDetector(clock, 0.020)
    first, second = measure_single_stream(
        [subject(fast), subject(slow, "fake int8")], PATHS, SETTINGS, clock, pace=0.020
    )
    assert first.result.latency.p50 == pytest.approx(10)
    assert first.result.latency.max == pytest.approx(10)
    assert second.result.latency.p95 == pytest.approx(20)
    assert first.result.settled
    assert first.rates == pytest.approx([100] * 5)
    assert {count for _, count in fast.log} == {1}
    # A run takes an eighth of the time for one, of the slower; the warm-up run is not counted.
    assert len(slow.log) == 6 * 50
    assert second.result.latency.count == 5 * 50


def test_offline_gives_all_images_at_once_and_its_rate() -> None:
    clock, log = FakeClock(), []
    a, b = FakeDetector(clock, 0.010, name="a", log=log), FakeDetector(clock, 0.005, name="b", log=log)
    first, second = measure_offline([subject(a), subject(b)], PATHS, SETTINGS, clock, 0.010, Path("/nowhere"))
    assert first.result.images_per_second.median == pytest.approx(100)
    assert second.rates == pytest.approx([200] * 5)
    # 16 batches of 8 after two of them as a warm-up.
    assert log == [("a", 16), ("b", 16), *[("a", 128), ("b", 128)] * 5]
    assert first.result.joules is None
    assert "no RAPL counter" in first.result.energy


def test_offline_divides_the_energy_of_a_run_among_its_images(tmp_path: Path) -> None:
    counter = zone(tmp_path, "intel-rapl:0", "package-0", 0, 10**9) / "energy_uj"

    class Burning(FakeDetector):
        def stream(self, sources: Iterable[Path]) -> Iterator[None]:
            counter.write_text(str(int(counter.read_text()) + 64_000_000))
            return super().stream(sources)

    clock = FakeClock()
    (rated,) = measure_offline([subject(Burning(clock, 0.010))], PATHS, SETTINGS, clock, 0.010, tmp_path)
    assert rated.result.joules == pytest.approx(0.5)
    assert "idle power" in rated.result.energy


def test_only_packages_count_not_their_parts_nor_the_board(tmp_path: Path) -> None:
    zone(tmp_path, "intel-rapl:0", "package-0", 100)
    zone(tmp_path, "intel-rapl:0:0", "core", 40)
    zone(tmp_path, "intel-rapl:1", "package-1", 200)
    zone(tmp_path, "intel-rapl:2", "psys", 900)
    (tmp_path / "intel-rapl").mkdir()
    assert read_energy(tmp_path) == EnergyReading({"intel-rapl:0": (100, 1_000_000), "intel-rapl:1": (200, 1_000_000)})


def test_energy_is_the_sum_over_packages_in_joules(tmp_path: Path) -> None:
    before = EnergyReading({"a": (100, 10**9), "b": (500, 10**9)})
    assert joules(before, EnergyReading({"a": (2_000_100, 10**9), "b": (1_000_500, 10**9)})) == pytest.approx(3.0)


def test_a_counter_may_wrap_around_once() -> None:
    before, after = EnergyReading({"a": (900_000, 1_000_000)}), EnergyReading({"a": (400_000, 1_000_000)})
    assert joules(before, after) == pytest.approx(0.5)


def test_the_reason_for_no_reading_is_returned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "no RAPL counter" in str(read_energy(tmp_path / "nowhere"))
    zone(tmp_path, "intel-rapl:0", "package-0", "soup")
    assert "cannot be read" in str(read_energy(tmp_path))

    def refuse(*_: object) -> str:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_text", refuse)
    reason = read_energy(tmp_path)
    assert isinstance(reason, str)
    assert "no permission to read" in reason
    assert "sudo chmod a+r" in reason
