"""The Patch Forensic Signature (PFS) head and the whole model in PyTorch (docs/method.md, pipeline steps 1 to 3)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from mdmf_deploy.bundle.recipe import Recipe
from mdmf_deploy.model.architectures import architecture
from mdmf_deploy.model.dinov2 import DinoV2


class PfsHead(nn.Module):
    """Patch tokens (B, C, rows, columns) to signatures (B, N, d): average pooling, then an MLP with GELU.

    N is pool * pool.
    """

    def __init__(self, width: int, hidden: Sequence[int], signature: int, pool: int) -> None:
        super().__init__()
        # A module of its own, so that export can replace it by static operators.
        self.pooling: nn.Module = nn.AdaptiveAvgPool2d((pool, pool))
        widths = [width, *hidden, signature]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))

    def patches(self, tokens: Tensor) -> Tensor:
        """Pool tokens (B, C, rows, columns) into patches (B, N, C), the cached features of a frozen backbone."""
        pooled: Tensor = self.pooling(tokens)
        return pooled.flatten(2).transpose(1, 2)

    def signatures(self, patches: Tensor) -> Tensor:
        """Map patches (B, N, C) to signatures (B, N, d)."""
        *inner, last = self.layers
        for layer in inner:
            patches = F.gelu(layer(patches))
        signatures: Tensor = last(patches)
        return signatures

    def forward(self, tokens: Tensor) -> Tensor:
        return self.signatures(self.patches(tokens))


class MdmfModel(nn.Module):
    """Normalised images (B, 3, crop, crop) to signatures (B, N, d).

    log_sigma: the logarithm of the kernel bandwidth. It is learnt with the head and not used by the forward pass.
    """

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        shape = architecture(recipe.backbone.architecture)
        self.backbone = DinoV2(shape)
        self.head = PfsHead(shape.width, recipe.head.hidden, recipe.head.signature, recipe.head.pool)
        self.log_sigma = nn.Parameter(torch.zeros(()))

    @property
    def sigma(self) -> float:
        """The kernel bandwidth."""
        return math.exp(float(self.log_sigma.detach()))

    def forward(self, images: Tensor) -> Tensor:
        signatures: Tensor = self.head(self.backbone(images))
        return signatures


class TorchEngine:
    """A model as an Engine (mdmf_deploy.runtime), on the CPU in float32: the reference for every exported model.

    It runs in eval mode, one image at a time. PyTorch picks other kernels for other batch sizes, and a reference must
    not depend on them.
    """

    name = "pytorch"
    precision = "fp32"

    def __init__(self, model: MdmfModel) -> None:
        self._model = model.float().eval()

    def __call__(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        with torch.inference_mode():
            extracted = [self._model(torch.tensor(image[None])).numpy() for image in images]
        return np.concatenate(extracted)

    def close(self) -> None:
        del self._model
