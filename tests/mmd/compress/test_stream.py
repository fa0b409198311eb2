"""Compressing a bank that is never whole in memory: the error bound still holds, and few blocks are held."""

from __future__ import annotations

import weakref
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mdmf_deploy.bundle.bank import Bank, BankSource
from mdmf_deploy.errors import BankError
from mdmf_deploy.mmd.compress import stream
from mdmf_deploy.mmd.compress.bank_rows import MemoryRows
from mdmf_deploy.mmd.compress.fit import Fitted, compress
from mdmf_deploy.mmd.compress.stream import Gathered, Gathering
from mdmf_deploy.mmd.reference import ReferenceReduction, gaussian_kernel, uniform_bank

SIGMA = 1.5
Images = list[tuple[str, np.ndarray]]


def drifting(sizes: list[int], width: int, seed: int, drift: float) -> Images:
    """Return images whose signatures drift, so that no block is like the others."""
    generator = np.random.default_rng(seed)
    return [
        (f"{generator.integers(2**32):032x}{place:032x}", generator.standard_normal((size, width)) + drift * place)
        for place, size in enumerate(sizes)
    ]


def gather(images: Images, points: int, block: int, per_block: int, sigma: float = SIGMA) -> Gathered:
    taker = Gathering(sigma, points, block=block, per_block=per_block)
    for sha256, signatures in images:
        taker.add(sha256, signatures.astype(np.float32))
    return taker.result()


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=60),
    width=st.integers(1, 5),
    drift=st.sampled_from([0.0, 0.1, 1.0]),
    sigma=st.floats(0.1, 20.0),
    points=st.integers(1, 12),
    per_block=st.integers(1, 8),
    block=st.integers(4, 40),
)
def test_no_image_changes_by_more_than_the_error_bound(
    seed: int, sizes: list[int], width: int, drift: float, sigma: float, points: int, per_block: int, block: int
) -> None:
    images = drifting(sizes, width, seed, drift)
    gathered = gather(images, points, block, per_block, sigma)
    part = gathered.coreset
    assert part.of == sum(sizes)
    assert len(part.weights) <= points
    assert list(gathered.hashes) == sorted(sha256 for sha256, _ in images)
    by_hash = dict(images)
    for row, place in zip(part.signatures, part.source, strict=True):
        assert (by_hash[gathered.hashes[place]].astype(np.float32) == row).all(axis=1).any()

    everything = np.concatenate([signatures for _, signatures in images]).astype(np.float32)
    both = np.concatenate([everything, part.signatures])
    v = np.concatenate([np.full(part.of, 1.0 / part.of), -part.weights])
    apart = np.sqrt(max(v @ gaussian_kernel(both, both, sigma) @ v, 0.0))
    # An MMD is the root of a difference of numbers near 1, whose rounding is about 2e-16.
    assert apart <= part.max_mmd_change + 3e-8
    own = part.weights @ gaussian_kernel(part.signatures, part.signatures, sigma) @ part.weights
    assert gathered.self_term == pytest.approx(own, abs=1e-9)

    sources = tuple(BankSource(sha256, sha256) for sha256 in gathered.hashes)
    exact = uniform_bank(everything, sigma, source=np.zeros(part.of, np.int32), sources=sources, model_sha256="0" * 64)
    few = Bank(part.signatures, part.weights, sigma, gathered.self_term, part.source, sources, "0" * 64)
    crops = np.random.default_rng(seed).choice(everything, (5, 3))
    before, after = (np.sqrt(np.maximum(ReferenceReduction()(crops, bank).mmd2, 0.0)) for bank in (exact, few))
    # Where MMD is 0, its computed value is the root of a rounding error.
    assert np.abs(after - before).max() <= part.max_mmd_change + 1e-7


@pytest.mark.parametrize("points", [12, 40])
def test_a_bank_of_no_more_signatures_than_asked_for_is_kept_as_it_is(points: int) -> None:
    images = drifting([4, 3, 5], 3, seed=1, drift=0.1)
    part = gather(images, points, block=40, per_block=8).coreset
    everything = np.concatenate([signatures for _, signatures in sorted(images)]).astype(np.float32)
    np.testing.assert_array_equal(np.sort(part.signatures, axis=0), np.sort(everything, axis=0))
    assert part.weights == pytest.approx(np.full(12, 1 / 12), rel=1e-15)
    assert part.max_mmd_change == 0.0


