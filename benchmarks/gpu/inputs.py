"""What the GPU's kernels are given, easy and nasty, what they must make of it, and how far off they may be.

Expected scores come from float64 over the kernel's own operands, rounded as it rounds them, so that a mistake of the
kernel's is told apart from what its operand type costs; that is told as well, next to float64 over the signatures.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mdmf_deploy.bundle.bank import Bank, BankSource
from mdmf_deploy.mmd import Scores
from mdmf_deploy.mmd.cuda.kernels import Kernel, prepare_bank, rounded, widened
from mdmf_deploy.mmd.reference import ReferenceReduction

EXAMPLES = Path(__file__).parents[2] / "examples"
# Largest error of float32 sums and exponentials, relative to the sum of a contribution's terms; of the polynomial.
SUMS, POLYNOMIAL = 2e-6, 3e-6
# Of an exponent of size h: steps 2 and 3 add it up from its parts (engines/kernels/README.md, "How far off").
EXPONENT = {"fp32": 2.0**-21, "tf32": 2.0**-19, "fp16": 2.0**-18, "bf16": 2.0**-18}


@dataclass(frozen=True, slots=True)
class Given:
    """x: (B, N, d).  broken: images of it that are no numbers, whose scores must not be either."""

    name: str
    x: NDArray[np.float32]
    bank: Bank
    broken: tuple[int, ...] = ()


def bank_of(signatures: NDArray[np.float32], sigma: float, weights: NDArray[np.float64] | None = None) -> Bank:
    """With a self term of no meaning, which all only add."""
    m = len(signatures)
    weights = np.full(m, 1 / m) if weights is None else weights
    sources = (BankSource("drawn", "0" * 64),)
    return Bank(signatures.astype(np.float32), weights, sigma, 0.25, np.zeros(m, np.int32), sources, "0" * 64)


def drawn(images: int, patches: int, points: int, width: int, seed: int = 0) -> Given:
    """Signatures off centre, as learnt ones are; the bandwidth is the median distance."""
    generator = np.random.default_rng(seed)
    centre = generator.uniform(-3, 3, width)
    x = generator.normal(0.1, 1.1, (images, patches, width)) + centre
    r = generator.standard_normal((points, width), np.float32) + centre.astype(np.float32)
    return Given("random", x.astype(np.float32), bank_of(r, (2.0 * width) ** 0.5))


def all_given(width: int, images: int = 3, patches: int = 49, points: int = 500) -> Iterator[Given]:
    """Random signatures, and what kernels trip over."""
    given = drawn(images, patches, points, width)
    x, bank = given.x, given.bank
    generator = np.random.default_rng(1)
    yield given
    yield replace(given, name="signed weights", bank=replace(bank, weights=generator.normal(0, 1 / points, points)))
    yield replace(given, name="the bank's own points", x=np.resize(bank.signatures, x.shape).copy())
    twice = bank_of(np.repeat(bank.signatures[: points // 2], 2, axis=0), bank.sigma)
    yield Given("every point twice, every patch the same", np.repeat(x[:, :1], patches, axis=1), twice)
    yield replace(given, name="huge", x=(x * np.float32(1e6)))
    spoiled = x.copy()
    spoiled[1, patches // 2, width // 3] = np.nan
    spoiled[2, 0, 0] = np.inf
    yield Given("NaN in one image, an infinity in another", spoiled, bank, broken=(1, 2))
    yield Given("N = 1", x[:, :1].copy(), bank)
    yield Given("M = 1", x, bank_of(bank.signatures[:1], bank.sigma))
    near = bank.signatures[generator.integers(points, size=x.shape[:2])] + np.float32(0.02) * generator.standard_normal(
        x.shape, np.float32
    )
    yield Given("a bandwidth of a twentieth of the distances", near, bank_of(bank.signatures, bank.sigma / 20))
    many = 5 * patches + 11
    odd = bank_of(bank.signatures[: 2 * points // 3], 7.0)
    yield Given(f"B = 1, N = {many}, a tail everywhere", drawn(1, many, 1, width, 2).x, odd)


def real() -> tuple[Given, float]:
    """The examples as the starter signs them, against its bank; and how far real photographs' scores lie apart.

    That is one standard deviation among those it was calibrated on.  Raises ImportError without ONNX Runtime.
    """
    from mdmf_deploy.bundle.bundle import Bundle
    from mdmf_deploy.bundle.calibration import Calibration
    from mdmf_deploy.detection.pipeline import extract
    from mdmf_deploy.runtime.ort import OrtEngine

    bundle = Bundle.open("starter")
    files = sorted(path for path in EXAMPLES.rglob("*") if path.suffix in (".jpg", ".png", ".webp"))
    extracted = list(extract(files, OrtEngine(bundle), bundle.manifest.preprocessing))
    x = np.stack([one.signatures for one in extracted if one.signatures is not None])
    assert isinstance(bundle.calibration, Calibration)
    return Given(f"{len(x)} images, the starter's bank", x, bundle.bank), float(np.std(bundle.calibration.scores))


def expected(given: Given, kernel: Kernel) -> tuple[Scores, NDArray[np.float64]]:
    """float64 over the operands as the kernel rounds them; and the sum of every contribution's terms, (B, N)."""
    prepared = prepare_bank(given.bank, kernel)
    bank, weights = widened(prepared.operands), prepared.weights.astype(np.float64) * prepared.unit
    limit = float(np.finfo(np.float16).max) if kernel.operand == "fp16" else 2.0**56
    with np.errstate(over="ignore", invalid="ignore"):
        scaled = np.clip((given.x - prepared.centre) * np.float32(prepared.scale), -limit, limit)
    contributions, terms = np.empty(given.x.shape[:2]), np.empty(given.x.shape[:2])
    for image, rows in enumerate(scaled):
        x = widened(rounded(rows, kernel.operand))
        within = _kernel(x, x).mean(axis=1)
        cross = _kernel(x, bank)
        contributions[image] = within - 2 * cross @ weights + prepared.self_term
        terms[image] = within + 2 * cross @ np.abs(weights) + abs(prepared.self_term)
    return Scores(contributions.mean(axis=1), contributions), terms


