"""Every reduction agrees with the float64 specification, and the specification with the formula."""

from __future__ import annotations

import dataclasses
import math
from contextlib import nullcontext

import numpy as np
import pytest
from fakes.on_host import host_device
from helpers.float32_mmd import EPS, naive_float32
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics.pairwise import rbf_kernel

from mdmf_deploy.bundle.bank import Bank, BankSource
from mdmf_deploy.errors import ShapeMismatch
from mdmf_deploy.mmd import Reduction, Scores, check_shape, reference
from mdmf_deploy.mmd.cpu import CpuReduction
from mdmf_deploy.mmd.cuda.kernels import WIDTHS
from mdmf_deploy.mmd.cuda.reduction import CudaReduction
from mdmf_deploy.mmd.reference import ReferenceReduction, bank_self_term, gaussian_kernel, uniform_bank


class OnFakeGpu:
    """The GPU reduction with its plain kernels built for this machine. Signatures are padded with zeros to their width.

    cuda/test_reduction.py tests the other versions, which take longer here.
    """

    name = "cuda"

    def __init__(self) -> None:
        self._reduction = CudaReduction(host_device(), operand="fp32", version="plain")
        self._wide: tuple[Bank, Bank] | None = None

    def __call__(self, signatures: np.ndarray, bank: Bank) -> Scores:
        check_shape(signatures.shape, bank)
        if self._wide is None or self._wide[0] is not bank:
            self._wide = bank, dataclasses.replace(bank, signatures=widened(bank.signatures))
        return self._reduction(widened(signatures), self._wide[1])


def widened(signatures: np.ndarray) -> np.ndarray:
    width = next(width for width in WIDTHS if width >= signatures.shape[-1])
    return np.pad(signatures, [(0, 0)] * (signatures.ndim - 1) + [(0, width - signatures.shape[-1])])


REDUCTIONS = [ReferenceReduction, CpuReduction, OnFakeGpu]


def make_bank(signatures: np.ndarray, sigma: float, weights: np.ndarray | None = None) -> Bank:
    m = len(signatures)
    bank = uniform_bank(
        np.asarray(signatures, np.float32),
        sigma,
        source=np.zeros(m, np.int32),
        sources=(BankSource("a.png", "0" * 64),),
        model_sha256="1" * 64,
    )
    if weights is None:
        return bank
    return dataclasses.replace(bank, weights=weights, self_term=bank_self_term(bank.signatures, weights, sigma))


