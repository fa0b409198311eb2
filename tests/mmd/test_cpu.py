"""The CPU reduction's own promises: the same bits however work is shared, and bounded memory. Leave-one-out scores."""

from __future__ import annotations

import dataclasses
import tracemalloc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext

import numpy as np
import pytest
from helpers.float32_mmd import EPS, naive_float32
from hypothesis import given, settings
from hypothesis import strategies as st
from threadpoolctl import threadpool_limits

from mdmf_deploy.bundle.bank import Bank, BankSource
from mdmf_deploy.errors import BankError
from mdmf_deploy.mmd import cpu, operands
from mdmf_deploy.mmd.cpu import CpuReduction, leave_one_out
from mdmf_deploy.mmd.operands import BankOperands, aligned
from mdmf_deploy.mmd.reference import ReferenceReduction, uniform_bank
from mdmf_deploy.mmd.threads import share_out


def make(kind: str, b: int, n: int, m: int, d: int, seed: int = 0) -> tuple[np.ndarray, Bank]:
    """Return signatures (b, n, d) and a bank that needs float32, float64 exponents, or float64 throughout."""
    generator = np.random.default_rng(seed)
    x = generator.normal(0.2, 1.1, (b, n, d)).astype(np.float32)
    r = generator.normal(0.0, 1.0, (m, d)).astype(np.float32)
    weights = generator.normal(0, 20 / m, m) if kind == "amplified" else np.full(m, 1 / m)
    sigma = (3 + d) ** 0.5 / (8 if kind == "steep" else 1)
    # The self term is made up: the true one takes longer than everything else, and the reduction only adds it.
    bank = Bank(r, weights, sigma, 0.25, np.zeros(m, np.int32), (BankSource("a.png", "0" * 64),), "1" * 64)
    points = BankOperands(bank)
    exponent, value = {"plain": "ff", "steep": "df", "amplified": "dd"}[kind]
    assert (points.exponent, points.value) == (np.dtype(exponent), np.dtype(value))
    return x, bank


def peak_of(call: Callable[[], object]) -> int:
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


KINDS = ["plain", "steep", "amplified"]


