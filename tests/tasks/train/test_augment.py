"""The simulated JPEG is Pillow's, draws are reproducible, and a crop depends on its own draws alone."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.synthetic_photos import synthetic_photo
from PIL import Image

from mdmf_deploy.tasks.train.augment import MARGIN, Canvases, Degradation, Draws, augment, jpeg

EXAMPLES = Path(__file__).parents[3] / "examples" / "photographs"
NOTHING = Degradation(rescaled=0, blurred=0, noisy=0, jpeg=0, jpeg_twice=0)


def photograph(seed: int, width: int = 96, height: int = 80) -> torch.Tensor:
    return torch.from_numpy(synthetic_photo(seed, width, height).copy())


@pytest.mark.parametrize("subsampled", [False, True])
@pytest.mark.parametrize("quality", [40, 75, 95])
def test_the_simulated_jpeg_is_within_a_level_of_pillows(quality: int, subsampled: bool) -> None:
    with Image.open(EXAMPLES / "cat.jpg") as cat:
        pixels = torch.from_numpy(np.array(cat.crop((150, 100, 301, 203))))
    buffer = io.BytesIO()
    Image.fromarray(pixels.numpy()).save(
        buffer, "JPEG", quality=quality, subsampling="4:2:0" if subsampled else "4:4:4"
    )
    theirs = np.asarray(Image.open(buffer), np.float32)
    ours = jpeg(pixels.permute(2, 0, 1)[None].float(), torch.tensor([float(quality)]), subsampled)[0]
    coded = ours.permute(1, 2, 0).numpy()
    assert np.abs(coded - theirs).mean() < 1
    assert np.abs(coded - theirs).mean() < np.abs(pixels.numpy() - theirs).mean() / 2


def test_draws_depend_on_their_generator_alone() -> None:
    first, again, other = (Draws.sample(6, Degradation(), torch.Generator().manual_seed(seed)) for seed in (3, 3, 4))
    assert torch.equal(first.where, again.where)
    assert torch.equal(first.qualities, again.qualities)
    assert (first.scale, first.shifts) == (again.scale, again.shifts)
    assert not torch.equal(first.where, other.where)


def test_the_same_draws_treat_images_alike() -> None:
    canvases = Canvases.of([photograph(1), photograph(1), photograph(2)], 96)
    everything = Degradation(rescaled=1, blurred=1, noisy=1, jpeg=1, jpeg_twice=1)
    draws = Draws.sample(2, everything, torch.Generator().manual_seed(0)).take(torch.tensor([0, 0, 1]))
    grain = torch.randn(2, 3, 28 + MARGIN, 28 + MARGIN)[[0, 0, 1]]
    made = augment(canvases, torch.arange(3), draws, 28, grain)
    assert made.shape == (3, 3, 28, 28)
    assert torch.equal(made[0], made[1])
    assert torch.equal(made, made.round().clamp(0, 255))
    alone = augment(canvases, torch.tensor([2]), draws.take(torch.tensor([2])), 28, grain[2:])
    torch.testing.assert_close(alone[0], made[2], atol=1.0, rtol=0)


def test_without_degradations_a_crop_is_a_window_of_its_image() -> None:
    image = photograph(5)
    draws = Draws.sample(1, NOTHING, torch.Generator().manual_seed(1))
    crop = augment(Canvases.of([image], 96), torch.tensor([0]), draws, 28)[0].permute(1, 2, 0).byte()
    windows = image.unfold(0, 28, 1).unfold(1, 28, 1).permute(0, 1, 3, 4, 2)
    found = [(windows == turned).flatten(2).all(2).any() for turned in (crop, crop.flip(1))]
    assert any(found)


def test_an_image_smaller_than_its_window_is_mirrored() -> None:
    small = photograph(6, 20, 9)
    draws = Draws.sample(1, NOTHING, torch.Generator().manual_seed(1))
    crop = augment(Canvases.of([small], 96), torch.tensor([0]), draws, 28)[0]
    levels = {tuple(pixel) for pixel in small.reshape(-1, 3).tolist()}
    assert {tuple(map(int, pixel)) for pixel in crop.permute(1, 2, 0).reshape(-1, 3).tolist()} <= levels
