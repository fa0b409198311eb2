"""The start of a backbone that is trained from scratch."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from mdmf_deploy.model.dinov2 import DinoV2

# Variance of 8-bit rounding after normalisation, about (1 / 255 / 0.226)^2 / 12 times ten: directions that hold no
# more than this are noise of the codec, not to be blown up.
_FLOOR = 2.5e-4


@torch.no_grad()
def initialise(backbone: DinoV2, crops: NDArray[np.float32], seed: int) -> None:
    """Truncated-normal weights, and a patch embedding that whitens natural image patches.

    crops: (n, 3, S, S), normalised.  The power of photographs falls with the square of frequency, so a random linear
    embedding sees hardly anything but brightness, and thousands of steps pass before it looks at the fine traces that
    detection needs. Whitening (as in Coates and Ng, 2012) makes every frequency equally loud from the first step.
    """
    generator = torch.Generator().manual_seed(seed)
    for module in backbone.modules():
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=module.in_features**-0.5, generator=generator)
            nn.init.zeros_(module.bias)
    nn.init.trunc_normal_(backbone.pos_embed, std=0.02, generator=generator)
    nn.init.trunc_normal_(backbone.cls_token, std=0.02, generator=generator)
    patch, width = backbone.architecture.patch, backbone.architecture.width
    n, channels, size, _ = crops.shape
    side = size // patch
    cut = crops[:, :, : side * patch, : side * patch].reshape(n, channels, side, patch, side, patch)
    patches = cut.transpose(0, 2, 4, 1, 3, 5).reshape(-1, channels * patch * patch).astype(np.float64)
    mean = patches.mean(axis=0)
    variances, directions = np.linalg.eigh(np.cov(patches - mean, rowvar=False))
    whitening = directions / np.sqrt(np.maximum(variances, 0) + _FLOOR)
    mixing = np.random.default_rng(seed).standard_normal((whitening.shape[1], width))
    mixing = np.linalg.qr(mixing)[0] if width <= whitening.shape[1] else mixing / np.sqrt(whitening.shape[1])
    weight = (whitening @ mixing).T
    backbone.patch_embed.proj.weight.copy_(torch.from_numpy(weight.reshape(width, channels, patch, patch)))
    assert backbone.patch_embed.proj.bias is not None
    backbone.patch_embed.proj.bias.copy_(torch.from_numpy(-weight @ mean))
