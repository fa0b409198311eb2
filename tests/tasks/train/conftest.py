"""Small real and "generated" folders, the latter with a checkerboard that any training should find."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest
from helpers.synthetic_photos import synthetic_photo
from PIL import Image

from mdmf_deploy.bundle.recipe import Autoencoder, Pairs, Recipe, Split, Training


@pytest.fixture(scope="session")
def training_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """real/ with 24 images, generated/{checker,other}/ with 24 and 12; all distinct, 112 x 104 pixels."""
    folder = tmp_path_factory.mktemp("training")
    for name, count, first_seed in (("real", 24, 1000), ("generated/checker", 24, 2000), ("generated/other", 12, 3000)):
        (folder / name).mkdir(parents=True)
        for index in range(count):
            pixels = synthetic_photo(first_seed + index, 112, 104).astype(np.int16)
            if name != "real":
                pixels[::2, ::2] += 12
            image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
            image.save(folder / name / f"{index:02}.png")
    return folder


@pytest.fixture(scope="session")
def training_recipe(tiny_recipe: Recipe) -> Recipe:
    """Eight steps of four images a class; one autoencoder of three steps; "other" held out."""
    plan = Training(
        steps=8,
        batch=4,
        warmup=2,
        patch_cross_entropy=0.5,
        average=0.5,
        split=Split(train=0.6, validation=0.2, held_out=("other",)),
        pairs=Pairs(autoencoders=(Autoencoder(factor=2, upsampler="nearest", channels=4, width=8, steps=3),), views=2),
    )
    return msgspec.structs.replace(tiny_recipe, training=plan)
