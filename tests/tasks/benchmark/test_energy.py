"""RAPL's counters, in a tree of files like the kernel's."""

from __future__ import annotations

from pathlib import Path

import pytest

from mdmf_deploy.tasks.benchmark.energy import Reading, joules, read


def zone(root: Path, name: str, label: str, energy: int | str, turn: int = 1_000_000) -> Path:
    folder = root / name
    folder.mkdir(parents=True)
    (folder / "name").write_text(f"{label}\n")
    (folder / "energy_uj").write_text(f"{energy}\n")
    (folder / "max_energy_range_uj").write_text(f"{turn}\n")
    return folder


def test_packages_count_and_their_parts_and_the_board_do_not(tmp_path: Path) -> None:
    zone(tmp_path, "intel-rapl:0", "package-0", 100)
    zone(tmp_path, "intel-rapl:0:0", "core", 40)
    zone(tmp_path, "intel-rapl:1", "package-1", 200)
    zone(tmp_path, "intel-rapl:2", "psys", 900)
    (tmp_path / "intel-rapl").mkdir()
    assert read(tmp_path) == Reading({"intel-rapl:0": (100, 1_000_000), "intel-rapl:1": (200, 1_000_000)})


def test_energy_is_the_sum_over_packages_in_joules(tmp_path: Path) -> None:
    before = Reading({"a": (100, 10**9), "b": (500, 10**9)})
    assert joules(before, Reading({"a": (2_000_100, 10**9), "b": (1_000_500, 10**9)})) == pytest.approx(3.0)


def test_a_counter_that_wrapped_around_has_gone_on() -> None:
    before, after = Reading({"a": (900_000, 1_000_000)}), Reading({"a": (400_000, 1_000_000)})
    assert joules(before, after) == pytest.approx(0.5)


def test_why_there_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "no RAPL counter" in str(read(tmp_path / "nowhere"))
    zone(tmp_path, "intel-rapl:0", "package-0", "soup")
    assert "cannot be read" in str(read(tmp_path))

    def refuse(*_: object) -> str:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_text", refuse)
    told = read(tmp_path)
    assert isinstance(told, str)
    assert "no permission to read" in told
    assert "sudo chmod a+r" in told