def allowed(given: Given, kernel: Kernel, terms: NDArray[np.float64]) -> NDArray[np.float64]:
    """How far a contribution may be off, (B, N)."""
    relative = SUMS + (POLYNOMIAL if kernel.operand in ("fp16", "bf16") else 0.0)
    if kernel.version != "plain":
        prepared = prepare_bank(given.bank, kernel)
        relative += EXPONENT[kernel.operand] * float(prepared.half_norms.max())
    return relative * terms


def wrong(given: Given, kernel: Kernel, reduce: Callable[[NDArray[np.float32], Bank], Scores]) -> tuple[str, float]:
    """("", the largest error as a share of what is allowed), or what is wrong and that share."""
    scores = reduce(given.x, given.bank)
    exact, terms = expected(given, kernel)
    whole = [image for image in range(len(given.x)) if image not in given.broken]
    for image in given.broken:
        if not np.isnan(scores.mmd2[image]):
            return f"image {image} is no number, but scores {scores.mmd2[image]}", np.inf
    error = np.abs(scores.contributions - exact.contributions)[whole] / allowed(given, kernel, terms)[whole]
    error = np.append(error, np.abs(scores.mmd2 - scores.contributions.mean(axis=1))[whole] / 1e-12)
    share = float(np.max(error)) if np.isfinite(error).all() else np.inf
    again = reduce(given.x, given.bank)
    if not np.array_equal(again.contributions, scores.contributions, equal_nan=True):
        return "the same input gives other bits", share
    return ("" if share <= 1 else f"off by {share:.3g} times what is allowed"), share


def cost_of_operand(given: Given, reduce: Callable[[NDArray[np.float32], Bank], Scores]) -> float:
    """Largest relative error of a score, next to float64 over the signatures themselves."""
    exact = ReferenceReduction()(given.x, given.bank).mmd2
    return float(np.abs(reduce(given.x, given.bank).mmd2 / exact - 1).max())


def _kernel(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.exp2([-0.5 * np.einsum("md,md->m", b - row, b - row) for row in a])
