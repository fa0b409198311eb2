"""Tiny backbones with random weights, and transformers' models with the same weights."""

from __future__ import annotations

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
