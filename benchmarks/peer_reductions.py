"""The reduction as others would write it on a CPU: signatures and a bank in, one squared MMD an image out.

Each is given everything that depends on the bank alone: its self term, and its points as float32 tensors.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import redirect_stdout

import numpy as np
import torch
from numpy.typing import NDArray
from peer_scripts import Scores, numpy_kernel
from torch import Tensor

from mdmf_deploy.bundle.bank import Bank

Signatures = NDArray[np.float32]
Reduce = Callable[[Signatures], Scores]


def reductions(bank: Bank) -> dict[str, Reduce]:
    """Return every peer by name. Each maps (B, N, d) to (B,)."""
    return {
        "NumPy, kernel matrix": numpy_matrix(bank),
        "scikit-learn, rbf_kernel": scikit_learn(bank),
        "torch, cdist": torch_matrix(bank, cdist),
        "torch as alibi-detect's GaussianRBF: aa + bb - 2ab, clamped": torch_matrix(bank, identity),
        "torch as anomalib's PatchCore: the whole batch in one distance matrix": torch_batch(bank),
        "pykeops, LazyTensor": pykeops(bank),
    }


def numpy_matrix(bank: Bank) -> Reduce:
    weights, norms = bank.weights.astype(np.float32), (bank.signatures**2).sum(1)

    def score(x: Signatures) -> float:
        within = numpy_kernel(x, x, (x**2).sum(1), bank.sigma).mean()
        cross = (numpy_kernel(x, bank.signatures, norms, bank.sigma) @ weights).mean()
        return float(within + bank.self_term - 2 * cross)

    return lambda signatures: np.array([score(x) for x in signatures])


def scikit_learn(bank: Bank) -> Reduce:
    from sklearn.metrics.pairwise import rbf_kernel

    gamma = 1 / (2 * bank.sigma**2)

    def score(x: Signatures) -> float:
        cross = (rbf_kernel(x, bank.signatures, gamma=gamma) @ bank.weights).mean()
        return float(rbf_kernel(x, x, gamma=gamma).mean() + bank.self_term - 2 * cross)

    return lambda signatures: np.array([score(x) for x in signatures])


def cdist(a: Tensor, b: Tensor) -> Tensor:
    return torch.cdist(a, b) ** 2


def identity(a: Tensor, b: Tensor) -> Tensor:
    squared = (a**2).sum(-1, keepdim=True) + (b**2).sum(-1) - 2 * a @ b.T
    return squared.clamp_min(1e-30)


def torch_matrix(bank: Bank, squared: Callable[[Tensor, Tensor], Tensor]) -> Reduce:
    reference, weights = torch.from_numpy(bank.signatures), torch.from_numpy(bank.weights).float()

    @torch.inference_mode()
    def score(x: Tensor) -> float:
        within = torch.exp(-squared(x, x) / (2 * bank.sigma**2)).mean()
        cross = (torch.exp(-squared(x, reference) / (2 * bank.sigma**2)) @ weights).mean()
        return float(within + bank.self_term - 2 * cross)

    return lambda signatures: np.array([score(x) for x in torch.from_numpy(signatures)])


def torch_batch(bank: Bank) -> Reduce:
    reference, weights = torch.from_numpy(bank.signatures), torch.from_numpy(bank.weights).float()

    def distances(a: Tensor, b: Tensor) -> Tensor:
        own, other = a.pow(2).sum(-1, keepdim=True), b.pow(2).sum(-1, keepdim=True)
        return (own - 2 * a @ b.mT + other.mT).clamp_min_(0).sqrt_()

    @torch.inference_mode()
    def run(signatures: Signatures) -> Scores:
        x = torch.from_numpy(signatures)
        within = torch.exp(-distances(x, x).pow(2) / (2 * bank.sigma**2)).mean((1, 2))
        kernel = torch.exp(-distances(x.flatten(0, 1), reference).pow(2) / (2 * bank.sigma**2))
        cross = (kernel @ weights).reshape(x.shape[:2]).mean(1)
        result: Scores = (within + bank.self_term - 2 * cross).numpy()
        return result

    return run


def pykeops(bank: Bank) -> Reduce:
    with redirect_stdout(sys.stderr):  # pykeops prints a greeting
        import pykeops as keops
        from pykeops.torch import LazyTensor

    keops.set_verbose(False)
    gamma = 1 / (2 * bank.sigma**2)
    reference = LazyTensor(torch.from_numpy(bank.signatures)[None].contiguous())
    weights = torch.from_numpy(bank.weights).float()[:, None]

    def run(signatures: Signatures) -> Scores:
        x = torch.from_numpy(signatures)
        kernel = (-gamma * ((LazyTensor(x.flatten(0, 1)[:, None]) - reference) ** 2).sum(-1)).exp()
        cross = (kernel @ weights).reshape(x.shape[:2]).mean(1)
        within = torch.exp(-gamma * cdist(x, x)).mean((1, 2))
        result: Scores = (within + bank.self_term - 2 * cross).numpy()
        return result

    return run