@pytest.fixture
def _shared_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let threads share even a small amount of work, in several tiles and blocks."""
    monkeypatch.setattr(cpu, "WORK_PER_THREAD", 1)
    monkeypatch.setattr(cpu, "LONGEST_TILE", 8 * operands.RUN)
    monkeypatch.setattr(cpu, "BLOCKS", 3)


@pytest.mark.usefixtures("_shared_out")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("n", "m", "d"), [(49, 1700, 64), (1, 1000, 128), (7, 900, 1), (256, 1300, 5)])
def test_the_same_bits_for_any_batch_threads_and_call(kind: str, n: int, m: int, d: int) -> None:
    x, bank = make(kind, 7, n, m, d)
    alone = CpuReduction(1)
    expected = np.concatenate([alone(image[None], bank).contributions for image in x])
    assert expected == pytest.approx(ReferenceReduction()(x, bank).contributions, abs=4 * EPS)
    for threads in (1, 2, 5):
        reduction = CpuReduction(threads)
        for order in (np.arange(7), np.arange(7)[::-1], np.array([3, 3, 0]), np.array([6, 1])):
            for _ in range(2):
                assert np.array_equal(reduction(x[order], bank).contributions, expected[order])


@pytest.mark.usefixtures("_shared_out")
@pytest.mark.parametrize("kind", KINDS)
def test_the_same_bits_for_any_number_of_blas_threads(kind: str) -> None:
    x, bank = make(kind, 3, 49, 1500, 64)
    results = []
    for limit in (1, 2, 4):
        with threadpool_limits(limit, user_api="blas"):
            results.append(CpuReduction(2)(x, bank).contributions)
    assert np.array_equal(results[0], results[1])
    assert np.array_equal(results[0], results[2])


def test_blas_has_one_thread_while_tiles_are_shared_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """With more threads, equal bits would be luck."""
    x, bank = make("plain", 2, 5, 100, 3)
    seen: list[int] = []
    monkeypatch.setattr(cpu, "one_blas_thread", lambda: nullcontext(seen.append(1)))
    monkeypatch.setattr(cpu, "share_out", lambda *work: (seen.append(2), share_out(*work)))
    CpuReduction()(x, bank)
    assert seen == [1, 2, 2]


@pytest.mark.usefixtures("_shared_out")
def test_the_same_bits_from_several_callers_at_once() -> None:
    x, bank = make("plain", 6, 20, 1500, 32)
    reduction = CpuReduction(2)
    expected = reduction(x, bank).contributions
    with ThreadPoolExecutor(4) as pool:
        futures = [pool.submit(reduction, x[i % 6 : i % 6 + 1], bank) for i in range(24)]
        for i, future in enumerate(futures):
            assert np.array_equal(future.result().contributions[0], expected[i % 6])


def test_the_same_bits_in_parts_of_a_large_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    x, bank = make("plain", 9, 5, 300, 8)
    whole = CpuReduction()(x, bank).contributions
    monkeypatch.setattr(cpu, "MAX_ROWS", 11)
    assert np.array_equal(CpuReduction()(x, bank).contributions, whole)


@pytest.mark.parametrize("kind", ["steep", "amplified"])
def test_the_same_bits_from_a_bank_too_large_to_copy(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x, bank = make(kind, 2, 49, 5000, 16)
    kept = CpuReduction()(x, bank).contributions
    monkeypatch.setattr(operands, "LARGEST_COPY", 0)
    assert np.array_equal(CpuReduction()(x, bank).contributions, kept)


@pytest.mark.usefixtures("_shared_out")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, 3e38])
def test_an_image_that_is_not_finite_affects_no_other(kind: str, bad: float) -> None:
    x, bank = make(kind, 3, 9, 700, 4)
    expected = CpuReduction()(x, bank).contributions
    x[1, 4, 2] = bad
    contributions = CpuReduction(2)(x, bank).contributions
    assert np.array_equal(contributions[[0, 2]], expected[[0, 2]])
    if bad == np.nan:
        assert np.isnan(contributions[1]).all()


@settings(deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    kind=st.sampled_from(KINDS),
    b=st.integers(1, 3),
    n=st.integers(1, 60),
    m=st.integers(1, 700),
    d=st.integers(1, 40),
    binary=st.booleans(),
)
def test_any_shape_and_weights_within_the_rule(
    seed: int, kind: str, b: int, n: int, m: int, d: int, binary: bool
) -> None:
    generator = np.random.default_rng(seed)
    x = generator.normal(3.2, 1.1, (b, n, d)).astype(np.float32)
    r = generator.normal(3.0, 1.0, (m, d)).astype(np.float32)
    weights = generator.normal(0, 3, m) if kind == "amplified" else np.full(m, 1 / m)
    sigma = (3 + d) ** 0.5 / (8 if kind == "steep" else 1)
    bank = Bank(r, weights, sigma, 0.0, np.zeros(m, np.int32), (BankSource("a.png", "0" * 64),), "1" * 64)
    exact = ReferenceReduction()(x, bank).contributions
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(operands, "FAST_EXP2", binary)
        contributions = CpuReduction()(x, bank).contributions
    # Stricter than the tolerance rule where weights amplify errors: float64 leaves nothing to amplify.
    total = np.abs(weights).sum()
    baseline = np.array([naive_float32(image, bank) for image in x])
    allowed = 1e-13 * total if total > 1.5 else 2 * np.abs(baseline - exact).max() + 4 * EPS
    assert np.abs(contributions - exact).max() <= allowed


@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize("distance", [0.0, 10.0, 18.0, 40.0, 1e4, 1e18, 1e20])
def test_images_far_from_the_bank(distance: float, binary: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operands, "FAST_EXP2", binary)
    x, bank = make("plain", 1, 6, 300, 4)
    x += np.float32(distance)
    exact, scores = ReferenceReduction()(x, bank), CpuReduction()(x, bank)
    assert scores.mmd2 == pytest.approx(exact.mmd2, abs=4 * EPS)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("value", [1e37, 1e38, -3e38])
def test_an_image_whose_terms_all_overflow_is_far_away(kind: str, value: float) -> None:
    _, bank = make(kind, 1, 6, 300, 4)
    narrow = dataclasses.replace(bank, signatures=bank.signatures / 100, sigma=bank.sigma / 100)
    x = np.full((1, 6, 4), value, np.float32)
    assert CpuReduction()(x, narrow).mmd2 == pytest.approx([1 + narrow.self_term])


def test_exp2_never_gets_inputs_that_make_it_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operands, "FAST_EXP2", True)
    x, bank = make("plain", 1, 6, 300, 4)
    points = BankOperands(bank)
    chosen = []
    for distance in np.linspace(0, 40, 81, dtype=np.float32):
        columns = aligned((6, 6), np.float32)
        _, exp = operands.image_operands(x[0] + distance, points, columns, 1000)
        if exp is np.exp2:
            assert (points.tile(0, points.rows)[:300] @ columns).min() > -126
        chosen.append(exp)
    assert chosen[0] is np.exp2
    assert chosen[-1] is np.exp


@pytest.mark.parametrize("kind", KINDS)
def test_memory_does_not_grow_with_the_kernel_matrix(kind: str) -> None:
    x, bank = make(kind, 40, 49, 30_000, 4)
    peak = peak_of(lambda: CpuReduction(2)(x, bank))
    copy = 30_000 * (4 + 2) * 8
    # The kernel values of one image would be 5.9 MB in float32, those of all images 235 MB.
    assert peak < copy + 5e6


def test_memory_does_not_grow_with_the_patches_of_an_image() -> None:
    x, bank = make("plain", 1, 3000, 3000, 3)
    reduction = CpuReduction(1)
    # The image's own kernel matrix would be 72 MB, a tile of full length 25 MB.
    assert peak_of(lambda: reduction(x, bank)) < 5e6


def test_memory_does_not_grow_with_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "LONGEST_TILE", 4 * operands.RUN)
    monkeypatch.setattr(cpu, "MAX_ROWS", 490)
    x, bank = make("plain", 400, 49, 6400, 3)
    # Sums of 50 blocks for all 400 images would be 7.8 MB.
    assert peak_of(lambda: CpuReduction(2)(x, bank)) < 2e6


def test_a_very_wide_image_has_a_finite_score() -> None:
    x, bank = make("plain", 1, 20, 100, 4)
    for scale in (1e8, 1e12, 1e18):
        assert 0 <= CpuReduction()(x * np.float32(scale), bank).mmd2[0] <= 1.25


def test_a_large_bank_is_held_at_most_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operands, "LARGEST_COPY", 1 << 20)
    for kind, copies in (("plain", 1), ("steep", 0), ("amplified", 0)):
        _, bank = make(kind, 1, 1, 100_000, 16)
        # Every bank keeps its weights, 8 bytes each.
        weights = 100_000 * 8
        points = BankOperands(bank)
        peak = peak_of(lambda bank=bank: BankOperands(bank))
        assert peak < copies * bank.signatures.nbytes * 18 / 16 + 2 * weights + 2.5e6
        assert points.rows % operands.RUN == 0
        assert 0 <= points.rows - 100_000 < operands.RUN


def test_the_within_image_term_is_the_same_in_pieces() -> None:
    x, bank = make("plain", 1, 50, 10, 3)
    points, columns = BankOperands(bank), aligned((5, 50), np.float32)
    whole, _ = operands.image_operands(x[0], points, columns, 1 << 20)
    for most in (1, 50, 777):
        pieces, _ = operands.image_operands(x[0], points, columns, most)
        assert pieces == pytest.approx(whole, rel=1e-14)


def test_arrays_begin_at_64_bytes() -> None:
    for shape in ((3,), (7, 130)):
        for dtype in (np.float32, np.float64):
            array = aligned(shape, dtype)
            assert array.shape == shape
            assert array.dtype == dtype
            assert array.ctypes.data % 64 == 0


def test_another_bank_is_prepared_in_place_of_the_last() -> None:
    x, bank = make("plain", 1, 5, 100, 3)
    reduction = CpuReduction()
    before = reduction(x, bank).mmd2
    after = reduction(x, dataclasses.replace(bank, self_term=bank.self_term + 1)).mmd2
    assert after == pytest.approx(before + 1)


def test_equal_weights_are_not_rounded() -> None:
    """Rounding 1/M to float32 would shift every score in the same direction."""
    _, bank = make("plain", 1, 1, 77, 3)
    points = BankOperands(bank)
    assert (points.weights[:77] == 1).all()
    assert not points.weights[77:].any()
    assert points.unit == bank.weights[0]


def bank_of(signatures: np.ndarray, source: np.ndarray) -> Bank:
    sources = tuple(BankSource(f"{i}.jpg", f"{i:064}") for i in range(source.max() + 1))
    return uniform_bank(
        signatures.astype(np.float32), 1.3, source=source.astype(np.int32), sources=sources, model_sha256="0" * 64
    )


def test_leaving_an_image_out_equals_a_bank_built_without_it() -> None:
    generator = np.random.default_rng(0)
    source = np.array([0] * 4 + [1] * 2 + [2] * 5 + [3] * 1)
    signatures = generator.standard_normal((len(source), 6)) + source[:, None]
    slow = []
    for image in range(4):
        rest = bank_of(signatures[source != image], np.unique(source[source != image], return_inverse=True)[1])
        slow.append(ReferenceReduction()(signatures[None, source == image].astype(np.float32), rest).mmd2[0])
    np.testing.assert_allclose(leave_one_out(bank_of(signatures, source)), slow, rtol=1e-4, atol=1e-6)


def test_a_sample_of_the_images_left_out_is_evenly_spaced_and_scored_alike() -> None:
    generator = np.random.default_rng(1)
    source = np.repeat(np.arange(9), 2)
    bank = bank_of(generator.standard_normal((18, 3)), source)
    assert leave_one_out(bank, at_most=3) == pytest.approx(leave_one_out(bank)[[0, 4, 8]])


def test_the_only_image_cannot_be_left_out() -> None:
    with pytest.raises(BankError, match="at least two"):
        leave_one_out(bank_of(np.ones((3, 2)), np.zeros(3, int)))
