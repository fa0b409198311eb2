"""The objectives of training: a test power over pools of patches or over images (docs/method.md, "Objectives").

The kernel is k(a, b) = exp(-|a - b|^2 / (2 sigma^2)) throughout. The pooled objective is that of Liu et al., ICML 2020
(arXiv 2002.09116), equations 3 to 5.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mdmf_deploy.bundle.recipe import Training
from mdmf_deploy.errors import ShapeMismatch


@dataclass(frozen=True, slots=True)
class TestPower:
    """The pooled objective and its parts.

    mmd2: the unbiased MMD^2.
    variance: of its H-statistic.
    power: mmd2 / sqrt(variance + regulariser).
    """

    mmd2: Tensor
    variance: Tensor
    power: Tensor


@dataclass(frozen=True, slots=True)
class Loss:
    """What a step minimises, and its parts.

    gap: the pooled MMD^2, or the difference of the classes' mean scores.
    """

    total: Tensor
    power: Tensor
    gap: Tensor


def criterion(signatures: Tensor, logits: Tensor | None, sigma: Tensor, training: Training, paired: int = 0) -> Loss:
    """Return the loss of a batch.

    signatures: (2n, N, d), the real half first.
    logits: the probe's, (2n, N), or None.
    paired: the first so many real and generated images are pairs.
    """
    real, generated = signatures.float().chunk(2)
    pooled = training.objective == "pooled"
    weigh_pairs = paired > 0 and training.pairs.weight > 0
    scores = image_scores(real, generated, sigma) if not pooled or weigh_pairs else None
    if pooled:
        result = pooled_test_power(real.flatten(0, 1), generated.flatten(0, 1), sigma, training.regulariser)
        power, gap = result.power, result.mmd2
    else:
        assert scores is not None
        power, gap = image_test_power(*scores, training.regulariser), scores[1].mean() - scores[0].mean()
    total = -training.test_power * power
    if logits is not None:
        total = total + training.patch_cross_entropy * classification_loss(logits)
    if weigh_pairs and scores is not None:
        total = total + training.pairs.weight * pair_loss(scores[0][:paired], scores[1][:paired])
    return Loss(total, power, gap)


def pair_loss(real_scores: Tensor, generated_scores: Tensor) -> Tensor:
    """Ask for a score of the generated half that is higher by about 0.1, as a smooth hinge. Both are (p,)."""
    return nn.functional.softplus(0.3 - 8 * (generated_scores - real_scores)).mean()


def classification_loss(logits: Tensor) -> Tensor:
    """Return the logistic loss of every patch and of every image's mean logit, equally weighted.

    logits: (2n, P), the real half first.
    """
    labels = torch.zeros_like(logits)
    labels[len(logits) // 2 :] = 1
    loss = nn.functional.binary_cross_entropy_with_logits
    logits = logits.float()
    return 0.5 * loss(logits, labels.float()) + 0.5 * loss(logits.mean(1), labels[:, 0].float())


def pooled_test_power(x: Tensor, y: Tensor, sigma: Tensor, regulariser: float) -> TestPower:
    """Return the paper's objective over n real and n generated patches, both (n, d) with n >= 2.

    H_ij = k(x_i, x_j) + k(y_i, y_j) - k(x_i, y_j) - k(y_i, x_j)
    MMD^2_u = 1/(n(n-1)) sum_{i != j} H_ij
    var = 4/n^3 sum_i (sum_j H_ij)^2 - 4/n^4 (sum_ij H_ij)^2

    Raises ShapeMismatch if the two differ in shape.
    """
    n = len(x)
    if x.shape != y.shape or n < 2:
        raise ShapeMismatch(
            f"pools: expected two of the same shape (n >= 2, d), got {tuple(x.shape)}, {tuple(y.shape)}"
        )
    cross = gram(x, y, sigma)
    h = gram(x, x, sigma) + gram(y, y, sigma) - cross - cross.T
    mmd2 = (h.sum() - h.diagonal().sum()) / (n * (n - 1))
    variance = 4 / n**3 * h.sum(1).square().sum() - 4 / n**4 * h.sum().square()
    # Rounding can take the variance of a degenerate pool just below zero.
    return TestPower(mmd2, variance, mmd2 / (variance.clamp_min(0) + regulariser).sqrt())


def image_scores(real: Tensor, generated: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """Return each image's biased MMD^2 against the real images of the batch, as scores (R,) and (G,).

    An image is never part of its own reference.

    real: (R, N, d) with R >= 2.
    generated: (G, N, d).
    """
    count = len(real)
    everything = torch.cat([real, generated])
    total, patches, d = everything.shape
    reference = real.reshape(-1, d)
    # block[i, j]: mean kernel value between the patches of image i and of real image j.
    kernel = gram(everything.reshape(-1, d), reference, sigma)
    block = kernel.reshape(total, patches, count, patches).mean(dim=(1, 3))
    within = gram(everything, everything, sigma).mean(dim=(1, 2))
    between = block[:count]
    all_pairs = between.sum()
    own = between.diagonal()
    others = between.sum(1) - own
    # The reference of real image i is the other R - 1 images.
    rest = (all_pairs - between.sum(0) - between.sum(1) + own) / (count - 1) ** 2
    real_scores = within[:count] - 2 * others / (count - 1) + rest
    generated_scores = within[count:] - 2 * block[count:].mean(1) + all_pairs / count**2
    return real_scores, generated_scores


def image_test_power(real_scores: Tensor, generated_scores: Tensor, regulariser: float) -> Tensor:
    """Return J_image = (mean_generated s - mean_real s) / sqrt(var_generated s + var_real s + regulariser)."""
    gap = generated_scores.mean() - real_scores.mean()
    spread = generated_scores.var(unbiased=False) + real_scores.var(unbiased=False) + regulariser
    return gap / spread.sqrt()


def gram(a: Tensor, b: Tensor, sigma: Tensor) -> Tensor:
    """Return k(a_i, b_j), (..., n, m), for a (..., n, d) and b (..., m, d)."""
    norms = a.square().sum(-1)[..., :, None] + b.square().sum(-1)[..., None, :]
    squared = (norms - 2 * a @ b.transpose(-1, -2)).clamp_min(0)
    return torch.exp(squared / (-2 * sigma.square()))


def median_distance(signatures: Tensor) -> Tensor:
    """Return the median |a - b| over pairs of distinct signatures, (n, d) with n >= 2. Training starts from it."""
    n = len(signatures)
    distances = torch.cdist(signatures, signatures)
    upper = torch.triu_indices(n, n, offset=1)
    return distances[upper[0], upper[1]].median()
