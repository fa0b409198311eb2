"""The detector as it is trained: the signatures, the bandwidth, and a classifier that is thrown away afterwards."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mdmf_deploy.bundle.recipe import Training
from mdmf_deploy.model.pfs import MdmfModel
from mdmf_deploy.tasks.train.objectives import image_scores, image_test_power, median_distance, pooled_test_power


class TrainingNet(nn.Module):
    """Wraps a Detector.

    frozen: the backbone is left alone, and batches hold features instead of crops.
    classify: an auxiliary classifier of the tokens of a backbone that is trained.
    """

    def __init__(self, detector: MdmfModel, frozen: bool, classify: bool) -> None:
        super().__init__()
        self.detector = detector
        self.frozen = frozen
        width = detector.backbone.architecture.width
        # None where it is not in the loss: parameters without a gradient are an error when there are several processes.
        self.classifier = nn.Linear(width, 1) if classify and not frozen else None
        if frozen:
            detector.backbone.requires_grad_(False)
        else:
            detector.backbone.mask_token.requires_grad_(False)

    def forward(self, batch: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
        """Crops (n, 3, S, S) or features (n, N, C) -> signatures (n, N, d), patch logits (n, P) or None, sigma."""
        sigma = self.detector.log_sigma.exp()
        if self.frozen:
            with torch.autocast(batch.device.type, enabled=False):
                return self.detector.head.signatures(batch.float()), None, sigma
        tokens = self.detector.backbone(batch)
        logits: Tensor | None = None
        if self.classifier is not None:
            logits = self.classifier(tokens.flatten(2).transpose(1, 2)).squeeze(-1)
        # The objective is made of small differences of signatures: the head is cheap, so it keeps float32.
        with torch.autocast(tokens.device.type, enabled=False):
            return self.detector.head(tokens.float()), logits, sigma

    @torch.no_grad()
    def start_bandwidth(self, batch: Tensor) -> None:
        """Set sigma to the median distance among a batch's signatures (METHOD.md)."""
        signatures = self(batch)[0].float().flatten(0, 1)
        # 2,000 signatures give the median to a percent or two; all pairs of a large batch would not fit in memory.
        self.detector.log_sigma.copy_(median_distance(signatures[:: max(1, len(signatures) // 2000)]).log())


def criterion(signatures: Tensor, sigma: Tensor, plan: Training) -> tuple[Tensor, Tensor]:
    """Signatures (2n, N, d), real half first -> (test power to maximise, MMD^2 or gap of mean scores)."""
    real, generated = signatures.float().chunk(2)
    if plan.objective == "pooled":
        result = pooled_test_power(real.flatten(0, 1), generated.flatten(0, 1), sigma, plan.regulariser)
        return result.power, result.mmd2
    scores = image_scores(real, generated, sigma)
    return image_test_power(*scores, plan.regulariser), scores[1].mean() - scores[0].mean()


def classification_loss(logits: Tensor) -> Tensor:
    """Logistic loss of every patch and of every image's mean logit, equally; (2n, P), real half first."""
    labels = torch.zeros_like(logits)
    labels[len(logits) // 2 :] = 1
    loss = nn.functional.binary_cross_entropy_with_logits
    logits = logits.float()
    return 0.5 * loss(logits, labels.float()) + 0.5 * loss(logits.mean(1), labels[:, 0].float())
