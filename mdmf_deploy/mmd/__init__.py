"""The reduction: signatures and a bank in, squared MMD and each patch's contribution out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from mdmf_deploy.bundle.bank import Bank
from mdmf_deploy.errors import ShapeMismatch


@dataclass(frozen=True, slots=True)
class Scores:
    """Scores of B images.

    mmd2: (B,), the biased squared MMD of each image.
    contributions: (B, N). Their mean over N is mmd2.
    """

    mmd2: NDArray[np.float64]
    contributions: NDArray[np.float64]


class Reduction(Protocol):
    """One way to compute the scores. Tests hold each of them to mdmf_deploy.mmd.reference."""

    name: str

    def __call__(self, signatures: NDArray[np.float32], bank: Bank) -> Scores:
        """Score signatures, (B, N, d). Raises ShapeMismatch if d is not the bank's."""
        ...


def check_shape(shape: tuple[int, ...], bank: Bank) -> None:
    """Raise ShapeMismatch unless the shape of the signatures is (B, N >= 1, d) with the bank's d."""
    if len(shape) != 3 or shape[1] < 1 or shape[2] != bank.signatures.shape[1]:
        raise ShapeMismatch(f"signatures: expected (B, N, {bank.signatures.shape[1]}), got {shape}")
