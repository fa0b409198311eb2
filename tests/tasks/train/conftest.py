"""Small real and "generated" folders. The generated images carry a checkerboard that any training should find."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from helpers.one_thread import one_thread
from helpers.synthetic_photos import synthetic_photo
from PIL import Image
from safetensors.torch import save_file

from mdmf_deploy.bundle.recipe import BankGate, Recipe, Split, Training
from mdmf_deploy.model.architectures import ARCHITECTURES, Architecture
from mdmf_deploy.tasks.train.autoencoders import AutoencoderNet

_SMALL = Architecture(width=24, depth=4, heads=2, position_grid=4)


@pytest.fixture(scope="module", autouse=True)
def on_one_thread() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture(scope="module")
def small_model() -> Iterator[None]:
    """Let the recipes of these tests have a small backbone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ARCHITECTURES, "starter_vit14", _SMALL)
        yield


@pytest.fixture(autouse=True)
def unplotted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plot no history of a run that a test makes."""
    monkeypatch.setattr("mdmf_deploy.tasks.train.train.write_plot", lambda *_: None)


@pytest.fixture(scope="session")
def training_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with 16 images in real/, 16 in generated/checker/ and 4 in generated/other/, all distinct, 112 x 104."""
    folder = tmp_path_factory.mktemp("training")
    for name, count, first_seed in (("real", 16, 1000), ("generated/checker", 16, 2000), ("generated/other", 4, 3000)):
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
    """Six steps of four images per class. The generator "other" is held out. No detector is refused for its bank."""
    training = Training(
        steps=6,
        batch=4,
        warmup=2,
        patch_cross_entropy=0.5,
        dropout=0.1,
        average=0.5,
        split=Split(train=0.5, validation=0.4, held_out=("other",)),
        gate=BankGate(min_kernel=0.0, max_swapped_auroc=1.0),
    )
    return msgspec.structs.replace(tiny_recipe, training=training)


@pytest.fixture(scope="session")
def autoencoders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files of two random autoencoders: "plain", and "grouped" with group norms as .pth."""
    folder = tmp_path_factory.mktemp("autoencoders")
    torch.manual_seed(0)
    for name, grouped in (("plain", False), ("grouped", True)):
        net = AutoencoderNet(4, grouped)
        for part, module in (("encoder", net.encoder), ("decoder", net.decoder)):
            if grouped:
                torch.save(module.state_dict(), folder / f"{name}_{part}.pth")
            else:
                save_file(module.state_dict(), folder / f"{name}_{part}.safetensors")
    return folder
