"""The Patch Forensic Signature head and the whole detector in PyTorch (docs/method.md, pipeline steps 1 to 3)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mdmf_deploy.bundle.recipe import Recipe
from mdmf_deploy.model.architectures import architecture
from mdmf_deploy.model.dinov2 import DinoV2


class PfsHead(nn.Module):
    """patch tokens (B, C, rows, columns) -> signatures (B, pool * pool, d): average pooling, then an MLP with GELU."""

    def __init__(self, width: int, hidden: Sequence[int], signature: int, pool: int) -> None:
        super().__init__()
        # A module of its own, so that export can put static operators in its place.
        self.pooling: nn.Module = nn.AdaptiveAvgPool2d((pool, pool))
        widths = [width, *hidden, signature]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))

    def patches(self, tokens: Tensor) -> Tensor:
        """(B, C, rows, columns) -> (B, pool * pool, C): what a frozen backbone's features are cached as."""
        pooled: Tensor = self.pooling(tokens)
        return pooled.flatten(2).transpose(1, 2)

    def extract(self, patches: Tensor) -> Tensor:
        """(B, N, C) -> (B, N, d)."""
        *inner, last = self.layers
        for layer in inner:
            patches = F.gelu(layer(patches))
        signatures: Tensor = last(patches)
        return signatures

    def forward(self, tokens: Tensor) -> Tensor:
        return self.extract(self.patches(tokens))


class MdmfModel(nn.Module):
    """images (B, 3, crop, crop), normalised -> signatures (B, N, d).

    log_sigma: log of the kernel bandwidth, learnt with the head; not used by the forward pass.
    """

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        shape = architecture(recipe.backbone.architecture)
        self.backbone = DinoV2(shape)
        self.head = PfsHead(shape.width, recipe.head.hidden, recipe.head.signature, recipe.head.pool)
        self.log_sigma = nn.Parameter(torch.zeros(()))

    @property
    def sigma(self) -> float:
        return math.exp(float(self.log_sigma.detach()))

    def forward(self, images: Tensor) -> Tensor:
        signatures: Tensor = self.head(self.backbone(images))
        return signatures
