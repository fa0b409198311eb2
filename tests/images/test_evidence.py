"""Texture is evidence. Flats, gradients, noise and text are none."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.featureless import KINDS, featureless
from helpers.synthetic_photos import synthetic_photo

from mdmf_deploy.errors import ShapeMismatch
from mdmf_deploy.images.crops import center_crop
from mdmf_deploy.images.decode import decode
from mdmf_deploy.images.evidence import evidence

SIDE = 112


def photo(seed: int) -> np.ndarray:
    return synthetic_photo(seed, SIDE, SIDE)[None]


def test_featureless_images_hold_little() -> None:
    kinds = set()
    for name, data in featureless(21):
        kinds.add(name.partition("-")[0])
        pixels = decode(data).pixels
        for crop in (56, 224):
            assert evidence(center_crop(pixels, crop).pixels) < 0.25, (name, crop)
    assert kinds == set(KINDS)


def test_photographs_hold_much() -> None:
    assert min(evidence(photo(seed)) for seed in range(8)) > 0.75


def test_it_is_a_share_of_patches() -> None:
    crop = photo(1)
    crop[:, :42] = 128
    assert evidence(crop) == pytest.approx(5 / 8, abs=0.05)
    assert evidence(crop[:, :42, :42]) == 0.0
    assert evidence(crop[:, 42:56, 42:56]) in (0.0, 1.0)


def test_crops_are_averaged() -> None:
    crops = np.concatenate([photo(1), photo(2), np.zeros_like(photo(1))])
    assert evidence(crops) == pytest.approx(np.mean([evidence(crop[None]) for crop in crops]), abs=1e-15)


@pytest.mark.parametrize("seed", range(3))
def test_mirroring_and_turning_change_nothing(seed: int) -> None:
    crop = photo(seed)
    for turned in (crop[:, ::-1], crop[:, :, ::-1], crop.transpose(0, 2, 1, 3)):
        assert evidence(turned) == evidence(crop)


@pytest.mark.parametrize(("spread", "share"), [(4, 0.0), (20, 1.0)])
def test_noise_below_that_of_codecs_and_sensors_is_no_texture(spread: float, share: float) -> None:
    noise = np.random.default_rng(0).normal(128, spread, (1, SIDE, SIDE, 1))
    assert evidence(np.rint(np.repeat(noise, 3, axis=3)).astype(np.uint8)) == share


def test_pixels_beyond_the_last_whole_patch_are_ignored() -> None:
    wide = synthetic_photo(3, SIDE + 11, SIDE + 11)[None]
    assert evidence(wide) == evidence(wide[:, 5:-6, 5:-6]) != evidence(wide[:, :-11, :-11])


@pytest.mark.parametrize(("channel", "spread"), [(0, 60), (1, 30), (2, 127)])
def test_every_channel_counts_by_its_luminance(channel: int, spread: int) -> None:
    crop = np.full((1, SIDE, SIDE, 3), 128, np.uint8)
    coarse = np.random.default_rng(0).integers(128 - spread, 128 + spread, (SIDE // 2, SIDE // 2))
    crop[..., channel] = coarse.repeat(2, 0).repeat(2, 1)
    assert evidence(crop) > 0.6


def test_hard_edges_without_a_common_paper_are_texture() -> None:
    """A mosaic of two tones a patch, as in drawings, has no paper."""
    generator = np.random.default_rng(1)
    tones = generator.permutation(64).reshape(8, 8).repeat(14, 0).repeat(14, 1) * 3
    tones[(np.arange(SIDE) // 7 % 2 == 1)] += 40
    assert evidence(np.repeat(tones.astype(np.uint8)[None, ..., None], 3, axis=3)) > 0.5


@pytest.mark.parametrize("text_on", [255, 0])
def test_the_light_on_a_page_does_not_make_it_texture(text_on: int) -> None:
    """Strokes of one ink on one paper, lit from the side: without taking the light off, no level is the commonest."""
    rows, columns = np.mgrid[:SIDE, :SIDE]
    strokes = (rows % 7 < 3) & ((columns + rows // 7 * 3) % 5 < 3)
    levels = np.where(strokes, 255 - text_on, text_on) * 0.5 + 30 + columns * 0.8
    assert evidence(np.repeat(levels.astype(np.uint8)[None, ..., None], 3, axis=3)) == 0.0


@pytest.mark.parametrize(
    "crops",
    [
        np.zeros((1, 14, 14, 3), np.float32),
        np.zeros((14, 14, 3), np.uint8),
        np.zeros((1, 13, 13, 3), np.uint8),
        np.zeros((1, 28, 14, 3), np.uint8),
        np.zeros((0, 14, 14, 3), np.uint8),
    ],
)
def test_other_arrays_are_refused(crops: np.ndarray) -> None:
    with pytest.raises(ShapeMismatch, match="crops must be"):
        evidence(crops)