def draw(seed: int, b: int, n: int, m: int, d: int, spread: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Return signatures (b, n, d) and a bank's (m, d), off centre like learnt ones."""
    generator = np.random.default_rng(seed)
    centre = generator.uniform(-3, 3, d)
    x = spread * 1.2 * generator.standard_normal((b, n, d)) + centre + 0.2
    r = spread * generator.standard_normal((m, d)) + centre
    return x.astype(np.float32), r.astype(np.float32)


def triple_loop(x: np.ndarray, bank: Bank) -> float:
    """The formula of docs/method.md, "The score", for one image, written out literally in Python's float64."""

    def k(a: np.ndarray, b: np.ndarray) -> float:
        return math.exp(-sum((float(p) - float(q)) ** 2 for p, q in zip(a, b, strict=True)) / (2 * bank.sigma**2))

    within = sum(k(a, b) for a in x for b in x) / len(x) ** 2
    r, w = bank.signatures, bank.weights
    self_term = sum(w[i] * w[j] * k(r[i], r[j]) for i in range(len(r)) for j in range(len(r)))
    cross = sum(w[j] * k(a, r[j]) for a in x for j in range(len(r))) / len(x)
    return within + self_term - 2 * cross


@settings(deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    n=st.integers(1, 5),
    m=st.integers(1, 6),
    d=st.integers(1, 4),
    sigma=st.floats(0.2, 5),
    signed=st.booleans(),
)
def test_the_specification_is_the_formula(seed: int, n: int, m: int, d: int, sigma: float, signed: bool) -> None:
    x, r = draw(seed, 1, n, m, d)
    bank = make_bank(r, sigma, np.random.default_rng(seed).normal(size=m) if signed else None)
    scores = ReferenceReduction()(x, bank)
    assert scores.mmd2[0] == pytest.approx(triple_loop(x[0], bank), abs=1e-12)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize(
    ("n", "m", "d", "sigma"), [(49, 8192, 64, 8.0), (49, 3000, 128, 16.0), (1, 1, 1, 1.0), (16, 1025, 32, 2.0)]
)
def test_within_the_tolerance_rule(reduction: type[Reduction], n: int, m: int, d: int, sigma: float) -> None:
    """The error is at most twice that of plain float32, plus rounding."""
    x, r = draw(n + m, 2, n, m, d)
    bank = make_bank(r, sigma)
    exact, scores = ReferenceReduction()(x, bank), reduction()(x, bank)
    for image in range(len(x)):
        baseline = naive_float32(x[image], bank)
        allowed = 2 * np.abs(baseline - exact.contributions[image]).max() + 4 * EPS
        assert np.abs(scores.contributions[image] - exact.contributions[image]).max() <= allowed
        allowed = 2 * abs(float(baseline.mean(dtype=np.float32)) - exact.mmd2[image]) + 4 * EPS
        assert abs(scores.mmd2[image] - exact.mmd2[image]) <= allowed
        assert scores.mmd2[image] == pytest.approx(exact.mmd2[image], rel=1e-6, abs=4 * EPS)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("seed", range(8))
def test_a_bank_much_wider_than_its_bandwidth_costs_no_accuracy(reduction: type[Reduction], seed: int) -> None:
    """One GEMM in float32 would lose the kernel value in the rounding of its exponent."""
    _, r = draw(seed, 1, 1, 6, 3, spread=20.0)
    bank = make_bank(r, 0.5)
    x = r[None] + np.float32(0.3)
    assert reduction()(x, bank).mmd2 == pytest.approx(ReferenceReduction()(x, bank).mmd2, abs=4 * EPS)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_agrees_with_scikit_learn(reduction: type[Reduction]) -> None:
    x, r = draw(3, 3, 7, 40, 5)
    sigma = 1.7
    gamma = 1 / (2 * sigma**2)
    scores = reduction()(x, make_bank(r, sigma))
    for image in range(len(x)):
        own, reference = x[image].astype(float), r.astype(float)
        expected = rbf_kernel(own, gamma=gamma).mean() + rbf_kernel(reference, gamma=gamma).mean()
        expected -= 2 * rbf_kernel(own, reference, gamma=gamma).mean()
        assert scores.mmd2[image] == pytest.approx(expected, abs=4 * EPS)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_an_image_scores_the_same_bits_in_any_batch(reduction: type[Reduction]) -> None:
    x, r = draw(5, 33, 49, 2500, 16)
    bank = make_bank(r, 4.0)
    whole = reduction()(x, bank)
    for size in (1, 7, 32):
        parts: list[Scores] = [reduction()(x[start : start + size], bank) for start in range(0, len(x), size)]
        assert np.array_equal(np.concatenate([part.mmd2 for part in parts]), whole.mmd2)
        assert np.array_equal(np.concatenate([part.contributions for part in parts]), whole.contributions)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 2**32 - 1), sigma=st.floats(0.1, 20), n=st.integers(1, 9), m=st.integers(1, 30))
