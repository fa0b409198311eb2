"""The description of the kernels: which exist, how they are launched, and how a bank is prepared for them."""

from __future__ import annotations

import dataclasses
import itertools
import math

import numpy as np
import pytest
from helpers.kernel_inputs import bank_of, draw, exact_cross
from hypothesis import given
from hypothesis import strategies as st

from mdmf_deploy.errors import UsageError
from mdmf_deploy.mmd.cuda.kernels import (
    OPERANDS,
    VERSIONS,
    WIDTHS,
    Kernel,
    choose,
    kernels,
    prepare_bank,
    rounded,
    widened,
)
from mdmf_deploy.mmd.reference import gaussian_kernel

ALL = list(kernels())


def test_every_kernel_has_its_source() -> None:
    assert len(ALL) == len(set(ALL)) == 10 * len(WIDTHS)
    for kernel in ALL:
        text = kernel.source.read_text()
        for entry in ("mdmf_prepare", "mdmf_cross", "mdmf_finish"):
            assert entry in text + (kernel.source.parent / "around.cuh").read_text()
        assert "Reference: " in text.partition("#include")[0]


@pytest.mark.parametrize("width", [1, 32, 96, 384, 512])
def test_another_width_is_refused(width: int) -> None:
    with pytest.raises(UsageError, match=f"width {width}: the GPU kernels are for 64, 128 or 256; use a CPU runtime"):
        choose(90, width, "fp32")


@pytest.mark.parametrize(
    ("sm", "operand", "version", "message"),
    [
        (90, "int8", None, "operand 'int8' is not known; choose one of fp32, fp16x2, fp16 or bf16"),
        (90, "fp32", "fast", "version 'fast' is not known; choose one of plain, tiled, tensor or wgmma"),
        (90, "fp32", "tensor", "'tensor' is not for fp32; give it one of fp16x2, fp16 or bf16"),
        (90, "fp16", "tiled", "'tiled' is not for fp16; give it one of fp32$"),
        (75, "bf16", None, r"compute capability 7\.5 cannot run it; choose fp32 or fp16"),
        (70, "fp16", None, r"compute capability 7\.0 cannot run it; choose a CPU runtime"),
        (61, "fp32", None, r"compute capability 6\.1 cannot run it; choose a CPU runtime"),
    ],
)
def test_kernels_that_do_not_exist_are_refused_in_one_line(
    sm: int, operand: str, version: str | None, message: str
) -> None:
    with pytest.raises(UsageError, match=message) as refused:
        choose(sm, 128, operand, version)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("sm", [75, 80, 86, 89, 90, 100, 120])
def test_the_fastest_version_for_an_operand_is_chosen(sm: int) -> None:
    assert choose(sm, 64, "fp32") == Kernel("tiled", "fp32", 64)
    assert choose(sm, 64, "fp32", "plain") == Kernel("plain", "fp32", 64)
    for operand in ("fp16", "fp16x2", "bf16") if sm >= 80 else ("fp16", "fp16x2"):
        kernel = choose(sm, 128, operand)
        assert kernel == Kernel("wgmma" if sm == 90 else "tensor", operand, 128)
        dialect = ("--gpu-architecture=sm_90a",) if sm == 90 else ()
        assert kernel.options(sm) == ("--std=c++17", "-DMDMF_WIDTH=128", f"-DMDMF_{operand.upper()}", *dialect)


@pytest.mark.parametrize("sm", [80, 89, 100, 120])
def test_warpgroup_products_exist_on_hopper_alone(sm: int) -> None:
    assert not Kernel("wgmma", "fp16", 128).supports(sm)
    with pytest.raises(UsageError, match=f"capability {sm // 10}.{sm % 10} cannot run it"):
        choose(sm, 128, "fp16", "wgmma")


def test_turing_has_too_little_shared_memory_for_the_widest_kernel() -> None:
    kernel = Kernel("tensor", "fp16x2", 256)
    assert kernel.shared > 65536
    assert [sm for sm in (75, 80, 86) if kernel.supports(sm)] == [80, 86]
    with pytest.raises(UsageError, match=r"fp16x2 and d = 256: .* capability 7\.5 cannot run it; choose fp32 or fp16"):
        choose(75, 256, "fp16x2")


