"""The host-built kernels against float64, for every kind of incomplete tile."""

from __future__ import annotations

import math
import os
from dataclasses import replace

import numpy as np
import pytest
from fakes.host_kernels import Builder
from helpers.kernel_inputs import draw, exact_cross, kernel_values
from hypothesis import given, settings
from hypothesis import strategies as st

from mdmf_deploy.mmd.cuda.kernels import PreparedBank, round_bank, rounded, widened
from mdmf_deploy.mmd.reference import ReferenceReduction, gaussian_kernel

ALL = os.environ.get("MDMF_ALL_KERNELS") == "1"
ALLOWED = 2e-6
LN2 = math.log(2)
# Half a unit in the last place (relative), and half the step between numbers near 0.
ROUNDING = {"fp16x2": (2.0**-22, 2.0**-25), "fp16": (2.0**-11, 2.0**-25), "bf16": (2.0**-8, 2.0**-134)}

shapes = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 2**32 - 1),
        # Few rows, the paper's 49, and more rows than a block takes or compares at a time.
        "images": st.integers(1, 4),
        "patches": st.one_of(st.integers(1, 8), st.sampled_from([31, 32, 33, 49, 65])),
        "points": st.one_of(st.integers(1, 70), st.sampled_from([127, 128, 129, 256, 257, 300])),
        "width": st.sampled_from([64, 128, 256]),
        "bandwidth": st.floats(0.5, 8),
    }
)
splits = st.tuples(st.integers(1, 12), st.integers(1, 12))


@settings(deadline=None, max_examples=300 if ALL else 60)
@given(version=st.sampled_from(["plain", "tiled"]), shape=shapes, split=splits)
def test_float32_is_within_two_millionths(
    host: Builder, version: str, shape: dict[str, int], split: tuple[int, int]
) -> None:
    """Each term is, relative to itself, for every signature. The score is, relative to the sum of its terms."""
    x, bank = draw(**shape)
    kernel = host(version, "fp32", shape["width"])
    prepared = round_bank(bank, kernel.kernel)
    operands, half_norms, within = kernel.prepare(x, prepared)
    partial = kernel.cross(operands, half_norms, prepared, len(x), *split)
    cross = np.array([gaussian_kernel(image, bank.signatures, bank.sigma) @ bank.weights for image in x])
    computed = prepared.unit * partial.sum(axis=0, dtype=np.float64).reshape(cross.shape)
    assert np.abs(computed / cross - 1).max() <= ALLOWED
    own = np.array([gaussian_kernel(image, image, bank.sigma).mean(axis=1) for image in x])
    assert np.abs(within.reshape(own.shape) / own - 1).max() <= ALLOWED
    exact = ReferenceReduction()(x, bank)
    scores = kernel.finish(partial, within, prepared, len(x))
    terms = own + 2 * cross + bank.self_term
    assert (np.abs(scores.contributions - exact.contributions) <= ALLOWED * terms).all()
    assert (np.abs(scores.mmd2 - exact.mmd2) <= ALLOWED * terms.mean(axis=1)).all()


def allowed_relative(operand: str, operands: np.ndarray, prepared: PreparedBank) -> float:
    """Error allowed to steps 3 and 4, relative to a kernel value: of float32, products and polynomials."""
    a, b = widened(operands, operand), widened(prepared.operands, operand)
    width = a.shape[1]
    products = float((np.abs(a) @ np.abs(b).T).max())
    norms = float((a * a).sum(1).max() + (b * b).sum(1).max()) / 2
    # Sums are truncated once every 16 terms.
    if operand == "fp16x2":
        # They hold only products. Each leaves out x'.r', 2^-22 of it. Norms are rounded as they are added at the end.
        return ALLOWED + LN2 * (products * (2.0**-22 + width / 16 * 2.0**-23) + norms * 2.0**-23)
    # They start from the norms. The polynomial is good to 3e-6.
    return ALLOWED + 3e-6 + LN2 * (norms + products) * (width / 16 + 1) * 2.0**-23


