"""The figures of a detector in training on the validation part, and the gate that they must pass (docs/training.md)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mdmf_deploy.bundle.recipe import BankGate
from mdmf_deploy.errors import TrainingFailed
from mdmf_deploy.model.pfs import MdmfModel
from mdmf_deploy.tasks.train.objectives import gram
from mdmf_deploy.tasks.train.phases import Count, Follow, ignore

BANK_IMAGES = 64
_BATCH = 32
# The rate of false positives on validation reals at which the other groups are judged.
_RATE = 0.05

# Takes the detector and its inputs, crops or features, and returns signatures (n, N, d).
Extract = Callable[[MdmfModel, NDArray[np.generic]], NDArray[np.float32]]
# The values logged at one step.
Record = dict[str, float]


@dataclass(frozen=True, slots=True)
class Terms:
    """The terms of images' scores (docs/method.md, "The score"): score = own - 2 cross + bank.

    own: (n,), the mean kernel value within an image.  cross: (n,), that with the bank.  bank: that within the bank.
    """

    own: NDArray[np.float64]
    cross: NDArray[np.float64]
    bank: float

    @property
    def scores(self) -> NDArray[np.float64]:
        return self.own - 2 * self.cross + self.bank


@torch.inference_mode()
def terms(signatures: NDArray[np.float32], bank_signatures: NDArray[np.float32], sigma: float) -> Terms:
    """Return the terms of images (n, N, d) against a bank of other images' signatures, (m, N, d)."""
    images = torch.from_numpy(np.asarray(signatures, np.float32))
    bank = torch.from_numpy(np.asarray(bank_signatures, np.float32)).flatten(0, 1)
    width = torch.tensor(sigma)

    def mean(x: Tensor, y: Tensor) -> NDArray[np.float64]:
        values: NDArray[np.float64] = gram(x, y, width).mean((-1, -2)).double().numpy()
        return values

    parts = [(mean(part, part), mean(part, bank)) for part in torch.split(images, _BATCH)]
    within = float(mean(bank[None], bank[None])[0])
    return Terms(np.concatenate([own for own, _ in parts]), np.concatenate([cross for _, cross in parts]), within)


def scores(signatures: NDArray[np.float32], bank_signatures: NDArray[np.float32], sigma: float) -> NDArray[np.float64]:
    """Score signatures (n, N, d) against a bank of real images' signatures, (m, N, d). Returns (n,)."""
    return terms(signatures, bank_signatures, sigma).scores


