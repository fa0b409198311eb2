"""Low-rank adapters of a backbone in training (LoRA; Hu et al., ICLR 2022), as a parametrisation of its weights.

An adapted weight is W + scale * B @ A, with A (r, in), B (out, r), and B zero at the start. Only A and B are trained.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from mdmf_deploy.bundle.recipe import Adapters
from mdmf_deploy.errors import RecipeError
from mdmf_deploy.model.dinov2 import DinoV2


class LowRank(nn.Module):
    """Add scale * B @ A to a weight (out, in)."""

    def __init__(self, weight: Tensor, rank: int, scale: float) -> None:
        super().__init__()
        out, width = weight.shape
        self.scale = scale
        self.A = nn.Parameter(torch.randn(rank, width, device=weight.device) * width**-0.5)
        self.B = nn.Parameter(torch.zeros(out, rank, device=weight.device))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.scale * (self.B @ self.A)


def adapt(backbone: DinoV2, adapters: Adapters) -> None:
    """Freeze a backbone, and adapt all linear layers of some blocks.

    Raises RecipeError for a block that this backbone does not have.
    """
    if adapters.blocks and adapters.blocks[-1] > len(backbone.blocks):
        raise RecipeError(
            f"training.lora.blocks = {list(adapters.blocks)}, but of this backbone the recipe uses blocks 1 to "
            f"{len(backbone.blocks)}; leave the others out"
        )
    backbone.requires_grad_(False)
    for number in adapters.blocks:
        for linear in backbone.blocks[number - 1].modules():
            if isinstance(linear, nn.Linear):
                low_rank = LowRank(linear.weight, adapters.rank, adapters.scale)
                parametrize.register_parametrization(linear, "weight", low_rank)


def merge(backbone: DinoV2) -> None:
    """Replace every adapted weight by its sum, and remove the adapters."""
    for module in list(backbone.modules()):
        if isinstance(module, nn.Linear) and parametrize.is_parametrized(module, "weight"):
            parametrize.remove_parametrizations(module, "weight", leave_parametrized=True)


def factors(backbone: DinoV2) -> Iterator[tuple[str, Tensor]]:
    """Yield the trained factors by name, such as "blocks.3.attn.qkv.A", blocks counted from 0 as in the backbone."""
    for name, module in backbone.named_modules():
        if isinstance(module, LowRank):
            layer = name.removesuffix(".parametrizations.weight.0")
            yield f"{layer}.A", module.A.detach()
            yield f"{layer}.B", module.B.detach()