@settings(deadline=None, max_examples=60 if ALL else 30)
@given(
    version=st.sampled_from(["tensor", "wgmma"]),
    operand=st.sampled_from(["fp16", "bf16", "fp16x2"]),
    shape=shapes,
    split=splits,
    signed=st.booleans(),
)
def test_tensor_cores_add_only_what_their_rounding_explains(
    host: Builder, version: str, operand: str, shape: dict[str, int], split: tuple[int, int], signed: bool
) -> None:
    if operand == "bf16":
        # It differs from fp16 in its numbers alone, so one width is enough, and is built sooner.
        shape = shape | {"width": 64}
    x, bank = draw(**shape, signed=signed)
    kernel = host(version, operand, shape["width"])
    prepared = round_bank(bank, kernel.kernel)
    operands, half_norms, within = kernel.prepare(x, prepared)

    # Operands are the nearest numbers of their type. Scaling in float32 rounds three times.
    unit, step = ROUNDING[operand]
    exact = (x.reshape(-1, x.shape[2]).astype(np.float64) - prepared.centre) * prepared.scale
    values = widened(operands, operand)
    assert (np.abs(values - exact) <= np.abs(exact) * (unit + 3 * 2.0**-24) + step).all()
    norms = (values**2).sum(axis=1) / 2
    assert half_norms == pytest.approx(norms, rel=x.shape[2] * 2.0**-24, abs=1e-30)

    # Sums are those of the rounded operands.
    partial = kernel.cross(operands, half_norms, prepared, len(x), *split)
    cross, magnitude = exact_cross(values, prepared, operand)
    allowed = allowed_relative(operand, operands, prepared)
    assert (np.abs(partial.sum(axis=0, dtype=np.float64) - cross) <= allowed * magnitude).all()
    for image, computed in zip(values.reshape(x.shape), within.reshape(len(x), -1), strict=True):
        assert computed == pytest.approx(kernel_values(image, image).mean(axis=1), rel=ALLOWED)


@pytest.mark.parametrize("version", ["tensor", "wgmma"])
@pytest.mark.parametrize(
    ("width", "bandwidth"),
    [(d, bandwidth) for d in (64, 128, 256) for bandwidth in (0.5, 1.0, 3.0)]
    if ALL
    else [(64, 0.5), (128, 3), (256, 1)],
)
def test_fp16x2_scores_are_within_a_millionth(host: Builder, version: str, width: int, bandwidth: float) -> None:
    """The aim for the accurate mode, on tensor cores that truncate every sum."""
    x, bank = draw(7, 2, 49, 300, width, bandwidth=bandwidth)
    exact, scores = ReferenceReduction()(x, bank), host(version, "fp16x2", width)(x, bank)
    assert scores.mmd2 == pytest.approx(exact.mmd2, rel=1e-6)
    assert scores.contributions == pytest.approx(exact.contributions, rel=1e-6, abs=4e-7)


@pytest.mark.parametrize(
    ("version", "operand", "of_norm"),
    [
        ("plain", "fp32", 0.0),
        ("tiled", "fp32", 2.0**-21),
        ("tensor", "fp16x2", 2.0**-20),
        ("wgmma", "fp16x2", 2.0**-20),
    ],
)
@pytest.mark.parametrize("bandwidth", [0.1, 0.03])
def test_a_bank_much_wider_than_its_bandwidth(
    host: Builder, version: str, operand: str, of_norm: float, bandwidth: float
) -> None:
    """Direct differences stay accurate. Products cancel, with an error proportional to the half norms."""
    _, bank = draw(5, 1, 1, 130, 64, bandwidth=bandwidth)
    near = np.random.default_rng(5).normal(0, bank.sigma / 8, (60, 64))
    x = (bank.signatures[None, :60] + near).astype(np.float32)
    kernel = host(version, operand, 64)
    prepared = round_bank(bank, kernel.kernel)
    operands, half_norms, _ = kernel.prepare(x, prepared)
    assert half_norms.max() > 20
    cross = gaussian_kernel(x[0], bank.signatures, bank.sigma) @ bank.weights
    computed = prepared.unit * kernel.cross(operands, half_norms, prepared).sum(axis=0, dtype=np.float64)
    assert np.abs(computed / cross - 1).max() <= ALLOWED + of_norm * half_norms.max()


@pytest.mark.parametrize("version", ["tensor", "wgmma"])
@pytest.mark.parametrize("width", [64, 128, 256])
@pytest.mark.parametrize("finer", ["x", "bank", "both"])
def test_fp16x2_keeps_bits_that_a_single_fp16_would_drop(host: Builder, version: str, width: int, finer: str) -> None:
    """Coordinates end 2^-12 after their first bit. If one side lost that bit, k would be off by 2^-12 of the norm."""
    kernel = host(version, "fp16x2", width)
    coarse = np.random.default_rng(width).choice([-1.0, 1.0], (1, width)) / width**0.5 * 2
    fine = coarse * (1 + 2.0**-12)
    bank = np.zeros((kernel.kernel.tile, width))
    bank[0] = coarse if finer == "x" else fine
    operands, points = rounded(coarse if finer == "bank" else fine, "fp16x2"), rounded(bank, "fp16x2")
    values, bank_values = widened(operands, "fp16x2"), widened(points, "fp16x2")
    norms, bank_norms = ((of**2).sum(1).astype(np.float32) / 2 for of in (values, bank_values))
    weights = np.eye(1, len(bank), dtype=np.float32)[0]
    prepared = PreparedBank(points, bank_norms, weights, 1.0, np.zeros(width, np.float32), 1.0, 0.0)
    k = kernel.cross(operands, norms, prepared).sum()
    assert k == pytest.approx(kernel_values(values, bank_values)[0, 0], rel=3e-6)


