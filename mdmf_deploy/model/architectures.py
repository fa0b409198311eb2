"""The backbones by name. This module does not import torch, so that recipes can be checked without it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from mdmf_deploy.bundle.recipe import Resampling
from mdmf_deploy.errors import RecipeError


@dataclass(frozen=True, slots=True)
class Architecture:
    """A DINOv2 ViT (Oquab et al., TMLR 2024).

    width: C, the length of a token.
    depth, heads: the number of blocks, and of attention heads in each.
    patch: the side of a patch, in pixels.
    position_grid: the side of the trained position embedding's grid, in patches.
    registers: the number of extra tokens (Darcet et al., ICLR 2024).
    ffn: the feed-forward layer, "mlp", or "swiglu" as in ViT-g.
    antialias, offset: how this model's position embedding is resampled, here as the official code does (dinov2.py).
    """

    width: int
    depth: int
    heads: int
    patch: int = 14
    position_grid: int = 37
    registers: int = 0
    ffn: Literal["mlp", "swiglu"] = "mlp"
    antialias: bool = False
    offset: float = 0.1


def _with_registers(base: Architecture) -> Architecture:
    return Architecture(base.width, base.depth, base.heads, registers=4, ffn=base.ffn, antialias=True, offset=0.0)


_S = Architecture(384, 12, 6)
_B = Architecture(768, 12, 12)
_L = Architecture(1024, 24, 16)
_G = Architecture(1536, 40, 24, ffn="swiglu")

ARCHITECTURES: dict[str, Architecture] = {
    "dinov2_vits14": _S,
    "dinov2_vitb14": _B,
    "dinov2_vitl14": _L,
    "dinov2_vitg14": _G,
    "dinov2_vits14_reg": _with_registers(_S),
    "dinov2_vitb14_reg": _with_registers(_B),
    "dinov2_vitl14_reg": _with_registers(_L),
    "dinov2_vitg14_reg": _with_registers(_G),
    "starter_vit14": Architecture(192, 4, 3, position_grid=16),
}


def architecture(name: str, position_resampling: Resampling = "official") -> Architecture:
    """Return an architecture by its name. Raises RecipeError listing the known ones."""
    try:
        found = ARCHITECTURES[name]
        # Models with registers have no offset in either code.
        return replace(found, offset=0.0) if position_resampling == "transformers" else found
    except KeyError:
        known = ", ".join(ARCHITECTURES)
        raise RecipeError(f"backbone {name!r} is not known; choose one of {known}") from None
