"""Checkpoints: what is read, what is refused, and with which message."""

from __future__ import annotations

import hashlib
import os
import pickle
from pathlib import Path

import msgspec
import pytest
import torch
from helpers.backbones import randomised
from safetensors import safe_open
from safetensors.torch import save_file

from mdmf_deploy.bundle.recipe import Head, Recipe
from mdmf_deploy.errors import CheckpointError
from mdmf_deploy.model.checkpoints import (
    checkpoint_sha256,
    load_backbone,
    load_head,
    load_model,
    save_model,
)
from mdmf_deploy.model.pfs import MdmfModel
from mdmf_deploy.model.tensors import read_tensors


@pytest.fixture
def model(tiny_recipe: Recipe) -> MdmfModel:
    return randomised(MdmfModel(tiny_recipe))


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


def test_a_saved_model_loads_unchanged(model: MdmfModel, tiny_recipe: Recipe, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_model(path, model, {"recipe": "tiny", "data_sha256": "00"})
    loaded = load_model(path, tiny_recipe)
    assert loaded.state_dict().keys() == model.state_dict().keys()
    for key, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value), key
    assert [entry.name for entry in tmp_path.iterdir()] == ["model.safetensors"]
    with safe_open(path, framework="pt") as file:
        assert file.metadata() == {"mdmf": '{"data_sha256": "00", "recipe": "tiny"}'}


def test_equal_models_make_equal_files(model: MdmfModel, tmp_path: Path) -> None:
    save_model(tmp_path / "a.safetensors", model, {"x": "1", "y": "2"})
    save_model(tmp_path / "b.safetensors", model, {"y": "2", "x": "1"})
    assert checkpoint_sha256(tmp_path / "a.safetensors") == checkpoint_sha256(tmp_path / "b.safetensors")


def test_a_failed_save_leaves_the_old_file_whole(
    model: MdmfModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.safetensors"
    save_model(path, model, {"n": "1"})
    before = path.read_bytes()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CheckpointError, match=r"cannot write checkpoint .*No space left"):
        save_model(path, model, {"n": "2"})
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_missing_folder_is_an_error_of_one_line(model: MdmfModel, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot write checkpoint") as caught:
        save_model(tmp_path / "no" / "model.safetensors", model, {})
    assert "\n" not in str(caught.value)


def test_a_pth_state_dict_is_read_too(model: MdmfModel, tiny_recipe: Recipe, tmp_path: Path) -> None:
    torch.save(model.state_dict(), tmp_path / "model.pth")
    loaded = load_model(tmp_path / "model.pth", tiny_recipe)
    assert torch.equal(loaded.head.layers[0].weight, model.head.layers[0].weight)


def test_half_precision_weights_become_single(model: MdmfModel, tiny_recipe: Recipe, tmp_path: Path) -> None:
    torch.save({key: value.half() for key, value in model.state_dict().items()}, tmp_path / "model.pth")
    loaded = load_model(tmp_path / "model.pth", tiny_recipe)
    assert {value.dtype for value in loaded.state_dict().values()} == {torch.float32}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda t: t.pop("head.layers.0.bias"), r"recipe 'tiny': missing: layers\.0\.bias; the file has 192 inputs"),
        (lambda t: t.update({"head.norm.weight": torch.ones(8)}), r"extra: head\.norm\.weight"),
        (lambda t: t.update({"scale": torch.tensor(1.0)}), "extra: scale"),
        (lambda t: t.update({"backbone.pos": torch.ones(1)}), r"official layout\).*extra: pos"),
        (lambda t: t.pop("backbone.norm.bias"), r"missing: norm\.bias"),
        (lambda t: t.update({"backbone.norm.bias": torch.ones(3)}), r"norm\.bias is \(3,\), not \(192,\)"),
        (lambda t: t.pop("log_sigma"), "no kernel bandwidth under log_sigma or sigma"),
        (lambda t: t.update({"log_sigma": torch.ones(2)}), "one finite number"),
        (lambda t: t.update({"log_sigma": torch.tensor(float("nan"))}), "one finite number"),
    ],
)
def test_each_kind_of_wrong_key_is_named(
    change: object, expected: str, model: MdmfModel, tiny_recipe: Recipe, tmp_path: Path
) -> None:
    tensors = dict(model.state_dict())
    change(tensors)  # type: ignore[operator]
    path = tmp_path / "model.safetensors"
    save_file(tensors, path)
    with pytest.raises(CheckpointError, match=expected) as caught:
        load_model(path, tiny_recipe)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_another_width_or_depth_is_reported_with_those_of_the_file(
    model: MdmfModel, tiny_recipe: Recipe, tmp_path: Path
) -> None:
    save_model(tmp_path / "m.safetensors", model, {})
    for hidden in ((16, 16), (32,), ()):
        with pytest.raises(CheckpointError, match=r"the file has 192 inputs, hidden = \[16\], signature = 8"):
            load_model(tmp_path / "m.safetensors", with_key_map(tiny_recipe, {}, hidden))