@dataclass(frozen=True, slots=True)
class Validation:
    """Measure a detector on the validation part, against a bank of training photographs.

    All inputs are of the kind that `extract` takes: uint8 crops, or cached features.

    real: the validation part's real images.  generated: by source.
    swapped: generated images of the training part, as a bank in place of the real one.
    groups: further real images by name, such as "flat" or "art".
    pairs: photographs and their reconstructions, by autoencoder.
    follow: receives how many inputs are done.
    """

    extract: Extract
    bank: NDArray[np.generic]
    swapped: NDArray[np.generic]
    real: NDArray[np.generic]
    generated: Mapping[str, NDArray[np.generic]]
    groups: Mapping[str, NDArray[np.generic]] = field(default_factory=dict)
    pairs: Mapping[str, tuple[NDArray[np.generic], NDArray[np.generic]]] = field(default_factory=dict)
    follow: Follow = ignore

    @torch.inference_mode()
    def __call__(self, detector: MdmfModel) -> Record:
        """Return these figures.

        auroc_SOURCE, auroc_mean: the AUROC of each source, and their mean.
        auroc_swapped: that mean with generated images as the bank.
        mean_kernel: the mean kernel value between the signatures of real images and the bank's.
        self_rank: Spearman's correlation between scores and their self terms, over all images.
        fpr_GROUP: false positives in a group at the threshold that 5% of the validation reals exceed.
        pairs_NAME: the AUROC of reconstructions against their photographs.
        """
        training = detector.training
        detector.eval()
        count = Count("validation", "crops", len(self), self.follow)

        def signatures_of(inputs: NDArray[np.generic]) -> NDArray[np.float32]:
            parts = []
            for start in range(0, len(inputs), _BATCH):
                parts.append(self.extract(detector, inputs[start : start + _BATCH]))
                count.advance(len(parts[-1]))
            return np.concatenate(parts)

        sigma, bank, swapped = detector.sigma, signatures_of(self.bank), signatures_of(self.swapped)
        reals = signatures_of(self.real)
        real = terms(reals, bank, sigma)
        made = {name: signatures_of(inputs) for name, inputs in sorted(self.generated.items())}
        judged = {name: terms(signatures, bank, sigma) for name, signatures in made.items()}
        areas = {name: auroc(real.scores, found.scores) for name, found in judged.items()}
        other = terms(reals, swapped, sigma).scores
        swapped_areas = [auroc(other, terms(signatures, swapped, sigma).scores) for signatures in made.values()]
        every = [real, *judged.values()]
        rank = _rank_correlation(np.concatenate([x.scores for x in every]), np.concatenate([x.own for x in every]))
        record = {f"auroc_{name}": area for name, area in areas.items()}
        record |= {
            "auroc_mean": float(np.mean(list(areas.values()))),
            "auroc_swapped": float(np.mean(swapped_areas)),
            "mean_kernel": float(real.cross.mean()),
            "self_rank": rank,
        }
        threshold = np.quantile(real.scores, 1 - _RATE)
        for name, inputs in self.groups.items():
            found = terms(signatures_of(inputs), bank, sigma).scores
            record[f"fpr_{name}"] = float((found > threshold).mean())
        for name, halves in self.pairs.items():
            first, second = (terms(signatures_of(half), bank, sigma).scores for half in halves)
            record[f"pairs_{name}"] = auroc(first, second)
        detector.train(training)
        return record

    def __len__(self) -> int:
        """Return the number of inputs."""
        alone = [self.bank, self.swapped, self.real, *self.generated.values(), *self.groups.values()]
        return sum(map(len, alone)) + sum(len(first) + len(second) for first, second in self.pairs.values())


def auroc(real: NDArray[np.float64], generated: NDArray[np.float64]) -> float:
    """Return the area under the ROC curve: how often a generated image has the higher score. A tie counts half."""
    ordered = np.sort(real)
    below, up_to = (np.searchsorted(ordered, generated, side) for side in ("left", "right"))
    return float((below + up_to).mean() / (2 * len(ordered)))


def _rank_correlation(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    return float(np.corrcoef(a.argsort().argsort(), b.argsort().argsort())[0, 1])


def bank_figures(record: Record, gate: BankGate) -> str:
    """Return the figures of the gate and its limits in one line."""
    kernel, swapped = record["mean_kernel"], record["auroc_swapped"]
    return (
        f"gate: mean kernel value of real images and the bank {kernel:.3f} (at least {gate.min_kernel}), "
        f"AUROC with a bank of generated images {swapped:.3f} (at most {gate.max_swapped_auroc})"
    )


def require_bank(record: Record, gate: BankGate) -> None:
    """Raise TrainingFailed with the figures if the scores of a detector do not depend on its bank.

    record: the figures of `Validation`.
    """
    kernel, swapped = record["mean_kernel"], record["auroc_swapped"]
    # A figure that is no number fails, too.
    if not (kernel >= gate.min_kernel and swapped <= gate.max_swapped_auroc):
        raise TrainingFailed(
            f"the bank does not matter to this detector: the mean kernel value of real images and the bank is "
            f"{kernel:.3f}, expected at least {gate.min_kernel}, and with a bank of generated images the AUROC is "
            f"{swapped:.3f}, expected at most {gate.max_swapped_auroc}; train with [head] normalise = true and "
            "[training] sigma = 0.7"
        )
