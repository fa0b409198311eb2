"""The reduction as others would write it on a GPU: signatures in, one squared MMD an image out, all on the GPU.

Every baseline runs on a torch device ("cuda", or "cpu" for tests) or through CuPy. One whose library is missing carries
the reason.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mdmf_deploy.bundle.bank import Bank

Reduce = Callable[[], Any]


@dataclass(frozen=True, slots=True)
class Baseline:
    """One way to write the reduction.

    make: returns the function that is timed. It returns the scores, (B,), on the GPU. None if it cannot run here.
    to_numpy: copies these scores to the host.
    missing: the reason why it cannot run here.
    """

    name: str
    make: Callable[[], Reduce] | None
    to_numpy: Callable[[Any], NDArray[np.floating]] | None = None
    missing: str | None = None


def baselines(x: NDArray[np.float32], bank: Bank, device: str = "cuda") -> Iterator[Baseline]:
    """Yield every baseline for these signatures, (B, N, d)."""
    yield from _torch_baselines(x, bank, device)
    yield _cupy_baseline(x, bank)


def _torch_baselines(x: NDArray[np.float32], bank: Bank, device: str) -> Iterator[Baseline]:
    names = ("PyTorch, eager", "cuBLAS + exp, in place", "torch.compile", "torch.compile, fp16 products", "pykeops")
    try:
        import torch
    except ImportError as error:
        yield from (Baseline(name, None, missing=f"{error.name} is not installed") for name in names)
        return
    if device == "cuda" and not torch.cuda.is_available():
        yield from (Baseline(name, None, missing="this PyTorch sees no GPU") for name in names)
        return
    gamma = 1 / (2 * bank.sigma**2)
    centre = bank.signatures.mean(axis=0)
    own = torch.from_numpy(x - centre).to(device)
    points = torch.from_numpy(bank.signatures - centre).to(device)
    weights = torch.from_numpy(bank.weights).to(device, torch.float32)
    given = own, points, weights

    def as_written(own: Any, points: Any, weights: Any) -> Any:
        def kernel(a: Any, b: Any) -> Any:
            squared = (a**2).sum(-1, keepdim=True) + (b**2).sum(-1)[..., None, :] - 2 * (a @ b.mT)
            return torch.exp(-gamma * squared.clamp_min(0))

        within = kernel(own, own).mean((1, 2))
        cross = kernel(own.flatten(0, 1), points) @ weights
        return within - 2 * cross.reshape(own.shape[:2]).mean(1) + bank.self_term

    def in_half(own: Any, points: Any, weights: Any) -> Any:
        scale = math.sqrt(2 * gamma)
        a, b = (scale * own).half(), (scale * points).half()
        flat = a.flatten(0, 1)
        norms_a, norms_b = ((t.float() ** 2).sum(-1) / 2 for t in (flat, b))
        cross = torch.exp(((flat @ b.mT).float() - norms_a[:, None] - norms_b).clamp_max(0)) @ weights
        norms = norms_a.reshape(own.shape[:2])
        within = torch.exp(((a @ a.mT).float() - norms[:, :, None] - norms[:, None]).clamp_max(0)).mean((1, 2))
        return within - 2 * cross.reshape(own.shape[:2]).mean(1) + bank.self_term

    # -gamma |x - r|^2 as one product: (2 gamma x, 1) . (r, -gamma |r|^2), and -gamma |x|^2 added by cuBLAS.
    augmented = torch.cat([points, -gamma * (points**2).sum(-1, keepdim=True)], 1).T.contiguous()

    def in_place() -> Any:
        flat = own.flatten(0, 1)
        norms = -gamma * (flat**2).sum(-1, keepdim=True)
        rows = torch.cat([2 * gamma * flat, torch.ones_like(norms)], 1)
        values = torch.addmm(norms, rows, augmented)
        cross = values.clamp_max_(0).exp_() @ weights
        squared = torch.cdist(own, own) ** 2
        within = torch.exp(-gamma * squared).mean((1, 2))
        return within - 2 * cross.reshape(own.shape[:2]).mean(1) + bank.self_term

    def tf32(run: Callable[[], Any]) -> Reduce:
        def call() -> Any:
            torch.backends.cuda.matmul.allow_tf32 = True
            with torch.inference_mode():
                return run()

        return call

    def compiled(written: Callable[..., Any]) -> Reduce:
        fast = torch.compile(written)
        return tf32(lambda: fast(*given))

    def keops() -> Reduce:
        with redirect_stdout(sys.stderr):  # pykeops prints a greeting
            import pykeops
            from pykeops.torch import LazyTensor

        pykeops.set_verbose(False)
        reference = LazyTensor(points[None].contiguous())

        def run() -> Any:
            kernel = (-gamma * ((LazyTensor(own.flatten(0, 1)[:, None]) - reference) ** 2).sum(-1)).exp()
            cross = (kernel @ weights[:, None]).reshape(own.shape[:2]).mean(1)
            within = torch.exp(-gamma * torch.cdist(own, own) ** 2).mean((1, 2))
            return within + bank.self_term - 2 * cross

        return run

    to_numpy = _from_torch
    yield Baseline(names[0], lambda: tf32(lambda: as_written(*given)), to_numpy)
    yield Baseline(names[1], lambda: tf32(in_place), to_numpy)
    yield Baseline(names[2], lambda: compiled(as_written), to_numpy)
    yield Baseline(names[3], lambda: compiled(in_half), to_numpy)
    yield Baseline(names[4], keops, to_numpy)


def _from_torch(result: Any) -> NDArray[np.floating]:
    values: NDArray[np.floating] = result.float().cpu().numpy()
    return values


def _cupy_baseline(x: NDArray[np.float32], bank: Bank) -> Baseline:
    name = "CuPy"
    try:
        import cupy
    except ImportError as error:
        return Baseline(name, None, missing=f"{error.name} is not installed")
    return Baseline(name, lambda: array_module_reduction(cupy, x, bank), cupy.asnumpy)


def array_module_reduction(xp: Any, x: NDArray[np.float32], bank: Bank) -> Reduce:
    """Return the reduction as one writes it for NumPy, on the array module xp."""
    gamma = np.float32(1 / (2 * bank.sigma**2))
    centre = bank.signatures.mean(axis=0)
    own, points = xp.asarray(x - centre), xp.asarray(bank.signatures - centre)
    weights = xp.asarray(bank.weights.astype(np.float32))
    norms = (points**2).sum(1)

    def run() -> Any:
        flat = own.reshape(-1, own.shape[-1])
        squared = (flat**2).sum(1)[:, None] + norms - 2 * flat @ points.T
        cross = xp.exp(-gamma * xp.maximum(squared, 0)) @ weights
        own_norms = (own**2).sum(2)
        squared = own_norms[:, :, None] + own_norms[:, None] - 2 * xp.matmul(own, own.transpose(0, 2, 1))
        within = xp.exp(-gamma * xp.maximum(squared, 0)).mean(axis=(1, 2))
        return within - 2 * cross.reshape(own.shape[:2]).mean(axis=1) + np.float32(bank.self_term)

    return run