@given(
    kernel=st.sampled_from(ALL),
    images=st.integers(1, 300),
    patches=st.integers(1, 300),
    tiles=st.integers(1, 40_000),
    multiprocessors=st.integers(1, 200),
)
def test_launches_cover_everything(kernel: Kernel, images: int, patches: int, tiles: int, multiprocessors: int) -> None:
    bank_rows, rows = tiles * kernel.tile, images * patches
    launches = kernel.launches(images, patches, bank_rows, multiprocessors)
    across = math.ceil(rows / kernel.rows)
    if kernel.version == "wgmma":
        assert launches.cross.grid == (min(multiprocessors, across * launches.slices), 1, 1)
    else:
        assert launches.cross.grid[0] == across
        assert 1 <= launches.cross.grid[1] <= launches.slices
    assert launches.slices <= tiles
    assert launches.prepare.grid[0] == launches.finish.grid[0] == images
    assert math.ceil(patches / 32) <= launches.prepare.grid[1] <= patches
    for launch in (launches.prepare, launches.cross, launches.finish):
        assert launch.grid[1] <= 65535
        assert launch.grid[2] == 1
    # The bank alone decides, or an image's bits would change with its batch.
    assert launches.slices == kernel.launches(1, 1, bank_rows, 7).slices
    # No slice is longer than float32 can sum accurately, give or take a tile.
    assert bank_rows / launches.slices <= 512 + kernel.tile


@pytest.mark.parametrize("kernel", ALL, ids=str)
def test_one_image_and_a_long_bank_occupy_a_large_gpu(kernel: Kernel) -> None:
    launches = kernel.launches(1, 49, 65536, 132)
    assert launches.cross.grid[0] * launches.cross.grid[1] >= 0.9 * min(128, 132)


@pytest.mark.parametrize("kernel", ALL, ids=str)
@pytest.mark.parametrize("multiprocessors", [20, 128, 132])
def test_a_large_batch_leaves_few_multiprocessors_idle(kernel: Kernel, multiprocessors: int) -> None:
    launches = kernel.launches(64, 49, 65536, multiprocessors)
    if kernel.version == "wgmma":
        units = math.ceil(64 * 49 / kernel.rows) * launches.slices
        assert units / multiprocessors / math.ceil(units / multiprocessors) > 0.8
        return
    across, shares, _ = launches.cross.grid
    places = multiprocessors * kernel.resident
    longest = math.ceil(across * shares / places) * math.ceil(launches.slices / shares)
    assert across * launches.slices / places / longest > 0.8


@given(
    kernel=st.sampled_from([kernel for kernel in ALL if kernel.version != "wgmma"]),
    images=st.integers(1, 300),
    tiles=st.integers(1, 40_000),
    multiprocessors=st.integers(1, 200),
)
def test_no_other_number_of_blocks_finishes_earlier_or_has_more_that_finish_as_early(
    kernel: Kernel, images: int, tiles: int, multiprocessors: int
) -> None:
    launches = kernel.launches(images, 49, tiles * kernel.tile, multiprocessors)
    across, shares, _ = launches.cross.grid
    most = min(launches.slices, 1024)

    def rounds(shares: int) -> tuple[int, int]:
        """Waves of blocks, and the slices of the slowest block."""
        return math.ceil(across * shares / (multiprocessors * kernel.resident)), math.ceil(launches.slices / shares)

    waves, slowest = rounds(shares)
    others = [rounds(other) for other in range(1, most + 1)]
    assert not any(other != (waves, slowest) and other[0] <= waves and other[1] <= slowest for other in others)
    assert shares == most or rounds(shares + 1) != (waves, slowest)


def test_the_headline_case_fills_an_h200() -> None:
    """Measured there, 20 blocks for 128 slices are 9% faster than 19, though the slowest has 7 slices with both."""
    launches = Kernel("tensor", "fp16", 128).launches(64, 49, 65536, 132)
    assert (launches.slices, launches.cross.grid) == (128, (13, 20, 1))


@pytest.mark.parametrize(
    ("width", "images", "patches", "chunks"),
    [(128, 1, 49, 13), (128, 64, 49, 4), (128, 256, 49, 2), (256, 64, 49, 2), (64, 1, 1, 1), (64, 999, 33, 2)],
)
def test_images_are_prepared_in_as_many_chunks_as_run_at_once(
    width: int, images: int, patches: int, chunks: int
) -> None:
    assert Kernel("tensor", "fp16", width).launches(images, patches, 1024, 132).prepare.grid == (images, chunks, 1)


def test_rows_of_many_images_are_packed() -> None:
    """With N = 49, only the last tile of 256 rows is incomplete."""
    assert Kernel("tensor", "fp16", 128).launches(64, 49, 1024, 1).cross.grid[0] == math.ceil(64 * 49 / 256) == 13


