"""Inputs of the GPU kernels' checks and timings: random signatures, everything kernels trip over, and real images."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mdmf_deploy.bundle.bank import Bank, BankSource

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@dataclass(frozen=True, slots=True)
class KernelInput:
    """Signatures and a bank.

    x: (B, N, d) float32.
    broken: places of images that hold a NaN or an infinity. Their scores must be NaN.
    """

    name: str
    x: NDArray[np.float32]
    bank: Bank
    broken: tuple[int, ...] = ()


def bank_of(signatures: NDArray[np.float32], sigma: float, weights: NDArray[np.float64] | None = None) -> Bank:
    """Make a bank of (M, d) signatures. Its self term is made up, since every reduction only adds it."""
    m = len(signatures)
    weights = np.full(m, 1 / m) if weights is None else weights
    sources = (BankSource("drawn", "0" * 64),)
    return Bank(signatures.astype(np.float32), weights, sigma, 0.25, np.zeros(m, np.int32), sources, "0" * 64)


def random_input(images: int, patches: int, points: int, width: int, seed: int = 0) -> KernelInput:
    """Draw signatures off centre, as learnt ones are. The bandwidth is the median distance."""
    generator = np.random.default_rng(seed)
    centre = generator.uniform(-3, 3, width)
    x = generator.normal(0.1, 1.1, (images, patches, width)) + centre
    r = generator.standard_normal((points, width), np.float32) + centre.astype(np.float32)
    return KernelInput("random", x.astype(np.float32), bank_of(r, (2.0 * width) ** 0.5))


def all_inputs(width: int, images: int = 3, patches: int = 49, points: int = 500) -> Iterator[KernelInput]:
    """Yield random signatures first, then everything that kernels trip over."""
    plain = random_input(images, patches, points, width)
    x, bank = plain.x, plain.bank
    generator = np.random.default_rng(1)
    yield plain
    yield replace(plain, name="signed weights", bank=replace(bank, weights=generator.normal(0, 1 / points, points)))
    yield replace(plain, name="the bank's own points", x=np.resize(bank.signatures, x.shape).copy())
    twice = bank_of(np.repeat(bank.signatures[: points // 2], 2, axis=0), bank.sigma)
    yield KernelInput("every point twice, every patch the same", np.repeat(x[:, :1], patches, axis=1), twice)
    yield replace(plain, name="huge", x=(x * np.float32(1e6)))
    broken = x.copy()
    broken[1, patches // 2, width // 3] = np.nan
    broken[2, 0, 0] = np.inf
    yield KernelInput("NaN in one image, an infinity in another", broken, bank, broken=(1, 2))
    yield KernelInput("N = 1", x[:, :1].copy(), bank)
    yield KernelInput("M = 1", x, bank_of(bank.signatures[:1], bank.sigma))
    near = bank.signatures[generator.integers(points, size=x.shape[:2])] + np.float32(0.02) * generator.standard_normal(
        x.shape, np.float32
    )
    yield KernelInput("a bandwidth of a twentieth of the distances", near, bank_of(bank.signatures, bank.sigma / 20))
    many = 5 * patches + 11
    odd = bank_of(bank.signatures[: 2 * points // 3], 7.0)
    yield KernelInput(f"B = 1, N = {many}, a tail everywhere", random_input(1, many, 1, width, 2).x, odd)


def real_images() -> tuple[KernelInput, float]:
    """Return the signatures of examples/ with the starter's bank, and the standard deviation of its calibration scores.

    Raises ImportError without ONNX Runtime.
    """
    from mdmf_deploy.bundle.bundle import Bundle
    from mdmf_deploy.bundle.calibration import Calibration
    from mdmf_deploy.detection.pipeline import extract
    from mdmf_deploy.runtime.ort import OrtEngine

    bundle = Bundle.open("starter")
    files = sorted(path for path in EXAMPLES.rglob("*") if path.suffix in (".jpg", ".png", ".webp"))
    extracted = list(extract(files, OrtEngine(bundle), bundle.manifest.preprocessing, crops=1))
    x = np.concatenate([one.signatures for one in extracted if one.signatures is not None])
    assert isinstance(bundle.calibration, Calibration)
    return KernelInput(f"{len(x)} images, the starter's bank", x, bundle.bank), float(np.std(bundle.calibration.scores))
