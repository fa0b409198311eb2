"""The network that is trained: how a backbone starts from scratch, and what the network returns."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mdmf_deploy.bundle.recipe import Training
from mdmf_deploy.model.dinov2 import DinoV2
from mdmf_deploy.model.pfs import MdmfModel
from mdmf_deploy.tasks.train.lora import adapt
from mdmf_deploy.tasks.train.objectives import median_distance

Tuned = Literal["nothing", "adapters", "all"]

# Ten times the variance of 8-bit rounding after normalisation, about (1 / 255 / 0.226)^2 / 12. Directions with less
# variance than this hold the codec's noise, which should not be amplified.
_FLOOR = 2.5e-4


class TrainingNet(nn.Module):
    """A detector in training, with a probe on its signatures that is thrown away afterwards.

    tuned: what is trained of the backbone: nothing (batches then hold features instead of crops), "adapters" as
        training.lora says, or all of it.
    Raises RecipeError for adapted blocks that the backbone does not have.
    """

    def __init__(self, detector: MdmfModel, training: Training, tuned: Tuned = "nothing") -> None:
        super().__init__()
        self.detector = detector
        self.tuned = tuned
        # None where it is not in the loss: several processes refuse parameters that get no gradient.
        width = detector.head.layers[-1].out_features
        self.probe = nn.Linear(width, 1) if training.patch_cross_entropy > 0 else None  # type: ignore[arg-type]
        detector.head.dropout.p = training.dropout
        detector.backbone.requires_grad_(tuned == "all")
        detector.backbone.mask_token.requires_grad_(False)
        if tuned == "adapters":
            adapt(detector.backbone, training.lora)
        # No objective sees the bandwidth if the test power and the pairs have no weight.
        learnt = training.test_power > 0 and not isinstance(training.sigma, float)
        detector.log_sigma.requires_grad_(learnt)
        self._bounds = training.sigma if isinstance(training.sigma, tuple) else (0.0, math.inf)
        if isinstance(training.sigma, float):
            self._bounds = (training.sigma, training.sigma)
            self.keep_bandwidth()

    def forward(self, batch: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
        """Return signatures (n, N, d), the probe's logits (n, N) or None, and sigma.

        batch: crops (n, 3, S, S), or features (n, N, C) for a frozen backbone.
        """
        patches = batch if self.tuned == "nothing" else self.detector.head.patches(self.detector.backbone(batch))
        # The objective takes small differences of signatures. The head is cheap, so it keeps float32.
        with torch.autocast(batch.device.type, enabled=False):
            signatures = self.detector.head.signatures(patches.float())
            # Signatures of length one span few logits: the factor lets a probe of ordinary weights use them.
            logits = None if self.probe is None else 8 * self.probe(signatures).squeeze(-1)
            return signatures, logits, self.detector.log_sigma.exp()

    @torch.no_grad()
    def start(self, batch: Tensor, standardise: bool) -> None:
        """Set what follows from a first batch: the standardisation of the head's inputs, and sigma.

        Sigma becomes the median distance between signatures (docs/method.md, "Bandwidth"), within its bounds.
        """
        head = self.detector.head
        patches = batch if self.tuned == "nothing" else head.patches(self.detector.backbone(batch))
        patches = patches.float().flatten(0, 1)
        if standardise:
            head.standardise(patches.mean(0), patches.std(0))
        signatures = head.signatures(patches[None])[0]
        # 2,000 signatures give the median to a percent or two. All pairs of a large batch would not fit into memory.
        self.detector.log_sigma.copy_(median_distance(signatures[:: max(1, len(signatures) // 2000)]).log())
        self.keep_bandwidth()

    @torch.no_grad()
    def keep_bandwidth(self) -> None:
        """Move sigma into the bounds of the recipe."""
        low, high = self._bounds
        self.detector.log_sigma.clamp_(math.log(low) if low else -math.inf, math.log(high))

    def frozen_names(self) -> set[str]:
        """Return the names of the parameters that are not trained."""
        return {name for name, parameter in self.named_parameters() if not parameter.requires_grad}


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
