"""Batches depend on seed and step alone, keep pairs aligned, and never hold a photograph twice."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from mdmf_deploy.bundle.recipe import Preprocessing
from mdmf_deploy.tasks.train.data import CropBatches, FeatureBatches, Images, Photograph

SIZE = 28


class Numbered:
    """In place of the pixel cache: every file is a grey image of its own number, with a gradient to tell windows by."""

    def __call__(self, path: Path) -> NDArray[np.uint8]:
        ramp = np.add.outer(np.arange(60), np.arange(60)).astype(np.uint8) // 2
        return np.stack([np.full((60, 60), int(path.stem), np.uint8), ramp, ramp.T[::-1]], axis=-1)


def images(reconstructions: bool = True) -> Images:
    """10 photographs, number 10 i: views 10 i + 1 and 2, reconstructions 10 i + 3 and 4; two generators, 200 and on."""
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
    return Images(photographs, {"small": small, "large": large})


def batches(share: float = 0.5, reconstructions: bool = True, seed: int = 0) -> CropBatches:
    plain = Preprocessing(crop=SIZE, mean=(0, 0, 0), std=(1 / 255, 1 / 255, 1 / 255))
    return CropBatches(images(reconstructions), plain, 8, share, seed, Numbered())  # type: ignore[arg-type]


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
def test_pairs_are_aligned_and_no_photograph_comes_twice(share: float) -> None:
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


def test_features_come_from_one_crop_of_distinct_images() -> None:
    real = np.arange(6 * 3, dtype=np.float16).reshape(6, 3, 1, 1)
    make = FeatureBatches(real, -real, batch=6, seed=0)
    batch = make(0)
    assert sorted(int(value) // 3 for value in batch.real.flatten()) == list(range(6))
    assert batch.generated.max() <= 0
    assert len({float(value) for step in range(20) for value in make(step).real.flatten()}) == 18