class Watched:
    """compress, recording the sizes of its inputs and its error bounds, and counting signatures in memory."""

    def __init__(self) -> None:
        self.alive, self.given, self.mmds = 0, [], []

    def hold(self, array: np.ndarray) -> np.ndarray:
        """Count the array as alive for as long as somebody holds it."""
        self.alive += len(array)
        weakref.finalize(array, self.release, len(array))
        return array

    def release(self, count: int) -> None:
        self.alive -= count

    def __call__(self, rows: MemoryRows, sigma: float, self_term: float, points: int) -> Fitted:
        fitted = compress(rows, sigma, self_term, points=points)
        self.hold(fitted.signatures)
        self.given.append(rows.rows)
        self.mmds.append(fitted.mmd)
        return fitted


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Watched:
    watching = Watched()
    monkeypatch.setattr(stream, "compress", watching)
    return watching


def test_error_bounds_add_up_by_their_shares(watched: Watched) -> None:
    images = drifting([9, 11, 12, 8, 7], 3, seed=0, drift=1.0)
    part = gather(images, 3, block=20, per_block=5).coreset
    assert watched.given == [20, 20, 17]  # 9 + 11, 12 + 8, and both blocks' points with the last image
    first, second, last = watched.mmds
    assert part.max_mmd_change == pytest.approx(20 / 47 * first + 20 / 47 * second + last)
    assert 0.0 < last < part.max_mmd_change


def test_a_level_that_holds_a_block_is_merged_one_level_up(watched: Watched) -> None:
    once = [20, 20, 20, 20, 20]  # four blocks, and their points together
    gather(drifting([20] * 11, 3, seed=0, drift=0.1), 5, block=20, per_block=5)
    assert watched.given == [*once, *once, 20, 20, 40]  # two merged, two of one block each, and the last block
    watched.given.clear()
    gather(drifting([20] * 17, 3, seed=0, drift=0.1), 5, block=20, per_block=5)
    assert watched.given == [*once, *once, *once, *once, 20, 25]  # the last block meets the five points of all others


def test_blocks_are_large_enough_for_the_points_asked_for(watched: Watched) -> None:
    part = gather(drifting([20] * 5, 3, seed=0, drift=0.1), 10, block=20, per_block=2).coreset
    assert watched.given == [40, 40, 40]  # 10 points of each block of 40, and the last 20
    assert len(part.weights) == 10


def test_no_more_than_a_few_blocks_are_held(watched: Watched) -> None:
    """200 images have 10,000 signatures. A block holds 100 of them, and each of four levels fewer than 100."""
    held: list[int] = []

    def arriving() -> Iterator[tuple[str, np.ndarray]]:
        generator = np.random.default_rng(0)
        for place in range(200):
            signatures = watched.hold(generator.standard_normal((50, 4)).astype(np.float32))
            held.append(watched.alive)
            yield f"{place:064}", signatures
            del signatures

    taker = Gathering(SIGMA, 20, block=100, per_block=20)
    for sha256, signatures in arriving():
        taker.add(sha256, signatures)
    assert max(held) <= 5 * 100
    assert max(watched.given) <= 100 + 20
    assert taker.result().coreset.of == 10_000


def test_an_image_larger_than_a_block_is_a_block(watched: Watched) -> None:
    part = gather(drifting([3, 90, 2], 3, seed=0, drift=0.1), 4, block=16, per_block=4).coreset
    assert watched.given == [90, 9]
    assert (part.of, len(part.weights)) == (95, 4)


def test_signatures_that_are_not_finite_are_named_at_once() -> None:
    with pytest.raises(BankError, match=r"SHA-256 aa are not finite; run `mdmf verify`"):
        Gathering(SIGMA, 2).add("aa", np.array([[np.inf, 0.0]], np.float32))
