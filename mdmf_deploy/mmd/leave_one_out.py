"""What each of a bank's own images would score against the rest of the bank: real scores, with no other image needed.

With S_aa = sum_ij w_i w_j k(r_i, r_j) within image a, S_aR the same against the whole bank, W_a = sum_i w_i and C the
bank term, the bank without a, its weights scaled back up, has C' = (C - 2 S_aR + S_aa) / (1 - W_a)^2 and cross terms
B'_i = (B_i - sum_j in a w_j k(r_i, r_j)) / (1 - W_a).  So an image costs one pass over the bank, not a new self term.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mdmf_deploy.bundle.bank import Bank
from mdmf_deploy.errors import BankError
from mdmf_deploy.mmd.cpu import CpuReduction
from mdmf_deploy.mmd.reference import gaussian_kernel


def leave_one_out(bank: Bank, at_most: int | None = None) -> NDArray[np.float64]:
    """(S,) scores, one a source image in the bank's order; or of at_most of them, evenly spaced.

    Of a compressed bank they mean nothing: an image's points stand for others' as well.
    Raises BankError if the bank has only one image.
    """
    present = np.unique(bank.source)
    if len(present) < 2:
        raise BankError("bank: leaving one image out needs at least two; build the bank from more images")
    if at_most is not None and len(present) > at_most:
        present = present[np.linspace(0, len(present) - 1, at_most).round().astype(int)]
    reduction = CpuReduction()
    scores = np.empty(len(present))
    for place, image in enumerate(present):
        own = bank.source == image
        x, weights = bank.signatures[own], bank.weights[own]
        kernel = gaussian_kernel(x, x, bank.sigma)
        within = kernel.mean(axis=1)
        cross = (within + bank.self_term - reduction(x[None], bank).contributions[0]) / 2.0
        rest = 1.0 - weights.sum()
        cross_rest = (cross - kernel @ weights) / rest
        self_rest = (bank.self_term - 2.0 * weights @ cross + weights @ kernel @ weights) / rest**2
        scores[place] = (within - 2.0 * cross_rest).mean() + self_rest
    return scores
