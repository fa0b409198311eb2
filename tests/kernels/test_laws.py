"""Laws that hold for every kernel version and operand, whatever the input."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from fakes.host_kernels import Builder, HostKernel
from helpers.float32_mmd import EPS
from helpers.kernel_inputs import bank_of, draw, exact_cross, kernel_values

from mdmf_deploy.mmd.cuda.kernels import OPERANDS, VERSIONS, Kernel, kernels, round_bank, widened
from mdmf_deploy.mmd.reference import ReferenceReduction

EVERY = [("plain", "fp32"), ("tiled", "fp32")]
EVERY += [(version, operand) for version in ("tensor", "wgmma") for operand in ("fp16", "bf16", "fp16x2")]
each = pytest.mark.parametrize(("version", "operand"), EVERY)
# Relative error of a kernel value, for scores near 1.
COARSE = {"fp32": 2e-6, "fp16x2": 2e-6, "fp16": 2e-3, "bf16": 2e-2}


@pytest.fixture
def kernel(host: Builder, version: str, operand: str) -> HostKernel:
    return host(version, operand, 64)


def same(a: object, b: object) -> bool:
    return np.array_equal(np.asarray(a), np.asarray(b), equal_nan=True)


@each
def test_an_image_has_the_same_bits_in_any_batch(kernel: HostKernel) -> None:
    """It does so wherever its rows lie in a tile, and however many blocks share the bank."""
    x, bank = draw(1, 6, 49, 70, 64)
    whole = kernel(x, bank)
    for start, stop, shares in ((0, 1, 1), (2, 4, 3), (5, 6, None)):
        part = kernel(x[start:stop], bank, shares=shares)
        assert same(part.contributions, whole.contributions[start:stop])
        assert same(part.mmd2, whole.mmd2[start:stop])


@each
def test_neither_the_order_of_blocks_nor_the_timing_of_copies_changes_a_bit(host: Builder, kernel: HostKernel) -> None:
    x, bank = draw(2, 3, 49, 140, 64)
    once = kernel(x, bank)
    for how in ({"backwards": True}, {"late": True}, {"backwards": True, "late": True}):
        again = dataclasses.replace(kernel, **how)(x, bank)
        assert same(again.contributions, once.contributions)
        assert same(again.mmd2, once.mmd2)


@each
@pytest.mark.parametrize("patches", [1, 7, 49, 64, 65, 200])
def test_an_image_is_prepared_alike_by_any_number_of_blocks_from_any_address(
    kernel: HostKernel, operand: str, patches: int
) -> None:
    x, bank = draw(13, 2, patches, 40, 64)
    prepared = round_bank(bank, kernel.kernel)
    once = kernel.prepare(x, prepared, -(-patches // 32))
    own = [kernel_values(image, image).mean(axis=1) for image in widened(once[0], operand).reshape(x.shape)]
    assert once[2] == pytest.approx(np.concatenate(own), rel=2e-6)
    for chunks in {patches, -(-patches // 4), -(-patches // 16)}:
        assert all(map(same, kernel.prepare(x, prepared, chunks), once))
    # A multiple of 4 bytes that is not one of 16.
    moved = np.empty(x.size + 1, np.float32)[1:].reshape(x.shape)
    moved[...] = x
    assert all(map(same, kernel.prepare(moved, prepared), once))


@each
@pytest.mark.parametrize("slices", [1, 2, 7, 8, 9, 127, 128, 129, 300])
def test_every_slice_is_added_once_in_float64(kernel: HostKernel, operand: str, slices: int) -> None:
    _, bank = draw(14, 2, 70, 1, 64)
    prepared = round_bank(bank, kernel.kernel)
    generator = np.random.default_rng(slices)
    partial = generator.uniform(1, 2, (slices, 140)).astype(np.float32)
    within = generator.uniform(0, 1, 140).astype(np.float32)
    scores = kernel.finish(partial, within, prepared, 2)
    exact = within - 2 * prepared.unit * partial.sum(axis=0, dtype=np.float64) + bank.self_term
    assert scores.contributions.ravel() == pytest.approx(exact, rel=1e-14)
    assert scores.mmd2 == pytest.approx(exact.reshape(2, 70).mean(axis=1), rel=1e-14)


@each
def test_contributions_average_to_the_score(kernel: HostKernel) -> None:
    x, bank = draw(3, 2, 150, 40, 64)
    scores = kernel(x, bank)
    assert scores.contributions.mean(axis=1) == pytest.approx(scores.mmd2, rel=1e-13, abs=1e-15)


@each
@pytest.mark.parametrize(("patches", "points"), [(1, 1), (1, 40), (40, 1)])
def test_one_signature_and_one_point(kernel: HostKernel, operand: str, patches: int, points: int) -> None:
    x, bank = draw(4, 2, patches, points, 64)
    exact, scores = ReferenceReduction()(x, bank), kernel(x, bank)
    assert scores.mmd2 == pytest.approx(exact.mmd2, rel=COARSE[operand], abs=COARSE[operand])
    if patches == 1:
        *_, within = kernel.prepare(x, round_bank(bank, kernel.kernel))
        assert (within == 1).all()


@each
def test_an_image_that_is_a_point_of_the_bank_is_no_distance_away(kernel: HostKernel) -> None:
    _, bank = draw(5, 1, 1, 1, 64)
    bank = dataclasses.replace(bank, self_term=1.0)
    assert kernel(bank.signatures[None], bank).mmd2[0] == pytest.approx(0, abs=4 * EPS)


@each
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_an_image_that_is_not_finite_spoils_no_other(kernel: HostKernel, bad: float) -> None:
    x, bank = draw(6, 3, 20, 100, 64)
    expected = kernel(x, bank)
    x[1, 4, 2] = bad
    scores = kernel(x, bank)
    assert same(scores.contributions[[0, 2]], expected.contributions[[0, 2]])
    assert np.isnan(scores.contributions[1]).all()
    assert same(np.isnan(scores.mmd2), [False, True, False])
    # Within that image, only the one patch loses its cross term.
    prepared = round_bank(bank, kernel.kernel)
    operands, half_norms, _ = kernel.prepare(x, prepared)
    lost = np.isnan(kernel.cross(operands, half_norms, prepared)).any(axis=0)
    assert same(np.flatnonzero(lost), [20 + 4])


@each
@pytest.mark.parametrize("huge", [1e20, -3e38, 1e6])
def test_a_signature_far_away_from_everything_has_a_kernel_value_of_0(kernel: HostKernel, huge: float) -> None:
    x, bank = draw(7, 1, 9, 70, 64)
    narrow = bank_of(bank.signatures / 1e3, bank.sigma / 1e3)
    x[0, 3] = huge
    prepared = round_bank(narrow, kernel.kernel)
    operands, half_norms, within = kernel.prepare(x, prepared)
    assert np.isfinite(half_norms).all()
    assert not kernel.cross(operands, half_norms, prepared)[:, 3].any()
    assert within[3] == np.float32(1 / 9)
    assert np.isfinite(kernel(x, narrow).mmd2).all()


@each
@pytest.mark.parametrize("times", [1e4, 1e8])
def test_no_kernel_value_is_above_1_however_far_both_sides_are(kernel: HostKernel, times: float) -> None:
    """Otherwise rounding of a'.b' - h_a - h_b would make it 2 to the power of a huge number."""
    _, bank = draw(8, 1, 1, 70, 64)
    far = bank.signatures * np.float32(times)
    prepared = round_bank(bank_of(far, bank.sigma), kernel.kernel)
    operands, half_norms, _ = kernel.prepare(far[None], prepared)
    assert half_norms.min() > 1e6
    cross = kernel.cross(operands, half_norms, prepared).sum(axis=0)
    assert (cross >= 0).all()
    assert (cross <= prepared.weights.sum()).all()


@each
def test_points_of_weight_0_change_nothing(kernel: HostKernel, operand: str) -> None:
    """Padding of the last tile has no effect, whatever its coordinates."""
    x, bank = draw(9, 2, 9, 70, 64)
    prepared = round_bank(bank, kernel.kernel)
    assert len(prepared.operands) > 70
    scores = kernel(x, prepared)
    prepared.operands[70:] = prepared.operands[:1]
    prepared.half_norms[70:] = prepared.half_norms[0]
    filled = kernel(x, prepared)
    assert same(filled.contributions, scores.contributions)


@each
def test_weights_may_be_negative_and_need_not_add_up_to_1(kernel: HostKernel, operand: str) -> None:
    x, bank = draw(10, 2, 9, 90, 64, signed=True)
    assert (bank.weights < 0).any()
    exact, scores = ReferenceReduction()(x, bank), kernel(x, bank)
    allowed = COARSE[operand] * (1 + np.abs(bank.weights).sum())
    assert np.abs(scores.contributions - exact.contributions).max() <= allowed


@each
def test_the_number_of_slices_changes_rounding_alone(kernel: HostKernel, operand: str) -> None:
    x, bank = draw(11, 1, 9, 200, 64)
    prepared = round_bank(bank, kernel.kernel)
    operands, half_norms, _ = kernel.prepare(x, prepared)
    _, magnitude = exact_cross(widened(operands, operand), prepared, operand)
    sums = [
        kernel.cross(operands, half_norms, prepared, 1, slices).sum(axis=0, dtype=np.float64)
        for slices in range(1, 1 + len(prepared.operands) // kernel.kernel.tile)
    ]
    assert (np.ptp(sums, axis=0) <= 2e-6 * magnitude).all()


@pytest.mark.parametrize("version", ["tensor", "wgmma"])
@pytest.mark.parametrize("operand", ["fp16", "bf16"])
def test_steps_3_and_4_are_step_1_on_the_same_operands(host: Builder, version: str, operand: str) -> None:
    x, bank = draw(12, 3, 49, 200, 64)
    first, fast = host("plain", operand, 64)(x, bank), host(version, operand, 64)(x, bank)
    assert fast.contributions == pytest.approx(first.contributions, abs=1e-5)
    assert fast.contributions != pytest.approx(ReferenceReduction()(x, bank).contributions, abs=1e-7)


@pytest.mark.parametrize(
    ("version", "operand", "width"),
    # bf16 has fp16's numbers.
    [(version, operand, width) for version, operand in EVERY for width in (64, 128, 256) if operand != "bf16"],
)
def test_python_knows_the_sources_numbers(host: Builder, version: str, operand: str, width: int) -> None:
    built = host(version, operand, width)
    launches = built.kernel.launches(3, 49, 4096, 16)
    assert built.constant("rows") == built.kernel.rows
    assert built.constant("tile") == built.kernel.tile
    assert built.constant("shared") == built.kernel.shared == launches.cross.shared
    assert built.constant("threads") == launches.cross.block
    assert built.constant("prepare_threads") == launches.prepare.block
    assert built.constant("finish_threads") == launches.finish.block
    # As many images as take the most rows per block.
    assert built.kernel.launches(999, 320, 4096, 16).prepare.grid == (999, 320 / built.constant("prepared_rows"), 1)


def test_every_operand_and_version_is_held_to_these_laws() -> None:
    assert {operand for _, operand in EVERY} == set(OPERANDS)
    assert {version for version, _ in EVERY} == set(VERSIONS)
    # Step 1 in 16 bits exists for comparison.
    assert {(k.version, k.operand) for k in kernels()} - set(EVERY) == {("plain", "fp16"), ("plain", "bf16")}
    assert Kernel("plain", "fp16", 64) in set(kernels())


@pytest.mark.parametrize("operand", ["fp16", "bf16", "fp16x2"])
def test_a_near_row_has_the_same_bits_beside_a_far_one(host: Builder, operand: str) -> None:
    """Step 4 takes other code where a row is far from the bank's centre. Its warpgroup's other rows must not change."""
    x, bank = draw(14, 2, 49, 300, 128)
    kernel = host("wgmma", operand, 128)
    alone = kernel(x, bank)
    x[1, 7] = bank.signatures.mean(axis=0) + 40 * (x[1, 7] - bank.signatures.mean(axis=0))
    beside = kernel(x, bank)
    assert same(beside.contributions[0], alone.contributions[0])
    prepared = round_bank(bank, kernel.kernel)
    _, half_norms, _ = kernel.prepare(x, prepared)
    assert (half_norms > 60).sum() == 1
