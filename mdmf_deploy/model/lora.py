"""Low-rank adapters of a backbone's linear layers (Hu et al., LoRA, ICLR 2022, equation 3), merged at loading."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mdmf_deploy.errors import CheckpointError


@dataclass(frozen=True, slots=True)
class Lora:
    """Changes of linear layers: a weight W (out, in) becomes W + scale * B @ A.

    factors: "LAYER.A" (r, in) and "LAYER.B" (out, r) for each changed LAYER of the backbone, as "blocks.3.attn.qkv".
    """

    factors: Mapping[str, Tensor]
    scale: float

    @torch.no_grad()
    def merge(self, backbone: nn.Module) -> None:
        """Change the backbone's weights for good, computed in float64.

        Raises CheckpointError for a factor without its partner, of another shape, or of a layer that is not there.
        """
        if not math.isfinite(self.scale):
            raise CheckpointError(f"LoRA: the scale is {self.scale}; expected a finite number")
        linear = {name: module for name, module in backbone.named_modules() if isinstance(module, nn.Linear)}
        for layer in sorted({key.rpartition(".")[0] for key in self.factors}):
            a, b = self.factors.get(f"{layer}.A"), self.factors.get(f"{layer}.B")
            if layer not in linear:
                raise CheckpointError(
                    f"LoRA: {layer} is no linear layer of this backbone; expected one such as {next(iter(linear))}, in "
                    "a block that the recipe uses"
                )
            weight = linear[layer].weight
            if a is None or b is None or a.dim() != 2 or b.dim() != 2:
                raise CheckpointError(f"LoRA: {layer} needs two matrices, {layer}.A and {layer}.B; save both")
            if (b.shape[0], a.shape[1]) != tuple(weight.shape) or a.shape[0] != b.shape[1]:
                raise CheckpointError(
                    f"LoRA: {layer}.A {tuple(a.shape)} and B {tuple(b.shape)} do not fit a weight of "
                    f"{tuple(weight.shape)}; expected A (r, {weight.shape[1]}) and B ({weight.shape[0]}, r)"
                )
            weight.copy_(weight.double() + self.scale * (b.double() @ a.double()))
