"""A head that was trained elsewhere: its keys, its norm and its kernel."""

from __future__ import annotations

import math
from pathlib import Path

import msgspec
import pytest
import torch
from helpers.backbones import randomised
from safetensors.torch import save_file

from mdmf_deploy.bundle.recipe import Head, Recipe
from mdmf_deploy.errors import CheckpointError
from mdmf_deploy.model.checkpoints import (
    load_head,
    load_model,
    save_model,
)
from mdmf_deploy.model.pfs import MdmfModel


def with_key_map(recipe: Recipe, key_map: dict[str, str], hidden: tuple[int, ...] = (16,)) -> Recipe:
    return msgspec.structs.replace(recipe, head=Head(pool=2, hidden=hidden, signature=8, key_map=key_map))


KEY_MAP = {
    "layers.0.weight": "model.mlp.0.weight",
    "layers.0.bias": "model.mlp.0.bias",
    "layers.1.weight": "model.mlp.2.weight",
    "layers.1.bias": "model.mlp.2.bias",
    "sigma": "kernel.width",
}


def foreign(model: MdmfModel) -> dict[str, object]:
    """Return a head as another project may save it: nested, under other names, with sigma and optimizer state."""
    first, second = model.head.layers
    mlp = {
        "0.weight": first.weight.data,
        "0.bias": first.bias.data,
        "2.weight": second.weight.data,
        "2.bias": second.bias.data,
    }
    return {"model": {"mlp": mlp}, "kernel": {"width": 2.5}, "optimizer": {"step": 7, "m": torch.zeros(3)}}


def test_a_foreign_head_loads_through_the_key_map(model: MdmfModel, tiny_recipe: Recipe, tmp_path: Path) -> None:
    torch.save(foreign(model), tmp_path / "theirs.pth")
    other = MdmfModel(tiny_recipe)
    backbone = {key: value.clone() for key, value in other.backbone.state_dict().items()}
    recipe = with_key_map(tiny_recipe, KEY_MAP)
    load_head(other, tmp_path / "theirs.pth", recipe)
    assert torch.equal(other.head.layers[1].weight, model.head.layers[1].weight)
    assert other.sigma == pytest.approx(2.5, rel=1e-6)
    assert all(torch.equal(value, backbone[key]) for key, value in other.backbone.state_dict().items())
    # When saved again it has our own names, and the same recipe reads it.
    save_model(tmp_path / "ours.safetensors", other, {})
    assert load_model(tmp_path / "ours.safetensors", recipe).sigma == pytest.approx(2.5, rel=1e-6)