def test_a_head_alone_loads_beside_a_backbone(model: MdmfModel, tiny_recipe: Recipe, tmp_path: Path) -> None:
    save_file(
        {k: v for k, v in model.state_dict().items() if not k.startswith("backbone.")}, tmp_path / "h.safetensors"
    )
    save_file(dict(model.backbone.state_dict()), tmp_path / "b.safetensors")
    with pytest.raises(CheckpointError, match="holds no backbone"):
        load_model(tmp_path / "h.safetensors", tiny_recipe)
    other = MdmfModel(tiny_recipe)
    load_backbone(other.backbone, tmp_path / "b.safetensors")
    load_head(other, tmp_path / "h.safetensors", tiny_recipe)
    for key, value in model.state_dict().items():
        assert torch.equal(other.state_dict()[key], value), key


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


@pytest.mark.parametrize("value", [0.0, -1.0, float("inf")])
def test_an_invalid_bandwidth_is_refused(value: float, model: MdmfModel, tiny_recipe: Recipe, tmp_path: Path) -> None:
    tensors = {k: v for k, v in model.state_dict().items() if k != "log_sigma"}
    save_file(tensors | {"sigma": torch.tensor(value)}, tmp_path / "m.safetensors")
    with pytest.raises(CheckpointError, match="sigma must be one finite number"):
        load_model(tmp_path / "m.safetensors", tiny_recipe)


class Bomb:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, tuple[str, ...]]:
        return (os.mkdir, (str(self.target),))


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_pickle_bomb_is_not_run(wrapped: bool, tmp_path: Path) -> None:
    target, path = tmp_path / "boom", tmp_path / "model.pth"
    if wrapped:
        torch.save({"w": torch.zeros(1), "x": Bomb(target)}, path)
    else:
        path.write_bytes(pickle.dumps(Bomb(target)))
    with pytest.raises(CheckpointError, match="is not run") as caught:
        read_tensors(path)
    assert not target.exists()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".bin"])
@pytest.mark.parametrize("content", [b"", b"hello, world", b"PK\x03\x04" + b"\0" * 40, b"\xff" * 64, None])
def test_a_file_that_is_not_a_checkpoint_is_an_error_of_one_line(
    suffix: str, content: bytes | None, tmp_path: Path
) -> None:
    path = tmp_path / f"model{suffix}"
    if content is None:
        path.mkdir()
    else:
        path.write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        read_tensors(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_truncated_or_missing_file_is_an_error_of_one_line(suffix: str, model: MdmfModel, tmp_path: Path) -> None:
    path = tmp_path / f"model{suffix}"
    with pytest.raises(CheckpointError, match="No such file") as caught:
        read_tensors(path)
    assert "\n" not in str(caught.value)
    if suffix == ".pth":
        torch.save(model.state_dict(), path)
    else:
        save_model(path, model, {})
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(CheckpointError) as caught:
        read_tensors(path)
    assert "\n" not in str(caught.value)


def test_a_pth_that_holds_a_list_is_refused(tmp_path: Path) -> None:
    torch.save([torch.zeros(1)], tmp_path / "l.pth")
    with pytest.raises(CheckpointError, match="holds a list; expected a state dict"):
        read_tensors(tmp_path / "l.pth")


def test_checkpoint_sha256_is_the_digest_of_the_bytes(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"abc")
    assert checkpoint_sha256(tmp_path / "x") == hashlib.sha256(b"abc").hexdigest()
    with pytest.raises(CheckpointError, match="No such file"):
        checkpoint_sha256(tmp_path / "y")
