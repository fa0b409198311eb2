"""The network that is trained: how a backbone starts from scratch, and what the network returns."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mdmf_deploy.model.dinov2 import DinoV2
from mdmf_deploy.model.pfs import MdmfModel
from mdmf_deploy.tasks.train.objectives import median_distance

# Ten times the variance of 8-bit rounding after normalisation, about (1 / 255 / 0.226)^2 / 12. Directions with less
# variance than this hold the codec's noise, which should not be amplified.
_FLOOR = 2.5e-4


class TrainingNet(nn.Module):
    """A detector in training, with an auxiliary classifier that is thrown away afterwards.

    frozen: leave the backbone alone. Batches then hold features instead of crops.
    classify: also classify the tokens of a backbone that is trained.
    """

    def __init__(self, detector: MdmfModel, frozen: bool, classify: bool) -> None:
        super().__init__()
        self.detector = detector
        self.frozen = frozen
        width = detector.backbone.width
        # None where it is not in the loss: several processes refuse parameters that get no gradient.
        self.classifier = nn.Linear(width, 1) if classify and not frozen else None
        if frozen:
            detector.backbone.requires_grad_(False)
        else:
            detector.backbone.mask_token.requires_grad_(False)

    def forward(self, batch: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
        """Return signatures (n, N, d), patch logits (n, P) or None, and sigma.

        batch: crops (n, 3, S, S), or features (n, N, C) for a frozen backbone.
        """
        sigma = self.detector.log_sigma.exp()
        if self.frozen:
            with torch.autocast(batch.device.type, enabled=False):
                return self.detector.head.signatures(batch.float()), None, sigma
        tokens = self.detector.backbone(batch)
        logits: Tensor | None = None
        if self.classifier is not None:
            logits = self.classifier(tokens.flatten(2).transpose(1, 2)).squeeze(-1)
        # The objective takes small differences of signatures. The head is cheap, so it keeps float32.
        with torch.autocast(tokens.device.type, enabled=False):
            return self.detector.head(tokens.float()), logits, sigma

    @torch.no_grad()
    def start_bandwidth(self, batch: Tensor) -> None:
        """Set sigma to the median distance between a batch's signatures (docs/method.md)."""
        signatures = self(batch)[0].float().flatten(0, 1)
        # 2,000 signatures give the median to a percent or two. All pairs of a large batch would not fit into memory.
        self.detector.log_sigma.copy_(median_distance(signatures[:: max(1, len(signatures) // 2000)]).log())


@torch.no_grad()
def initialise(backbone: DinoV2, crops: NDArray[np.float32], seed: int) -> None:
    """Draw truncated-normal weights, and make the patch embedding whiten natural image patches.

    The power of photographs falls with the square of frequency. A random linear embedding therefore sees little but
    brightness, and takes thousands of steps to find the fine traces that detection needs. Whitening (Coates and Ng,
    2012) makes every frequency equally loud from the first step.

    crops: (n, 3, S, S), normalised.
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
