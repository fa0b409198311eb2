"""The reduction: signatures and a bank in, squared MMD and each patch's contribution out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from mdmf_deploy.bundle.bank import Bank
from mdmf_deploy.errors import ShapeMismatch


@dataclass(frozen=True, slots=True)
class Scores:
    """Scores of B crops.

    mmd2: (B,), the biased squared MMD of each crop.
    contributions: (B, N). Their mean over N is mmd2.
    """

    mmd2: NDArray[np.float64]
    contributions: NDArray[np.float64]

    def of_images(self, crops: Sequence[int]) -> list[tuple[float, NDArray[np.float64]]]:
        """Return the score of each image and the contributions of its patches, (n, N) for n crops.

        An image's score is the mean of its crops' scores. So it is the mean of its contributions, too.

        crops: how many of the B crops belong to each image, in order.
        """
        ends = np.cumsum(crops)
        return [
            (float(self.mmd2[end - n : end].mean()), self.contributions[end - n : end])
            for n, end in zip(crops, ends.tolist(), strict=True)
        ]


class Reduction(Protocol):
    """One way to compute the scores. Tests hold each of them to mdmf_deploy.mmd.reference."""

    name: str

    def __call__(self, signatures: NDArray[np.float32], bank: Bank) -> Scores:
        """Score signatures, (B, N, d). Raises ShapeMismatch if d is not the bank's."""
        ...


def score_images(
    reduction: Reduction, images: Sequence[NDArray[np.float32]], bank: Bank
) -> list[tuple[float, NDArray[np.float64]]]:
    """Score images by the signatures of their crops, (n, N, d) each, in one reduction.

    Return each image's score and contributions, as Scores.of_images does. Raises ShapeMismatch if d is not the bank's.
    """
    return reduction(np.concatenate(images), bank).of_images([len(image) for image in images]) if images else []


def check_shape(shape: tuple[int, ...], bank: Bank) -> None:
    """Raise ShapeMismatch unless the shape of the signatures is (B, N >= 1, d) with the bank's d."""
    if len(shape) != 3 or shape[1] < 1 or shape[2] != bank.signatures.shape[1]:
        raise ShapeMismatch(f"signatures: expected (B, N, {bank.signatures.shape[1]}), got {shape}")
