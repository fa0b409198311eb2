"""Splits never leak, and both halves of a pair are cut alike."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers.training_data import generated, paths
from hypothesis import given
from hypothesis import strategies as st

from mdmf_deploy.bundle.recipe import Split
from mdmf_deploy.errors import UsageError
from mdmf_deploy.tasks.train.data import PixelCache, Sample, Window, collect, spread

SPLIT = Split(train=0.6, validation=0.2)


def test_copies_count_once_and_never_straddle_parts(training_folder: Path, tmp_path: Path) -> None:
    real = paths(training_folder / "real")
    copies = [Path(shutil.copy(path, tmp_path / f"copy-{path.name}")) for path in real]
    dataset = collect([*real, *copies], generated(training_folder), SPLIT)
    alone = collect(real, generated(training_folder), SPLIT)
    assert dataset.hash() == alone.hash()
    backwards = collect(real[::-1], generated(training_folder), SPLIT)
    assert set(map(part_and_hash, backwards.samples)) == set(map(part_and_hash, alone.samples))


def part_and_hash(sample: Sample) -> tuple[str, str]:
    return sample.part, sample.sha256


def test_an_unreadable_file_is_left_out_and_said(training_folder: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"\x89PNG\r\n\x1a\nnot much more")
    dataset = collect([*paths(training_folder / "real"), broken], generated(training_folder), SPLIT)
    assert [path for path, _ in dataset.unreadable] == [broken]


def test_a_class_that_comes_out_empty_is_an_error(training_folder: Path) -> None:
    with pytest.raises(UsageError, match="generated images in the train part"):
        collect(paths(training_folder / "real"), {}, Split(train=0.6, validation=0.2))


@given(height=st.integers(1, 60), width=st.integers(1, 60), size=st.integers(1, 40), seed=st.integers(0, 1000))
def test_a_window_cuts_the_asked_size_out_of_anything(height: int, width: int, size: int, seed: int) -> None:
    pixels = np.arange(height * width * 3, dtype=np.uint8).reshape(height, width, 3)
    assert Window.draw(np.random.default_rng(seed)).cut(pixels, size).shape == (size, size, 3)


def test_windows_reach_every_corner() -> None:
    pixels = np.zeros((10, 10, 3), np.uint8)
    pixels[..., 0], pixels[..., 1] = np.meshgrid(np.arange(10), np.arange(10))
    rng = np.random.default_rng(0)
    cuts = [Window.draw(rng).cut(pixels, 8) for _ in range(200)]
    assert {(int(c[0, :, 0].min()), int(c[0, 0, 1])) for c in cuts} == {(x, y) for x in range(3) for y in range(3)}


@given(total=st.integers(0, 300), count=st.integers(1, 100))
def test_spread_is_even(total: int, count: int) -> None:
    samples = [Sample(Path(str(i)), str(i), None, "train") for i in range(total)]
    chosen = [int(sample.sha256) for sample in spread(samples, count)]
    assert len(chosen) == min(total, count)
    steps = np.diff([*chosen, total])
    assert len(chosen) == 0 or steps.max() - steps.min() <= 1


def test_the_pixel_cache_keeps_to_its_budget(training_folder: Path) -> None:
    first, second = paths(training_folder / "real")[:2]
    cache = PixelCache(budget=112 * 104 * 3 + 10)
    assert cache(first) is cache(first)
    assert cache(second) is not cache(second)
    np.testing.assert_array_equal(cache(second), cache(second))
