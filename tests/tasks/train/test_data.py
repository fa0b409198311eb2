"""Splits never leak, pairs stay aligned, and a batch depends on seed and step alone."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.training_data import generated, paths
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from mdmf_deploy.bundle.recipe import Pairs, Preprocessing, Split, Training
from mdmf_deploy.errors import UsageError
from mdmf_deploy.tasks.train.data import (
    CropBatches,
    LabelledImage,
    Photograph,
    PixelCache,
    TrainingImages,
    Window,
    collect,
    spread,
)

SPLIT = Split(train=0.5, validation=0.4)
SIZE = 28


def test_copies_count_once_and_never_straddle_parts(training_folder: Path, tmp_path: Path) -> None:
    real = paths(training_folder / "real")
    copies = [Path(shutil.copy(path, tmp_path / f"copy-{path.name}")) for path in real]
    dataset = collect([*real, *copies], generated(training_folder), SPLIT)
    alone = collect(real, generated(training_folder), SPLIT)
    assert dataset.hash() == alone.hash()
    backwards = collect(real[::-1], generated(training_folder), SPLIT)
    assert set(map(part_and_hash, backwards.images)) == set(map(part_and_hash, alone.images))


def part_and_hash(image: LabelledImage) -> tuple[str, str]:
    return image.part, image.sha256


def test_an_unreadable_file_is_left_out_and_reported(training_folder: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"\x89PNG\r\n\x1a\nnot much more")
    dataset = collect([*paths(training_folder / "real"), broken], generated(training_folder), SPLIT)
    assert [path for path, _ in dataset.unreadable] == [broken]


def test_a_class_that_comes_out_empty_is_an_error(training_folder: Path) -> None:
    with pytest.raises(UsageError, match="generated images in the train part"):
        collect(paths(training_folder / "real"), {}, Split(train=0.5, validation=0.4))


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
    images = [LabelledImage(Path(str(i)), str(i), None, "train") for i in range(total)]
    chosen = [int(image.sha256) for image in spread(images, count)]
    assert len(chosen) == min(total, count)
    steps = np.diff([*chosen, total])
    assert len(chosen) == 0 or steps.max() - steps.min() <= 1


def test_the_pixel_cache_stays_within_its_budget(training_folder: Path) -> None:
    first, second = paths(training_folder / "real")[:2]
    cache = PixelCache(budget=112 * 104 * 3 + 10)
    assert cache(first) is cache(first)
    assert cache(second) is not cache(second)
    np.testing.assert_array_equal(cache(second), cache(second))


class Numbered:
    """Stands in for the pixel cache. Every file shows its own number, and a gradient that gives the window away."""

    def __call__(self, path: Path) -> NDArray[np.uint8]:
        ramp = np.add.outer(np.arange(60), np.arange(60)).astype(np.uint8) // 2
        return np.stack([np.full((60, 60), int(path.stem), np.uint8), ramp, ramp.T[::-1]], axis=-1)


def training_images(reconstructions: bool = True) -> TrainingImages:
    """Ten photographs and two generators, by number.

    Photograph 10 i has the views 10 i + 1 and 10 i + 2, and the reconstructions 10 i + 3 and 10 i + 4. The generated
    images are number 200 and up.
    """
    photographs = tuple(
        Photograph(
            Path(f"{10 * i}"),
            (Path(f"{10 * i + 1}"), Path(f"{10 * i + 2}")),
            (Path(f"{10 * i + 3}"), Path(f"{10 * i + 4}")) if reconstructions else (),
        )
        for i in range(10)
    )
    small = tuple((Path(f"{200 + i}"),) for i in range(2))
    large = tuple((Path(f"{210 + i}"),) for i in range(30))
    return TrainingImages(photographs, {"small": small, "large": large})


def batches(share: float = 0.5, reconstructions: bool = True, seed: int = 0) -> CropBatches:
    plain = Preprocessing(crop=SIZE, mean=(0, 0, 0), std=(1 / 255, 1 / 255, 1 / 255))
    training = Training(batch=8, seed=seed, pairs=Pairs(share=share))
    return CropBatches(training_images(reconstructions), plain, training, Numbered())  # type: ignore[arg-type]


def numbers(crops: torch.Tensor) -> list[int]:
    return [round(float(crop[0, 0, 0])) for crop in crops]


def test_a_batch_depends_on_seed_and_step_alone() -> None:
    first, again = batches(), batches()
    again(3)
    assert torch.equal(first(7).real, again(7).real)
    assert torch.equal(first(7).generated, again(7).generated)
    assert not torch.equal(first(7).real, first(8).real)
    assert not torch.equal(first(7).real, batches(seed=1)(7).real)


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 1.0])
def test_pairs_are_aligned_and_a_batch_never_repeats_a_photograph(share: float) -> None:
    make, pairs = batches(share), round(8 * share)
    for step in range(20):
        batch = make(step)
        real, generated = numbers(batch.real), numbers(batch.generated)
        assert len({number // 10 for number in real}) == len(real) == len(generated) == 8
        assert [number + 2 for number in real[:pairs]] == generated[:pairs]
        assert torch.equal(batch.real[:pairs, 1:], batch.generated[:pairs, 1:])  # one window, one flip
        assert all(number >= 200 for number in generated[pairs:])


def test_generators_take_turns_whatever_their_sizes() -> None:
    make = batches(share=0.25)
    small = sum(number < 210 for step in range(20) for number in numbers(make(step).generated) if number >= 200)
    assert small == 20 * 6 / 2


def test_without_reconstructions_there_are_no_pairs() -> None:
    assert all(number >= 200 for number in numbers(batches(reconstructions=False)(0).generated))
