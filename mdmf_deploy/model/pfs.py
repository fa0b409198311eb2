"""The Patch Forensic Signature (PFS) head and the whole model in PyTorch.

They are steps 1 to 3 of docs/method.md, "The score".
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from mdmf_deploy.bundle.recipe import Head, Recipe
from mdmf_deploy.errors import RecipeError, ShapeMismatch
from mdmf_deploy.model.architectures import architecture
from mdmf_deploy.model.dinov2 import DinoV2

# A shorter signature counts as this long, so that one of length zero stays zero instead of becoming NaN.
_LEAST_LENGTH = 1e-12
# A channel that varies less than this in training counts as constant. Dividing by less would only amplify rounding.
_LEAST_STD = 1e-6


def softplus(x: Tensor) -> Tensor:
    """Return log(1 + exp(x)). PyTorch's own takes a comparison in ONNX, and overflows in float16."""
    return F.relu(x) + torch.log1p(torch.exp(-x.abs()))


class _PatchBatchNorm(nn.BatchNorm1d):
    """Batch norm over images and patches together: (B, N, C)."""

    def forward(self, patches: Tensor) -> Tensor:
        return super().forward(patches.flatten(0, -2)).reshape(patches.shape)

    def fold_into(self, layer: nn.Linear) -> None:
        """Change the linear layer before it so that this norm can be left out of evaluation."""
        assert self.running_mean is not None
        assert self.running_var is not None
        factor = self.weight.double() * (self.running_var.double() + self.eps).rsqrt()
        layer.bias.copy_((layer.bias.double() - self.running_mean.double()) * factor + self.bias.double())
        layer.weight.copy_(layer.weight.double() * factor[:, None])


_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"gelu": F.gelu, "relu": F.relu, "softplus": softplus}
_NORMS: dict[str, Callable[[int], nn.Module]] = {"layernorm": nn.LayerNorm, "batchnorm": _PatchBatchNorm}


class PfsHead(nn.Module):
    """Patch tokens (B, C, rows, columns) to signatures (B, N, d): average pooling, standardisation, then an MLP.

    N is pool * pool. The MLP has a norm and an activation between its linear layers, as the recipe's head says, and
    divides signatures by their length if it says so.
    mean, scale: buffers (C,). A pooled channel x enters the MLP as (x - mean) * scale.
    """

    mean: Tensor | None
    scale: Tensor | None

    def __init__(self, width: int, head: Head) -> None:
        super().__init__()
        # A module of its own, so that export can replace it by static operators.
        self.pooling: nn.Module = nn.AdaptiveAvgPool2d((head.pool, head.pool))
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("scale", torch.ones(width))
        widths = [width, *head.hidden, head.signature]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))
        make = _NORMS.get(head.norm)
        self.norms = nn.ModuleList(make(hidden) for hidden in head.hidden) if make else nn.ModuleList()
        self._activation = _ACTIVATIONS[head.activation]
        self._normalise = head.normalise
        self.dropout = nn.Dropout(0.0)  # Training sets its rate.

    def patches(self, tokens: Tensor) -> Tensor:
        """Pool tokens (B, C, rows, columns) into patches (B, N, C), the cached features of a frozen backbone."""
        pooled: Tensor = self.pooling(tokens)
        return pooled.flatten(2).transpose(1, 2)

    def signatures(self, patches: Tensor) -> Tensor:
        """Map patches (B, N, C) to signatures (B, N, d)."""
        if self.mean is not None and self.scale is not None:
            patches = self.dropout((patches - self.mean) * self.scale)
        *inner, last = self.layers
        for place, layer in enumerate(inner):
            patches = layer(patches)
            if len(self.norms):
                patches = self.norms[place](patches)
            patches = self.dropout(self._activation(patches))
        signatures: Tensor = last(patches)
        if not self._normalise:
            return signatures
        # F.normalize computes the same, but expands the lengths by the batch's size, which is dynamic in ONNX.
        lengths: Tensor = torch.linalg.vector_norm(signatures, dim=-1, keepdim=True)
        return signatures / lengths.clamp_min(_LEAST_LENGTH)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.signatures(self.patches(tokens))

    @torch.no_grad()
    def standardise(self, mean: Tensor, std: Tensor) -> None:
        """Let pooled channels enter the MLP with mean 0 and deviation 1, given those of training patches, (C,) each.

        Raises ShapeMismatch if they are not of that shape, or not finite.
        """
        assert self.mean is not None, "this head is folded"
        assert self.scale is not None, "this head is folded"
        for name, values in (("mean", mean), ("std", std)):
            if values.shape != self.mean.shape or not bool(values.isfinite().all()):
                raise ShapeMismatch(
                    f"standardisation: expected {name} as {len(self.mean)} finite numbers, got {tuple(values.shape)}"
                )
        self.mean.copy_(mean)
        self.scale.copy_(1 / std.double().clamp_min(_LEAST_STD))

    @torch.no_grad()
    def fold(self) -> None:
        """Fold standardisation and batch norms into the linear layers, in float64, for export.

        The head computes the same as before. It can no longer be standardised, saved or trained.
        """
        if self.mean is not None and self.scale is not None:
            first = self.layers[0]
            assert isinstance(first, nn.Linear)
            weight = first.weight.double() * self.scale.double()
            first.bias.copy_(first.bias.double() - weight @ self.mean.double())
            first.weight.copy_(weight)
            self.mean = self.scale = None
        for layer, norm in zip(self.layers, self.norms, strict=False):
            if isinstance(norm, _PatchBatchNorm) and isinstance(layer, nn.Linear):
                norm.fold_into(layer)
                self.norms = nn.ModuleList()


class MdmfModel(nn.Module):
    """Normalised images (B, 3, crop, crop) to signatures (B, N, d).

    log_sigma: the logarithm of the kernel bandwidth. It is learnt with the head and not used by the forward pass.
    Raises RecipeError naming the recipe for a backbone that does not exist, or blocks that it does not have.
    """

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        wanted = recipe.backbone
        try:
            self.backbone = DinoV2(architecture(wanted.architecture, wanted.position_resampling), wanted.blocks)
        except RecipeError as error:
            raise RecipeError(f"recipe {recipe.name!r}: {error}") from None
        self.head = PfsHead(self.backbone.width, recipe.head)
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