@pytest.mark.parametrize("operand", OPERANDS)
@pytest.mark.parametrize("points", [1, 31, 32, 33, 300])
def test_a_prepared_bank_is_the_bank(operand: str, points: int) -> None:
    version = next(version for version, (_, operands) in VERSIONS.items() if operand in operands)
    kernel = Kernel(version, operand, 64)
    x, bank = draw(points, 1, 5, points, 64, signed=True)
    prepared = prepare_bank(bank, kernel)
    rows = len(prepared.operands)
    assert rows % kernel.tile == 0
    assert 0 <= rows - points < kernel.tile
    assert len(prepared.weights) == len(prepared.half_norms) == rows
    assert not prepared.weights[points:].any()
    values = widened(prepared.operands, operand)
    assert values.shape == (rows, 64)
    assert prepared.operands.nbytes == rows * kernel.row_bytes
    assert not values[points:].any()
    assert prepared.half_norms == pytest.approx((values**2).sum(axis=1) / 2, rel=1e-6)
    assert np.abs(prepared.weights).max() == 1
    assert prepared.weights[:points] * prepared.unit == pytest.approx(bank.weights, rel=1e-6)
    assert (prepared.self_term, prepared.operands.flags.c_contiguous) == (bank.self_term, True)
    # The base-2 kernel of centred and scaled points equals the Gaussian kernel.
    own = ((x[0].astype(np.float64) - prepared.centre) * prepared.scale).astype(np.float32)
    cross, magnitude = exact_cross(own, prepared, operand)
    expected = gaussian_kernel(x[0], bank.signatures, bank.sigma) @ bank.weights
    rounding = {"fp32": 1e-6, "fp16x2": 1e-6, "fp16": 2e-3, "bf16": 2e-2}[operand]
    assert np.abs(prepared.unit * cross - expected).max() <= rounding * prepared.unit * magnitude.max()


@pytest.mark.parametrize("operand", OPERANDS)
def test_points_beyond_the_operands_range_are_clamped(operand: str) -> None:
    points = np.zeros((4, 64))
    points[0], points[1] = 1e30, -1e30
    kernel = Kernel("tiled" if operand == "fp32" else "tensor", operand, 64)
    prepared = prepare_bank(bank_of(points, 1e-3), kernel)
    assert np.isfinite(prepared.half_norms).all()
    assert np.abs(widened(prepared.operands, operand)).max() == (65504 if "fp16" in operand else 2.0**56)


def test_fp16x2_is_the_nearest_fp16_and_what_it_leaves_out() -> None:
    values = np.random.default_rng(0).normal(0, 1, (5, 64)) * 10.0 ** np.arange(-3, 2)[:, None]
    first, rest = np.split(rounded(values, "fp16x2"), 2, axis=1)
    assert np.array_equal(first, values.astype(np.float32).astype(np.float16))
    assert (np.abs(rest) <= np.spacing(np.abs(first)) / 2).all()
    exact = first.astype(np.float64) + rest
    assert np.array_equal(widened(np.hstack([first, rest]), "fp16x2"), exact)
    assert np.array_equal(exact, exact.astype(np.float32))
    assert (np.abs(exact - values) <= np.maximum(2.0**-22 * np.abs(values), 2.0**-25) + 2.0**-24 * np.abs(values)).all()


def test_equal_weights_are_not_rounded() -> None:
    """Rounding 1/M to float32 would shift every score in the same direction."""
    _, bank = draw(0, 1, 1, 77, 64)
    prepared = prepare_bank(bank, Kernel("plain", "fp32", 64))
    assert (prepared.weights[:77] == 1).all()
    assert prepared.unit == bank.weights[0]


def test_a_bank_whose_weights_are_all_0_can_be_prepared() -> None:
    _, bank = draw(0, 1, 1, 5, 64)
    prepared = prepare_bank(dataclasses.replace(bank, weights=np.zeros(5)), Kernel("plain", "fp32", 64))
    assert (prepared.unit, prepared.weights.any()) == (1.0, False)


def test_a_long_bank_is_prepared_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    _, bank = draw(0, 1, 1, 150, 64)
    kernel = Kernel("tensor", "bf16", 64)
    whole = prepare_bank(bank, kernel)
    monkeypatch.setattr("mdmf_deploy.mmd.cuda.kernels.PREPARED_AT_ONCE", 41)
    parts = prepare_bank(bank, kernel)
    assert np.array_equal(parts.operands, whole.operands)
    assert np.array_equal(parts.half_norms, whole.half_norms)


def test_a_bank_of_another_width_is_refused() -> None:
    _, bank = draw(0, 1, 1, 5, 128)
    with pytest.raises(UsageError, match="width 128, but the kernel is for 64"):
        prepare_bank(bank, Kernel("plain", "fp32", 64))


def test_the_resident_blocks_fit_into_shared_memory() -> None:
    """The smallest multiprocessors have 64 KB on 7.5 and 100 KB on 8.6, 8.9 and 12.0, less 1 KB per block."""
    for kernel, sm in itertools.product(ALL, (75, 86)):
        if kernel.supports(sm):
            room = 65536 if sm == 75 else 102400
            assert kernel.shared + 1024 <= room
            if sm == 86:
                assert kernel.resident * (kernel.shared + 1024) <= room