def test_a_foreign_file_with_its_backbone_loads_whole(model: MdmfModel, tiny_recipe: Recipe, tmp_path: Path) -> None:
    content = foreign(model)
    content["encoder"] = dict(model.backbone.state_dict())
    torch.save(content, tmp_path / "theirs.pth")
    loaded = load_model(tmp_path / "theirs.pth", with_key_map(tiny_recipe, KEY_MAP | {"backbone": "encoder"}))
    images = torch.randn(1, 3, 56, 56, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(loaded(images), model(images))


@pytest.mark.parametrize("named", ["sigma", "log_sigma"])
def test_a_bandwidth_of_another_kernel_gives_the_same_kernel(
    named: str, model: MdmfModel, tiny_recipe: Recipe, tmp_path: Path
) -> None:
    key_map = {key: value for key, value in KEY_MAP.items() if key != "sigma"} | {named: "kernel.width"}
    recipe = with_key_map(tiny_recipe, key_map)
    recipe = msgspec.structs.replace(recipe, head=msgspec.structs.replace(recipe.head, kernel="mmd-mp"))
    content = foreign(model)
    sigma0 = 2.5 if named == "sigma" else math.exp(2.5)
    torch.save(content, tmp_path / "theirs.pth")
    load_head(model, tmp_path / "theirs.pth", recipe)
    distance = 1.7
    ours = math.exp(-(distance**2) / (2 * model.sigma**2))
    assert ours == pytest.approx(math.exp(-(distance**2) / sigma0), rel=1e-6)
    # A file with our names holds our own bandwidth, whatever kernel the head came with.
    sigma = model.sigma
    save_model(tmp_path / "ours.safetensors", model, {})
    assert load_model(tmp_path / "ours.safetensors", recipe).sigma == sigma


def test_a_foreign_batch_norm_maps_without_its_count(tiny_recipe: Recipe, tmp_path: Path) -> None:
    places = {"layers.0": "mlp.0", "norms.0": "mlp.1", "layers.1": "mlp.3"}
    kinds = {"norms.0": ("weight", "bias", "running_mean", "running_var")}
    key_map = {
        f"{ours}.{kind}": f"{theirs}.{kind}"
        for ours, theirs in places.items()
        for kind in kinds.get(ours, ("weight", "bias"))
    } | {"sigma": "sigma"}
    recipe = msgspec.structs.replace(tiny_recipe, head=Head(pool=2, hidden=(16,), signature=8, norm="batchnorm"))
    trained = randomised(MdmfModel(recipe))
    trained.head.norms[0].running_mean.fill_(0.5)
    state = trained.head.state_dict()
    tensors = {theirs: state[ours] for ours, theirs in key_map.items() if ours in state}
    tensors |= {"mlp.1.num_batches_tracked": torch.tensor(7), "sigma": torch.tensor(1.0)}
    save_file(tensors, tmp_path / "theirs.safetensors")
    mapped = msgspec.structs.replace(recipe, head=msgspec.structs.replace(recipe.head, key_map=key_map))
    loaded = MdmfModel(mapped).eval()
    load_head(loaded, tmp_path / "theirs.safetensors", mapped)
    tokens = torch.randn(1, 192, 4, 4, generator=torch.Generator().manual_seed(1))
    assert torch.equal(loaded.head(tokens), trained.head(tokens))
    save_file({k: v for k, v in tensors.items() if "running_var" not in k}, tmp_path / "part.safetensors")
    with pytest.raises(CheckpointError, match=r"missing: norms\.0\.running_var"):
        load_head(loaded, tmp_path / "part.safetensors", mapped)


@pytest.mark.parametrize("depth", [0, 1, 3])
def test_any_depth_of_mlp_maps(depth: int, tiny_recipe: Recipe, tmp_path: Path) -> None:
    widths = (11, 5, 9)[:depth]
    key_map = {f"layers.{n}.{kind}": f"f.fc{n}.{kind}" for n in range(depth + 1) for kind in ("weight", "bias")} | {
        "log_sigma": "f.s"
    }
    recipe = with_key_map(tiny_recipe, key_map, widths)
    model = MdmfModel(recipe)
    randomised(model)
    tensors = {theirs: model.head.state_dict()[ours] for ours, theirs in key_map.items() if ours != "log_sigma"} | {
        "f.s": torch.tensor(0.25)
    }
    save_file(tensors, tmp_path / "f.safetensors")
    other = MdmfModel(recipe)
    load_head(other, tmp_path / "f.safetensors", recipe)
    tokens = torch.randn(1, 192, 4, 4, generator=torch.Generator().manual_seed(1))
    assert torch.equal(other.head(tokens), model.head(tokens))
    assert float(other.log_sigma.detach()) == 0.25


def test_a_layer_missing_from_the_key_map_is_an_error(model: MdmfModel, tiny_recipe: Recipe, tmp_path: Path) -> None:
    content = foreign(model)
    content["model"]["mlp"]["4.weight"] = torch.zeros(8, 8)  # type: ignore[index]
    torch.save(content, tmp_path / "theirs.pth")
    with pytest.raises(CheckpointError, match=r"extra: model\.mlp\.4\.weight"):
        load_head(MdmfModel(tiny_recipe), tmp_path / "theirs.pth", with_key_map(tiny_recipe, KEY_MAP))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"layers.7.weight": "x"}, r"head\.key_map has layers\.7\.weight; its keys are layers\.0\.weight"),
        ({"sigma": "nowhere"}, r"no kernel bandwidth under nowhere; name its key .*log_sigma = "),
        ({"sigma": "optimizer.m"}, "optimizer.m must be one finite number"),
        ({"layers.0.weight": "absent.0.weight"}, r"missing: layers\.0\.weight; extra: model\.mlp\.0\.weight"),
    ],
)
def test_a_wrong_key_map_is_explained(
    change: dict[str, str], expected: str, model: MdmfModel, tiny_recipe: Recipe, tmp_path: Path
) -> None:
    torch.save(foreign(model), tmp_path / "theirs.pth")
    with pytest.raises(CheckpointError, match=expected):
        load_head(MdmfModel(tiny_recipe), tmp_path / "theirs.pth", with_key_map(tiny_recipe, KEY_MAP | change))


def test_a_head_under_unmapped_names_is_reported_with_the_files_keys(
    model: MdmfModel, tiny_recipe: Recipe, tmp_path: Path
) -> None:
    save_file({"z.w": torch.zeros(2, 2), "sigma": torch.tensor(1.0)}, tmp_path / "z.safetensors")
    with pytest.raises(CheckpointError, match=r"the file's keys are z\.w"):
        load_head(model, tmp_path / "z.safetensors", with_key_map(tiny_recipe, {"layers.0.weight": "y.q.w"}))
