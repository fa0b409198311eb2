"""Aligned pairs: reconstructions of the right size, and the same treatment for both halves."""

from __future__ import annotations

import io
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from helpers.synthetic_photos import synthetic_photo
from helpers.training_data import generated, paths
from PIL import Image

from mdmf_deploy.bundle.recipe import Autoencoder, Pairs, Recipe
from mdmf_deploy.errors import UsageError
from mdmf_deploy.tasks.train.autoencoders import AutoencoderNet, autoencoder_name, reconstruct, train_autoencoder
from mdmf_deploy.tasks.train.data import collect
from mdmf_deploy.tasks.train.pairs import Treatment, Views, prepare_images, treat

UPSAMPLERS = ("nearest", "bilinear", "transposed", "pixelshuffle")
SHA = "3f" * 32


@pytest.mark.parametrize("upsampler", UPSAMPLERS)
@pytest.mark.parametrize("factor", [2, 4])
def test_a_reconstruction_has_its_images_size_whatever_the_factor(factor: int, upsampler: str) -> None:
    net = AutoencoderNet(Autoencoder(factor=factor, upsampler=upsampler, channels=4, width=4))  # type: ignore[arg-type]
    image = synthetic_photo(1, 51, 37)
    reconstruction = reconstruct(net, image, factor)
    assert reconstruction.shape == image.shape
    assert reconstruction.dtype == np.uint8


def test_a_factor_that_is_no_power_of_two_is_refused() -> None:
    with pytest.raises(ValueError, match="power of two"):
        Autoencoder(factor=3, upsampler="nearest")


def test_photographs_too_small_to_train_on_are_refused(tmp_path: Path) -> None:
    autoencoder = Autoencoder(factor=2, upsampler="nearest", channels=4, width=4, steps=1)
    with pytest.raises(UsageError, match="at least 96 x 96"):
        train_autoencoder(autoencoder, [synthetic_photo(1, 95, 200)], tmp_path / "a.safetensors")


def test_training_lowers_the_error_and_is_kept(tmp_path: Path) -> None:
    images = [synthetic_photo(seed, 112, 104) for seed in range(4)]
    untrained = Autoencoder(factor=2, upsampler="nearest", channels=8, width=8, steps=1)
    trained = Autoencoder(factor=2, upsampler="nearest", channels=8, width=8, steps=30)
    _, before = train_autoencoder(untrained, images, tmp_path / "before.safetensors")
    net, after = train_autoencoder(trained, images, tmp_path / "after.safetensors")
    assert after > before + 1
    again, psnr = train_autoencoder(trained, [], tmp_path / "after.safetensors")
    assert psnr == pytest.approx(after)
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), again.parameters(), strict=True))


def test_both_halves_of_a_pair_are_treated_alike(tmp_path: Path) -> None:
    autoencoder = Autoencoder(factor=2, upsampler="nearest", channels=4, width=4)
    writer = Views(Pairs(autoencoders=(autoencoder,), views=4), crop=224, seed=0)
    image = synthetic_photo(5, 300, 280)
    views = writer.write(image, SHA, tmp_path)
    halves = writer.write_reconstructions(image, SHA, [AutoencoderNet(autoencoder)], tmp_path)
    assert len(views) == len(halves) == 4
    for real, reconstructed in zip(views, halves, strict=True):
        with Image.open(real) as a, Image.open(reconstructed) as b:
            assert a.size == b.size
            assert a.quantization == b.quantization  # type: ignore[attr-defined]
        assert real.read_bytes() != reconstructed.read_bytes()
        assert autoencoder_name(autoencoder) in reconstructed.name


def test_treatments_depend_on_the_image_alone_and_never_shrink_below_the_crop() -> None:
    views = Views(Pairs(views=6, min_scale=0.2, jpeg_quality=(70, 71)), crop=224, seed=0)
    drawn = views.treatments(SHA, (448, 900))
    assert drawn == views.treatments(SHA, (448, 900))
    assert drawn != views.treatments("4" + SHA[1:], (448, 900))
    assert all(0.5 <= t.scale <= 1 and t.quality in (70, 71) for t in drawn)
    assert any(t.scale < 1 for t in drawn)
    assert any(t.scale == 1 for t in drawn)
    assert all(t.scale == 1 for t in views.treatments(SHA, (100, 100)))


def test_a_treatment_is_a_jpeg_of_the_asked_scale() -> None:
    image = Image.open(io.BytesIO(treat(synthetic_photo(6, 200, 100), Treatment(0.5, 80))))
    assert (image.format, image.size) == ("JPEG", (100, 50))


def test_without_views_training_uses_the_originals_alone(
    training_folder: Path, training_recipe: Recipe, tmp_path: Path
) -> None:
    training = msgspec.structs.replace(training_recipe.training, pairs=Pairs(views=0))
    recipe = msgspec.structs.replace(training_recipe, training=training)
    dataset = collect(paths(training_folder / "real"), generated(training_folder), training.split)
    images = prepare_images(recipe, dataset, tmp_path)
    assert [photograph.original for photograph in images.photographs] == [x.path for x in dataset.of("train", False)]
    assert not any(photograph.views or photograph.reconstructions for photograph in images.photographs)
    assert images.generated == {"checker": tuple((x.path,) for x in dataset.of("train", True))}
    assert not list(tmp_path.iterdir())
