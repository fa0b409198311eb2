"""Rename the keys of DINOv2's three layouts to those of the official release.

official      facebookresearch/dinov2: the names of mdmf_deploy.model.dinov2
Hugging Face  transformers' Dinov2Model and Dinov2WithRegistersModel, with or without their prefix ("dinov2."), with
              the names of the hub's files or those in memory since transformers 5 (q_proj, gate_proj, ...)
timm          vit_*_patch14_dinov2 and vit_*_patch14_reg4_dinov2
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from mdmf_deploy.model.architectures import Architecture

_HUGGING_FACE = (
    (r"^embeddings\.cls_token$", "cls_token"),
    (r"^embeddings\.mask_token$", "mask_token"),
    (r"^embeddings\.register_tokens$", "register_tokens"),
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^layernorm\.", "norm."),
    (r"^encoder\.layer\.(\d+)\.attention\.(output\.dense|o_proj)\.", r"blocks.\1.attn.proj."),
    (r"^encoder\.layer\.(\d+)\.layer_scale([12])\.lambda1$", r"blocks.\1.ls\2.gamma"),
    (r"^encoder\.layer\.(\d+)\.mlp\.weights_in\.", r"blocks.\1.mlp.w12."),
    (r"^encoder\.layer\.(\d+)\.mlp\.(weights_out|down_proj)\.", r"blocks.\1.mlp.w3."),
    (r"^encoder\.layer\.(\d+)\.(norm[12]|mlp\.fc[12])\.", r"blocks.\1.\2."),
)
# Matrices that the official code joins into one: (their names in order, our name).
_JOINED = (
    (("attention.attention.query", "attention.attention.key", "attention.attention.value"), "attn.qkv"),
    (("attention.q_proj", "attention.k_proj", "attention.v_proj"), "attn.qkv"),
    (("mlp.gate_proj", "mlp.up_proj"), "mlp.w12"),
)


def official(tensors: Mapping[str, Tensor], architecture: Architecture) -> tuple[str, dict[str, Tensor]]:
    """Return the name of the layout, and the tensors under their official names.

    A key that the layout does not know keeps its name, so that strict loading lists it as extra.
    """
    for prefix in ("dinov2_with_registers.", "dinov2."):
        if tensors and all(key.startswith(prefix) for key in tensors):
            tensors = {key.removeprefix(prefix): value for key, value in tensors.items()}
    if any(key.startswith(("embeddings.", "encoder.layer.")) for key in tensors):
        return "Hugging Face", _from_hugging_face(tensors)
    if _looks_like_timm(tensors):
        return "timm", _from_timm(tensors, architecture)
    return "official", dict(tensors)


def _from_hugging_face(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    tensors = dict(tensors)
    result: dict[str, Tensor] = {}
    for key in list(tensors):
        for parts, ours in _JOINED:
            block, found, kind = key.rpartition(f".{parts[0]}.")
            theirs = [f"{block}.{part}.{kind}" for part in parts]
            if found and all(part in tensors for part in theirs):
                joined = torch.cat([tensors.pop(part) for part in theirs])
                result[f"{block.replace('encoder.layer', 'blocks')}.{ours}.{kind}"] = joined
    for key, value in tensors.items():
        for pattern, name in _HUGGING_FACE:
            renamed, count = re.subn(pattern, name, key)
            if count:
                break
        result[renamed] = value
    return result


def _looks_like_timm(tensors: Mapping[str, Tensor]) -> bool:
    """Return whether the layout is timm's. Without registers and SwiGLU it only lacks the official mask token."""
    return "cls_token" in tensors and not {"mask_token", "register_tokens"} & tensors.keys()


def _from_timm(tensors: Mapping[str, Tensor], architecture: Architecture) -> dict[str, Tensor]:
    result = dict(tensors)
    if architecture.ffn == "swiglu":
        result = {
            key.replace(".mlp.fc1.", ".mlp.w12.").replace(".mlp.fc2.", ".mlp.w3."): v for key, v in result.items()
        }
    if "reg_token" in result:
        # With registers, timm adds the class token's position to the token itself and keeps only the grid's positions.
        # So the class token's position here is zero.
        result["register_tokens"] = result.pop("reg_token")
        if "pos_embed" in result:
            grid = result["pos_embed"]
            result["pos_embed"] = torch.cat([torch.zeros_like(grid[:, :1]), grid], dim=1)
    return result
