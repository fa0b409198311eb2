"""DINOv2 against its definition: position embeddings, token order, and the shapes of every release."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import numpy as np
import pytest
import torch
from helpers.backbones import REGISTERS, TINY, randomised, reference

from mdmf_deploy.bundle.recipe import Backbone, Recipe
from mdmf_deploy.errors import RecipeError, ShapeMismatch
from mdmf_deploy.model.architectures import ARCHITECTURES, Architecture
from mdmf_deploy.model.dinov2 import DinoV2
from mdmf_deploy.model.layouts import official
from mdmf_deploy.model.pfs import MdmfModel


def cubic(x: np.ndarray, a: float) -> np.ndarray:
    """Return Keys' cubic convolution kernel at x."""
    x = np.abs(x)
    near = (a + 2) * x**3 - (a + 3) * x**2 + 1
    far = a * (x**3 - 5 * x**2 + 8 * x - 4)
    return np.where(x <= 1, near, np.where(x < 2, far, 0))


def plain_matrix(side: int, size: int, scale: float) -> np.ndarray:
    """Return the (size, side) resampling with four taps around (i + 0.5) / scale - 0.5.

    The border is repeated, and a = -0.75.
    """
    matrix = np.zeros((size, side))
    for i in range(size):
        centre = (i + 0.5) / scale - 0.5
        for tap in range(int(np.floor(centre)) - 1, int(np.floor(centre)) + 3):
            matrix[i, min(max(tap, 0), side - 1)] += cubic(np.array(centre - tap), -0.75)
    return matrix


def antialiased_matrix(side: int, size: int) -> np.ndarray:
    """Return the (size, side) resampling with the kernel widened by side / size when shrinking.

    The kernel is cut at the border and normalised, and a = -0.5.
    """
    ratio = side / size
    stretch = max(ratio, 1.0)
    matrix = np.zeros((size, side))
    for i in range(size):
        centre = (i + 0.5) * ratio
        first = max(int(centre - 2 * stretch + 0.5), 0)
        last = min(int(centre + 2 * stretch + 0.5), side)
        taps = np.arange(first, last)
        weights = cubic((taps + 0.5 - centre) / stretch, -0.5)
        matrix[i, first:last] = weights / weights.sum()
    return matrix


@pytest.mark.parametrize(("rows", "columns"), [(16, 16), (4, 9), (20, 37), (40, 41)])
@pytest.mark.parametrize("registers", [0, 4])
def test_position_embedding_is_resampled_as_the_official_code_does(rows: int, columns: int, registers: int) -> None:
    name = "dinov2_vits14_reg" if registers else "dinov2_vits14"
    base = ARCHITECTURES[name]
    model = DinoV2(Architecture(6, 0, 1, registers=registers, antialias=base.antialias, offset=base.offset))
    randomised(model)
    side = 37
    grid = model.pos_embed[0, 1:].detach().double().numpy().reshape(side, side, 6)
    if registers:
        down, across = antialiased_matrix(side, rows), antialiased_matrix(side, columns)
    else:
        down = plain_matrix(side, rows, (rows + 0.1) / side)
        across = plain_matrix(side, columns, (columns + 0.1) / side)
    expected = np.einsum("iy,jx,yxc->ijc", down, across, grid).reshape(rows * columns, 6)
    resampled = model.position_embedding(rows, columns).detach()
    assert resampled.shape == (1, 1 + rows * columns, 6)
    torch.testing.assert_close(resampled[:, :1], model.pos_embed[:, :1].detach(), rtol=0, atol=0)
    # Sampling points of up to 37 have an error of 4e-6 in fp32, and the slope is about 1.
    np.testing.assert_allclose(resampled[0, 1:].numpy(), expected, rtol=0, atol=1e-5)


def test_position_embedding_at_the_native_grid_is_the_trained_one() -> None:
    model = randomised(DinoV2(TINY["plain"]))
    assert isinstance(model, DinoV2)
    assert torch.equal(model.position_embedding(4, 4), model.pos_embed)


