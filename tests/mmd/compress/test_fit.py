"""Compressing a bank: the error bound holds for every image, and the choice of points is good."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mdmf_deploy.bundle.bank import Bank, BankSource
from mdmf_deploy.errors import BankError
from mdmf_deploy.mmd.compress import fit
from mdmf_deploy.mmd.compress.bank_rows import MemoryRows
from mdmf_deploy.mmd.compress.fit import Fitted, OutOfReach, compress
from mdmf_deploy.mmd.compress.greedy import REGULARISER, Named
from mdmf_deploy.mmd.compress.kernel import CentredPoints, Embedding, GaussianKernel
from mdmf_deploy.mmd.reference import ReferenceReduction, bank_self_term, gaussian_kernel

SOURCES = (BankSource("a.jpg", "0" * 64),)


def mixture(count: int, width: int, seed: int, clusters: int = 5) -> np.ndarray:
    generator = np.random.default_rng(seed)
    centres = 2.0 * generator.standard_normal((clusters, width))
    return (centres[generator.integers(clusters, size=count)] + generator.standard_normal((count, width))).astype("f4")


def bank_of(signatures: np.ndarray, weights: np.ndarray, sigma: float, self_term: float) -> Bank:
    return Bank(signatures, weights, sigma, self_term, np.zeros(len(weights), np.int32), SOURCES, "0" * 64)


def compressed(signatures: np.ndarray, weights: np.ndarray, sigma: float, **options: float) -> Fitted:
    own = bank_self_term(signatures, weights, sigma)
    return compress(MemoryRows(signatures, weights), sigma, own, **options)  # type: ignore[arg-type]


def distance(bank: Bank, fitted: Fitted) -> float:
    """Return MMD(R, R') in float64, from direct differences."""
    points = np.concatenate([bank.signatures, fitted.signatures])
    v = np.concatenate([bank.weights, -fitted.weights])
    return float(np.sqrt(max(v @ gaussian_kernel(points, points, bank.sigma) @ v, 0.0)))


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 10**6),
    count=st.integers(1, 120),
    width=st.integers(1, 9),
    sigma=st.floats(0.05, 60.0),
    share=st.floats(0.02, 1.0),
    kind=st.sampled_from(["equal", "signed", "duplicates", "far"]),
)
def test_no_image_changes_by_more_than_the_error_bound(
    seed: int, count: int, width: int, sigma: float, share: float, kind: str
) -> None:
    generator = np.random.default_rng(seed)
    signatures = mixture(count, width, seed)
    if kind == "duplicates":
        signatures = signatures[generator.integers(max(count // 4, 1), size=count)]
    if kind == "far":
        signatures += 1000
    weights = generator.standard_normal(count) / count if kind == "signed" else np.full(count, 1.0 / count)
    fitted = compressed(signatures, weights, sigma, points=max(int(share * count), 1))
    before = bank_of(signatures, weights, sigma, bank_self_term(signatures, weights, sigma))
    after = bank_of(fitted.signatures, fitted.weights, sigma, fitted.self_term)
    anywhere = generator.standard_normal((4, 3, width)) * generator.choice([0.1, 1.0, 5.0], (4, 1, 1)) + signatures[0]
    # Images made of the bank's own points are the hardest.
    images = np.concatenate([anywhere, signatures[generator.integers(count, size=(4, 3))]]).astype(np.float32)
    changes = [np.sqrt(np.maximum(ReferenceReduction()(images, bank).mmd2, 0.0)) for bank in (before, after)]
    # Where MMD is 0, its computed value is the root of a rounding error.
    assert np.abs(changes[1] - changes[0]).max() <= fitted.mmd + 1e-7
    assert distance(before, fitted) <= fitted.mmd + 1e-8
    # The bound is no looser than rounding makes it, which grows with the bank's width in bandwidths.
    radius = ((signatures - signatures.mean(axis=0)) ** 2).sum(axis=1).max() / (2.0 * sigma**2)
    mass = np.abs(weights).sum() + np.abs(fitted.weights).sum()
    assert fitted.mmd <= distance(before, fitted) + mass * np.sqrt(2e-14 * (4.0 * radius + 10.0))


def test_weights_solve_the_normal_equations() -> None:
    signatures, weights = mixture(300, 6, 0), np.full(300, 1 / 300)
    fitted = compressed(signatures, weights, 2.0, points=40)
    inner = gaussian_kernel(fitted.signatures, fitted.signatures, 2.0)
    right = gaussian_kernel(fitted.signatures, signatures, 2.0) @ weights
    np.testing.assert_allclose(inner @ fitted.weights + REGULARISER * fitted.weights, right, atol=1e-13)
    assert fitted.self_term == pytest.approx(fitted.weights @ inner @ fitted.weights, rel=1e-12)
    np.testing.assert_array_equal(fitted.signatures, signatures[fitted.places])
    assert (np.diff(fitted.places) > 0).all()


@pytest.mark.parametrize("sigma", [1.0, 3.0, 8.0])
def test_the_choice_beats_chance(sigma: float) -> None:
    signatures, weights = mixture(1500, 8, 1), np.full(1500, 1 / 1500)
    own = bank_self_term(signatures, weights, sigma)
    chance = []
    for seed in range(5):
        some = signatures[np.random.default_rng(seed).choice(1500, 60, replace=False)]
        inner = gaussian_kernel(some, some, sigma) + REGULARISER * np.eye(60)
        z = gaussian_kernel(some, signatures, sigma) @ weights
        chance.append(np.sqrt(own - z @ np.linalg.solve(inner, z)))
    assert compressed(signatures, weights, sigma, points=60).mmd < 0.8 * min(chance)


def test_as_few_points_as_the_error_needs() -> None:
    signatures, weights = mixture(600, 5, 2), np.full(600, 1 / 600)
    fitted = compressed(signatures, weights, 2.5, max_mmd=0.01)
    assert 0.009 < fitted.mmd <= 0.01
    # Steps come in blocks, whose size depends slightly on the number of points asked for.
    assert compressed(signatures, weights, 2.5, points=len(fitted.weights)).mmd == pytest.approx(fitted.mmd, rel=0.01)
    assert compressed(signatures, weights, 2.5, points=round(0.97 * len(fitted.weights))).mmd > 0.01


def test_a_bound_out_of_reach_is_an_error_that_reports_the_best_one() -> None:
    signatures, weights = mixture(60, 5, 2), np.full(60, 1 / 60)
    with pytest.raises(OutOfReach, match=r"bank: \d+ points of 60 change MMD by up to") as caught:
        compressed(signatures, weights, 2.5, max_mmd=1e-12)
    assert caught.value.mmd > 1e-12


@pytest.mark.parametrize("kind", ["any", "identical", "weightless"])
@pytest.mark.parametrize("options", [{"points": 1}, {"max_mmd": 0.9}, {"max_mmd": 1e9}, {"max_mmd": 1e200}])
@pytest.mark.parametrize("few", [16, 16_384])
def test_at_least_one_point_is_kept(
    kind: str, options: dict[str, float], few: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An empty bank would meet these bounds. In a bank without weights no point lowers MMD, either."""
    monkeypatch.setattr(fit, "FIRST_CANDIDATES", few)
    signatures, weights = mixture(60, 4, 7), np.full(60, 1 / 60)
    if kind == "identical":
        signatures[:] = signatures[0]
    if kind == "weightless":
        weights[:] = 0.0
    fitted = compressed(signatures, weights, 3.0, **options)
    assert len(fitted.weights) == 1
    before = bank_of(signatures, weights, 3.0, 0.0)
    assert distance(before, fitted) <= fitted.mmd + 1e-8
    assert fitted.mmd <= options.get("max_mmd", 1.0)


@pytest.mark.parametrize("points", [0, -1])
def test_no_points_at_all_are_refused(points: int) -> None:
    with pytest.raises(BankError, match=f"points: expected 1 or more, got {points}"):
        compressed(mixture(9, 3, 5), np.full(9, 1 / 9), 1.0, points=points)


def test_duplicates_are_taken_once() -> None:
    signatures = np.repeat(mixture(5, 3, 3), 20, axis=0)
    fitted = compressed(signatures, np.full(100, 0.01), 1.0, points=50)
    assert len(fitted.weights) == len(np.unique(fitted.signatures, axis=0)) == 5
    np.testing.assert_allclose(fitted.weights, 0.2, rtol=1e-6)
    assert fitted.mmd < 1e-5


@pytest.mark.parametrize(("sigma", "mmd"), [(1e-3, np.sqrt(60) / 80), (1e5, 0.0)])
def test_any_bandwidth_will_do(sigma: float, mmd: float) -> None:
    fitted = compressed(mixture(80, 4, 4), np.full(80, 1 / 80), sigma, points=20)
    # With the small bandwidth, points do not see each other: each keeps its own weight, and the rest is lost.
    assert fitted.mmd == pytest.approx(mmd, abs=1e-5)


@pytest.mark.parametrize("bad", ["weights", "signatures"])
@pytest.mark.parametrize("few", [4, 100])
def test_values_that_are_not_finite_are_refused(bad: str, few: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fit, "FIRST_CANDIDATES", few)
    signatures, weights = mixture(30, 3, 5), np.full(30, 1 / 30)
    (signatures if bad == "signatures" else weights)[7] = np.nan
    with pytest.raises(BankError, match="rows 0 to 29 are not finite"):
        compress(MemoryRows(signatures, weights), 1.0, 0.5, points=4)


def test_too_little_memory_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def greedy(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr(fit, "choose", greedy)
    with pytest.raises(BankError, match="give fewer --candidates"):
        compressed(mixture(30, 3, 5), np.full(30, 1 / 30), 1.0, points=4)


def test_a_large_bank_is_thinned_first_and_hardly_worse_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    signatures, weights = mixture(1200, 6, 6), np.full(1200, 1 / 1200)
    best = compressed(signatures, weights, 2.0, points=50).mmd
    monkeypatch.setattr(fit, "SAMPLE", 1000)
    monkeypatch.setattr(fit, "FIRST_CANDIDATES", 200)
    monkeypatch.setattr("mdmf_deploy.mmd.compress.greedy.NEIGHBOURHOOD", 200)
    thinned = compressed(signatures, weights, 2.0, points=50, candidates=200)
    assert len(thinned.weights) == 50
    assert best < thinned.mmd < 1.2 * best
    before = bank_of(signatures, weights, 2.0, 0.0)
    assert distance(before, thinned) <= thinned.mmd + 1e-8


def test_all_candidates_are_tried_if_the_first_were_too_few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fit, "FIRST_CANDIDATES", 30)
    tried: list[int] = []
    embed = fit.embed

    def counted(rows: object, points: CentredPoints, *rest: object) -> Embedding:
        tried.append(len(points))
        return embed(rows, points, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(fit, "embed", counted)
    estimate = fit.name_candidates

    def hopeful(*arguments: object) -> Named:
        named = estimate(*arguments)  # type: ignore[arg-type]
        return Named(named.places, named.remaining / 100.0)

    monkeypatch.setattr(fit, "name_candidates", hopeful)
    fitted = compressed(mixture(600, 5, 2), np.full(600, 1 / 600), 2.5, max_mmd=0.01)
    assert fitted.mmd <= 0.01
    assert len(tried) == 2
    assert tried[0] < len(fitted.weights) < tried[1]


def test_candidates_are_named_by_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only points of the left half have a weight, so only they are kept."""
    monkeypatch.setattr(fit, "FIRST_CANDIDATES", 40)
    signatures = mixture(400, 3, 9)
    left = signatures[:, 0] < np.median(signatures[:, 0])
    fitted = compressed(signatures, left / left.sum(), 0.3, points=30)
    assert left[fitted.places].all()


def test_the_number_of_threads_changes_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    signatures, weights = mixture(900, 7, 8), np.full(900, 1 / 900)
    found = []
    for threads in (1, 3):
        monkeypatch.setattr("mdmf_deploy.mmd.compress.kernel.cores", lambda threads=threads: threads)
        found.append(compressed(signatures, weights, 2.0, points=300))
    np.testing.assert_array_equal(found[0].weights, found[1].weights)
    assert (found[0].mmd, found[0].self_term) == (found[1].mmd, found[1].self_term)


@pytest.mark.parametrize("rounding", [3e-8, 3e-6])
def test_more_points_make_up_for_rounding_in_the_error_bound(rounding: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """For a million signatures, rounding may well exceed a hundredth of the squared error."""
    signatures, weights = mixture(600, 5, 2), np.full(600, 1 / 600)
    easy = compressed(signatures, weights, 2.5, max_mmd=0.004)
    monkeypatch.setattr(GaussianKernel, "rounding", lambda *_: rounding)
    fitted = compressed(signatures, weights, 2.5, max_mmd=0.004)
    assert fitted.mmd <= 0.004
    assert len(easy.weights) <= len(fitted.weights) < 1.5 * len(easy.weights)