@pytest.mark.parametrize(
    ("version", "operand"),
    [("plain", "fp32"), ("tiled", "fp32"), ("tensor", "fp16"), ("tensor", "fp16x2"), ("wgmma", "fp16")],
)
def test_a_bank_of_more_tiles_than_slices(host: Builder, version: str, operand: str) -> None:
    """Keep the launch's own split: slices of unequal length, several per block."""
    points = 20_000 if version in ("tiled", "wgmma") else 5_000
    x, bank = draw(3, 1, 5, points, 64)
    kernel = host(version, operand, 64)
    prepared = round_bank(bank, kernel.kernel)
    launches = kernel.kernel.launches(1, 5, len(prepared.operands), 4)
    assert launches.slices == 128
    # Step 4's blocks are a list of units, not a grid.
    assert launches.cross.grid == (4, 1, 1) if version == "wgmma" else 1 < launches.cross.grid[1] < 128
    operands, half_norms, _ = kernel.prepare(x, prepared)
    cross, magnitude = exact_cross(widened(operands, operand), prepared, operand)
    partial = kernel.cross(operands, half_norms, prepared)
    allowed = allowed_relative(operand, operands, prepared) if version in ("tensor", "wgmma") else ALLOWED
    assert (np.abs(partial.sum(axis=0, dtype=np.float64) - cross) <= allowed * magnitude).all()


@pytest.mark.parametrize(
    ("operand", "width"), [("bf16", 64), *((operand, d) for operand in ("fp16", "fp16x2") for d in (64, 128, 256))]
)
def test_rows_and_points_that_are_not_near_have_norms_subtracted(host: Builder, operand: str, width: int) -> None:
    """Step 4 folds half norms up to 60 into weights. Beyond, on either side, other code computes the same."""
    x, bank = draw(21, 3, 40, 300, width, bandwidth=1.0)
    # The first warpgroup has such rows, the second has none.
    x[0, ::3] = bank.signatures[:14] + 12 * (x[0, ::3] - x.mean())
    far = bank.signatures.copy()
    # Not the first point of a tile.
    far[1::7] += 19 * (far[1::7] - far.mean(axis=0))
    kernel = host("wgmma", operand, width)
    for points in (bank.signatures, far):
        prepared = round_bank(replace(bank, signatures=points), kernel.kernel)
        operands, half_norms, _ = kernel.prepare(x, prepared)
        assert (half_norms > 60).any()
        assert (half_norms < 60).any()
        assert (prepared.half_norms > 60).any() == (points is far)
        cross, magnitude = exact_cross(widened(operands, operand), prepared, operand)
        computed = kernel.cross(operands, half_norms, prepared, 3).sum(axis=0, dtype=np.float64)
        allowed = allowed_relative(operand, operands, prepared)
        assert (np.abs(computed - cross) <= allowed * magnitude + 1e-30).all()


@pytest.mark.parametrize("operand", ["fp16", "bf16", "fp16x2"])
def test_a_point_beyond_the_limit_beside_a_row_within_it(host: Builder, operand: str) -> None:
    """The point is not the first of its tile, which alone tells that there are norms to subtract."""
    kernel = host("wgmma", operand, 64)
    direction = np.full(64, 64**-0.5)
    bank = np.zeros((kernel.kernel.tile, 64))
    bank[3] = direction * (2 * 66) ** 0.5
    operands, points = rounded(direction[None] * (2 * 57) ** 0.5, operand), rounded(bank, operand)
    values, bank_values = widened(operands, operand), widened(points, operand)
    norms, bank_norms = ((of**2).sum(1).astype(np.float32) / 2 for of in (values, bank_values))
    assert norms[0] < 60 < bank_norms[3]
    weights = np.eye(4, len(bank), dtype=np.float32)[3]
    prepared = PreparedBank(points, bank_norms, weights, 1.0, np.zeros(64, np.float32), 1.0, 0.0)
    k = kernel.cross(operands, norms, prepared).sum()
    assert k == pytest.approx(kernel_values(values, bank_values)[0, 3], rel=1e-4)