@pytest.mark.parametrize("name", TINY)
def test_baking_the_position_embedding_changes_nothing_at_its_crop(name: str) -> None:
    a = TINY[name]
    model = randomised(DinoV2(a))
    assert isinstance(model, DinoV2)
    images = torch.randn(2, 3, 42, 42, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        before = model(images)
        model.bake_position_embedding(42)
        after = model(images)
    assert model.pos_embed.shape == (1, 10, a.width)
    assert torch.equal(before, after)


def test_tokens_keep_their_place_and_their_image() -> None:
    """Changing a patch changes its own token most, and no token of another image."""
    model = randomised(DinoV2(REGISTERS))
    images = torch.randn(2, 3, 56, 70, generator=torch.Generator().manual_seed(2))
    changed = images.clone()
    changed[1, :, 14:28, 42:56] += 3
    with torch.no_grad():
        change = (model(changed) - model(images)).abs().sum(1)
    assert change.shape == (2, 4, 5)
    assert change[0].max() == 0
    assert int(change[1].argmax()) == 1 * 5 + 3


@pytest.mark.parametrize("name", ["plain", "swiglu_registers"])
def test_tokens_of_blocks_are_those_that_transformers_gives_after_each(name: str) -> None:
    a = replace(TINY[name], depth=3)
    theirs = randomised(reference(a))
    ours = DinoV2(a, (1, 2))
    state = official(theirs.state_dict(), a)[1]
    ours.load_state_dict({key: value for key, value in state.items() if key in ours.state_dict()})
    images = torch.randn(2, 3, 56, 56, generator=torch.Generator().manual_seed(6))
    with torch.no_grad():
        hidden = theirs(images, output_hidden_states=True).hidden_states
        tokens = ours(images)
    assert tokens.shape == (2, ours.width, 4, 4)
    assert ours.width == 2 * a.width
    assert len(ours.blocks) == 2
    expected = torch.cat(hidden[1:3], dim=2)[:, 1 + a.registers :]
    torch.testing.assert_close(tokens.flatten(2).transpose(1, 2), expected, rtol=1e-4, atol=1e-5)


def test_a_block_that_does_not_exist_is_refused(tiny_recipe: Recipe) -> None:
    recipe = msgspec.structs.replace(tiny_recipe, backbone=Backbone(architecture="starter_vit14", blocks=(2, 5)))
    with pytest.raises(RecipeError, match=r"recipe 'tiny': backbone\.blocks = \[2, 5\], .* blocks 1 to 4; leave 5 out"):
        MdmfModel(recipe)


def test_an_image_with_partial_patches_is_refused() -> None:
    with pytest.raises(ShapeMismatch, match=r"multiples of 14, got 56 x 60"):
        DinoV2(TINY["plain"])(torch.zeros(1, 3, 56, 60))


@pytest.mark.parametrize("name", [name for name in ARCHITECTURES if name.startswith("dinov2")])
def test_keys_and_shapes_of_every_release_are_those_of_transformers(name: str) -> None:
    # All blocks are alike. The next test counts them.
    a = replace(ARCHITECTURES[name], depth=2)
    with torch.device("meta"):
        ours = DinoV2(a).state_dict()
    layout, theirs = official(reference(a, device="meta").state_dict(), a)
    assert layout == "Hugging Face"
    assert {key: value.shape for key, value in ours.items()} == {key: value.shape for key, value in theirs.items()}


# Sizes of the official files in bytes: the parameters in fp32, and a few kB of names.
OFFICIAL_BYTES = {
    "dinov2_vits14": 88_283_115,
    "dinov2_vits14_reg": 88_291_785,
    "dinov2_vitb14_reg": 346_393_545,
    "dinov2_vitl14": 1_217_586_395,
    "dinov2_vitl14_reg": 1_217_607_321,
    "dinov2_vitg14": 4_546_108_579,
    "dinov2_vitg14_reg": 4_546_140_349,
}


@pytest.mark.parametrize("name", OFFICIAL_BYTES)
def test_parameters_fill_the_official_file(name: str) -> None:
    with torch.device("meta"):
        count = sum(parameter.numel() for parameter in DinoV2(ARCHITECTURES[name]).parameters())
    assert 0 < OFFICIAL_BYTES[name] - 4 * count < 250_000