def test_laws(reduction: type[Reduction], seed: int, sigma: float, n: int, m: int) -> None:
    x, r = draw(seed, 2, n, m, 3)
    bank = make_bank(r, sigma)
    scores = reduction()(x, bank)
    rounding = 8 * EPS
    assert scores.mmd2.shape == (2,)
    assert scores.contributions.shape == (2, n)
    assert scores.contributions.mean(axis=1) == pytest.approx(scores.mmd2, abs=1e-15)
    assert (scores.mmd2 >= -rounding).all()
    # The distance of the bank's own signatures to the bank is 0.
    assert reduction()(bank.signatures[None], bank).mmd2[0] == pytest.approx(0, abs=rounding)
    # The order of bank and patches does not matter.
    order = np.random.default_rng(seed).permutation(m)
    assert reduction()(x, make_bank(r[order], sigma)).mmd2 == pytest.approx(scores.mmd2, abs=rounding)
    assert reduction()(x[:, ::-1], bank).contributions[:, ::-1] == pytest.approx(scores.contributions, abs=rounding)
    # A point that comes twice counts like one with twice the weight.
    doubled = make_bank(np.concatenate([r, r]), sigma)
    assert reduction()(x, doubled).mmd2 == pytest.approx(scores.mmd2, abs=rounding)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 2**32 - 1), sigma=st.floats(0.5, 5))
def test_contributions_are_a_minus_2b_plus_c_for_signed_weights(
    reduction: type[Reduction], seed: int, sigma: float
) -> None:
    x, r = draw(seed, 1, 6, 12, 3)
    weights = np.random.default_rng(seed).normal(size=12)
    bank = make_bank(r, sigma, weights)
    a = gaussian_kernel(x[0], x[0], sigma).mean(axis=1)
    b = gaussian_kernel(x[0], r, sigma) @ weights
    c = weights @ gaussian_kernel(r, r, sigma) @ weights
    scores = reduction()(x, bank)
    allowed = 8 * EPS * (1 + np.abs(weights).sum())
    assert scores.contributions[0] == pytest.approx(a - 2 * b + c, abs=allowed)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_one_reduction_serves_several_banks(reduction: type[Reduction]) -> None:
    x, r = draw(8, 1, 4, 20, 3)
    banks = [make_bank(r, 1.0), make_bank(r[:9] + 1, 2.0)]
    served = reduction()
    for bank in [*banks, *banks]:
        assert served(x, bank).mmd2[0] == reduction()(x, bank).mmd2[0]


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("shape", [(2, 4, 5), (4, 3), (2, 0, 3)])
def test_wrong_shapes_are_refused(reduction: type[Reduction], shape: tuple[int, ...]) -> None:
    _, r = draw(8, 1, 4, 20, 3)
    with pytest.raises(ShapeMismatch, match=r"expected \(B, N, 3\)"):
        reduction()(np.zeros(shape, np.float32), make_bank(r, 1.0))


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_no_images_give_no_scores(reduction: type[Reduction]) -> None:
    _, r = draw(8, 1, 4, 20, 3)
    scores = reduction()(np.zeros((0, 4, 3), np.float32), make_bank(r, 1.0))
    assert scores.mmd2.shape == (0,)


@settings(deadline=None)
@given(seed=st.integers(0, 2**32 - 1), sigma=st.floats(0.1, 10))
def test_the_bank_term_is_the_sum_over_all_pairs(seed: int, sigma: float) -> None:
    generator = np.random.default_rng(seed)
    r = generator.normal(5, 1, (11, 3))
    weights = generator.normal(size=11)
    assert bank_self_term(r, weights, sigma) == pytest.approx(
        weights @ gaussian_kernel(r, r, sigma) @ weights, abs=1e-11
    )


def test_the_bank_term_is_the_same_over_several_tiles() -> None:
    generator = np.random.default_rng(0)
    r, weights = generator.normal(size=(2100, 3)), generator.normal(size=2100)
    assert bank_self_term(r, weights, 1.0) == pytest.approx(weights @ gaussian_kernel(r, r, 1.0) @ weights, rel=1e-10)


def test_the_bank_term_is_the_same_bits_on_any_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(0)
    r, weights = generator.normal(size=(1700, 3)).astype(np.float32), generator.normal(size=1700)
    limited: list[int] = []
    monkeypatch.setattr(reference, "one_blas_thread", lambda: nullcontext(limited.append(1)))
    terms = set()
    for threads in (1, 2, 5):
        monkeypatch.setattr(reference, "cores", lambda threads=threads: threads)
        terms.add(bank_self_term(r, weights, 1.0))
    assert len(terms) == 1
    assert len(limited) == 3
