"""Describe the CUDA kernels of the reduction for compilation and launch, without importing any GPU library.

    k(a, b) = 2^(a'.b' - |a'|^2/2 - |b'|^2/2),   a' = scale (a - centre),   scale = sqrt(log2(e)) / sigma

The sources and formulas are in engines/kernels, one file for each step: "plain" (1), "tiled" (2), "tensor" (3) and
"wgmma" (4, for Hopper alone). The length of a bank alone decides its slices, and the sum of a slice has a fixed order.
Each batch chooses how many blocks share the slices. So an image's bits depend neither on its batch nor on the size of
the GPU.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mdmf_deploy.bundle.bank import Bank
from mdmf_deploy.errors import UsageError
from mdmf_deploy.files import room

WIDTHS = (64, 128, 256)
OPERANDS = ("fp32", "fp16x2", "fp16", "bf16")
# version -> source file, operands.
VERSIONS: dict[str, tuple[str, tuple[str, ...]]] = {
    "plain": ("1_plain.cu", ("fp32", "fp16", "bf16")),
    "tiled": ("2_tiled.cu", ("fp32",)),
    "tensor": ("3_tensor.cu", ("fp16x2", "fp16", "bf16")),
    "wgmma": ("4_wgmma.cu", ("fp16x2", "fp16", "bf16")),
}
# Products of a whole warpgroup exist on Hopper alone, in a dialect of its own.
_HOPPER = 90
_HOPPER_DIALECT = "--gpu-architecture=sm_90a"
# The part of a point's half norm that is folded into its weight for "wgmma" (NEAR in 4_wgmma.cu), and the smallest
# float32 number, which marks a tile with norms to subtract.
_NEAR, _MARK = 60.0, 2.0**-126
_ALIGNED = 1024  # bytes
# Oldest compute capability for the kernels: matrix products in bf16 came with 8.0.
_OLDEST = 75
_OLDEST_BF16 = 80
# Most shared memory of a block on compute capability 7.5. All later ones have more than any kernel takes.
_SHARED_75 = 65536
# The same as LIMIT in common.cuh: no sum of products overflows, and fp16 holds nothing larger.
LIMITS = {"fp32": 2.0**56, "fp16x2": 65504.0, "fp16": 65504.0, "bf16": 2.0**56}
_BYTES = {"fp32": 4, "fp16x2": 4, "fp16": 2, "bf16": 2}
# Slices of a bank: enough for one image to occupy a large GPU. A long bank has more, so that no slice has more points
# than float32 can sum accurately.
_SLICES = 128
_LONGEST_SLICE = 512
# Time a block needs to start, in tiles of the bank: it loads its rows and waits for the first tiles.
_START = 3
# Most blocks that share the slices of a row tile: more than any GPU runs at once, few enough to try all counts.
_MOST_SHARES = 1024
# Threads per block of the kernels around the cross term (around.cuh).
_PREPARE_THREADS, _FINISH_THREADS = 256, 512
# Rows that a block of mdmf_prepare may take. With fewer, more blocks read the whole image.
_PREPARED_ROWS = (4, 8, 16, 32)
# Rows of a bank prepared at a time, which bounds the memory for float64 copies.
PREPARED_AT_ONCE = 1 << 15


@dataclass(frozen=True, slots=True)
class Launch:
    """One kernel's launch. grid: blocks. block: threads per block. shared: bytes of dynamic shared memory per block."""

    entry: str
    grid: tuple[int, int, int]
    block: int
    shared: int


@dataclass(frozen=True, slots=True)
class Launches:
    """The three launches of a batch, in this order. slices: rows of the partial sums that mdmf_cross writes."""

    prepare: Launch
    cross: Launch
    finish: Launch
    slices: int


@dataclass(frozen=True, slots=True)
class PreparedBank:
    """A bank as a kernel reads it, padded with points of weight 0 to whole tiles.

    operands: (rows, d) in the kernel's operand type, bf16 as uint16. In fp16x2 (rows, 2 d) float16, X beside x'.
    half_norms: (rows,), of the rounded operands.
    weights: (rows,). Times unit, they are the bank's weights.
    centre: (d,).
    """

    operands: NDArray[Any]
    half_norms: NDArray[np.float32]
    weights: NDArray[np.float32]
    unit: float
    centre: NDArray[np.float32]
    scale: float
    self_term: float


@dataclass(frozen=True, slots=True)
class Kernel:
    """A version of the kernel for one operand and width. Raises UsageError if there is no such kernel."""

    version: str
    operand: str
    width: int

    def __post_init__(self) -> None:
        if self.width not in WIDTHS:
            raise UsageError(
                f"signatures of width {self.width}: the GPU kernels are for {_listed(WIDTHS)}; use a CPU runtime, or"
                " train with one of these as d in the recipe"
            )
        if self.operand not in OPERANDS:
            raise UsageError(f"operand {self.operand!r} is not known; choose one of {_listed(OPERANDS)}")
        if self.version not in VERSIONS:
            raise UsageError(f"kernel version {self.version!r} is not known; choose one of {_listed(VERSIONS)}")
        operands = VERSIONS[self.version][1]
        if self.operand not in operands:
            raise UsageError(f"kernel {self.version!r} is not for {self.operand}; give it one of {_listed(operands)}")

    @property
    def source(self) -> Path:
        """The CUDA C++ file. It includes headers beside it."""
        return room("engines") / "kernels" / VERSIONS[self.version][0]

    @property
    def rows(self) -> int:
        """Rows (signatures) per block."""
        if self.version == "tensor":
            return 128 if self.row_bytes > 512 else 256
        if self.version == "wgmma":
            return 64 * self.warpgroups
        return 128

    @property
    def row_bytes(self) -> int:
        """Bytes of a prepared row."""
        return self.width * _BYTES[self.operand]

    @property
    def tile(self) -> int:
        """Bank points per tile. A prepared bank is a whole number of tiles."""
        if self.version == "wgmma":
            # Longer tiles would take the registers of the rows.
            return 64 if self.row_bytes > 512 or (self.operand != "fp16x2" and self.width == 128) else 128
        return 128 if self.version == "tiled" else 32

    @property
    def threads(self) -> int:
        """Threads per block of the cross term."""
        if self.version == "wgmma":
            # One more warpgroup copies.
            return 128 * (self.warpgroups + 1)
        return 128 if self.version == "plain" else 256

    @property
    def warpgroups(self) -> int:
        """Warpgroups that multiply in version "wgmma"."""
        if self.operand == "fp16x2":
            return 2
        return 3 if self.width == 256 else 4

    @property
    def shared(self) -> int:
        """Bytes of dynamic shared memory per block of the cross term."""
        if self.version == "plain":
            return 0
        if self.version == "tiled":
            return 4 * (2 * 2 * 128 * (16 + 4) + 128 * (16 + 1))
        stage = self.tile * (self.row_bytes + 8)
        if self.version == "wgmma":
            stages = 3 if stage > 50000 else 4 if stage > 30000 else 8
            # The barriers come last.
            return stages * -(-stage // _ALIGNED) * _ALIGNED + _ALIGNED
        return 3 * stage

    def supports(self, sm: int) -> bool:
        """Whether GPUs of compute capability `sm` (89 for 8.9) can run this kernel."""
        if self.version == "wgmma":
            return sm == _HOPPER
        oldest = _OLDEST_BF16 if (self.version, self.operand) == ("tensor", "bf16") else _OLDEST
        return sm >= oldest and (sm > 75 or self.shared <= _SHARED_75)

    def options(self, sm: int) -> tuple[str, ...]:
        """Options for the compiler, besides the folder of headers, and the architecture unless it is a dialect.

        Raises UsageError if GPUs of compute capability `sm` cannot run this kernel.
        """
        if not self.supports(sm):
            instead = "choose fp32 or fp16" if sm >= _OLDEST else "choose a CPU runtime"
            raise UsageError(
                f"kernel {self.version!r} with {self.operand} and d = {self.width}: GPUs of compute capability"
                f" {sm // 10}.{sm % 10} cannot run it; {instead}"
            )
        dialect = (_HOPPER_DIALECT,) if self.version == "wgmma" else ()
        return "--std=c++17", f"-DMDMF_WIDTH={self.width}", f"-DMDMF_{self.operand.upper()}", *dialect

    def slices(self, bank_rows: int) -> int:
        """Number of slices of a prepared bank of so many rows, at least one tile each."""
        tiles = bank_rows // self.tile
        # Units of a width of 256 take so long that twice as many share out more evenly among the multiprocessors.
        least = 2 * _SLICES if self.version == "wgmma" and self.width == 256 else _SLICES
        return min(tiles, max(least, math.ceil(bank_rows / _LONGEST_SLICE)))

    def launches(self, images: int, patches: int, bank_rows: int, multiprocessors: int) -> Launches:
        """Launches for B >= 1 images of N >= 1 signatures each against a prepared bank of `bank_rows` rows."""
        rows, slices = images * patches, self.slices(bank_rows)
        across = math.ceil(rows / self.rows)
        if self.version == "wgmma":
            # One list of units, which the blocks share out among themselves.
            grid = (min(multiprocessors, across * slices), 1, 1)
        else:
            shares = _shares(across, slices, bank_rows / self.tile / slices, multiprocessors * self.resident)
            grid = (across, shares, 1)
        return Launches(
            Launch("mdmf_prepare", (images, self._chunks(images, patches, multiprocessors), 1), _PREPARE_THREADS, 0),
            Launch("mdmf_cross", grid, self.threads, self.shared),
            Launch("mdmf_finish", (images, 1, 1), _FINISH_THREADS, 0),
            slices,
        )

    def _chunks(self, images: int, patches: int, multiprocessors: int) -> int:
        """Return into how many chunks mdmf_prepare divides an image's rows: the most whose blocks all run at once."""
        places = multiprocessors * (1 if self.width > 128 else 2)
        chunks = [math.ceil(patches / rows) for rows in _PREPARED_ROWS]
        return next((count for count in chunks if images * count <= places), chunks[-1])

    @property
    def resident(self) -> int:
        """Blocks that a multiprocessor holds at a time, limited by __launch_bounds__ and shared memory."""
        if self.version == "plain":
            return 4
        if self.version == "wgmma":
            return 1
        return 2 if self.version == "tiled" or self.row_bytes <= 256 else 1


def kernels() -> Iterator[Kernel]:
    """Yield every kernel."""
    for version, (_, operands) in VERSIONS.items():
        for operand in operands:
            for width in WIDTHS:
                yield Kernel(version, operand, width)


def choose(sm: int, width: int, operand: str, version: str | None = None) -> Kernel:
    """Return the kernel for a GPU of compute capability `sm` (89 for 8.9) and signatures of width d.

    operand: "fp32", "fp16x2" (on tensor cores, as accurate), "fp16" or "bf16".
    version: None for the fastest.
    Raises UsageError if there is none.
    """
    fastest = "tiled" if operand == "fp32" else "wgmma" if sm == _HOPPER else "tensor"
    kernel = Kernel(version or fastest, operand, width)
    kernel.options(sm)
    return kernel


def prepare_bank(bank: Bank, kernel: Kernel) -> PreparedBank:
    """Prepare a bank for a kernel, on the host. Raises UsageError if the bank's width is not the kernel's."""
    return lay_out(round_bank(bank, kernel), kernel)


def round_bank(bank: Bank, kernel: Kernel) -> PreparedBank:
    """Round a bank to a kernel's operands and pad it to whole tiles, point after point.

    Raises UsageError if the bank's width is not the kernel's.
    """
    m, d = bank.signatures.shape
    if d != kernel.width:
        raise UsageError(f"bank: signatures of width {d}, but the kernel is for {kernel.width}; choose it by the bank")
    centre = bank.signatures.mean(axis=0, dtype=np.float64).astype(np.float32)
    scale = np.float32(math.sqrt(math.log2(math.e)) / bank.sigma)
    rows = -(-m // kernel.tile) * kernel.tile
    operands = rounded(np.zeros((rows, d)), kernel.operand)
    half_norms = np.zeros(rows, np.float32)
    limit = LIMITS[kernel.operand]
    for start in range(0, m, PREPARED_AT_ONCE):
        points = (bank.signatures[start : start + PREPARED_AT_ONCE] - centre.astype(np.float64)) * float(scale)
        part = rounded(np.clip(points, -limit, limit), kernel.operand)
        operands[start : start + len(part)] = part
        values = widened(part, kernel.operand)
        half_norms[start : start + len(part)] = np.einsum("md,md->m", values, values) / 2
    weights = np.zeros(rows, np.float32)
    # In units of the largest weight: equal weights become exactly 1, without a rounding error common to all terms.
    unit = float(np.abs(bank.weights).max()) or 1.0
    weights[:m] = bank.weights / unit
    return PreparedBank(operands, half_norms, weights, unit, centre, float(scale), bank.self_term)


def lay_out(bank: PreparedBank, kernel: Kernel) -> PreparedBank:
    """Lay a rounded bank out as a kernel reads it. Only "wgmma" differs.

    There, a tile is one plane of 128 bytes a point after the other. Within every 32 columns, column 8 q + 4 s + 2 h + e
    becomes column 2 q + e of half h of product s, so that thread q of four finds what it needs of a row of x in 16
    consecutive bytes. The words of 16 bytes of a point are swizzled by the point modulo 8. 2^-(half norm) is in the
    weights, and half_norms are what would not fit there.
    """
    if kernel.version != "wgmma":
        return bank
    operands = bank.operands
    columns = operands.reshape(len(operands), -1, 4, 2, 2, 2).transpose(0, 1, 3, 4, 2, 5)
    tiles = columns.reshape(-1, kernel.tile, operands.shape[1] // 64, 8, 8).transpose(0, 2, 1, 3, 4)
    point, word = np.arange(kernel.tile)[:, None], np.arange(8)[None]
    swizzled = np.empty(tiles.shape, operands.dtype)
    swizzled[:, :, point, word ^ point % 8] = tiles[:, :, point, word]
    folded = np.minimum(bank.half_norms, np.float32(_NEAR))
    rest = bank.half_norms - folded
    if rest.any():
        # Every tile tells by its first point that there is something to subtract.
        first = rest[:: kernel.tile]
        first[first == 0.0] = _MARK
    weights = (bank.weights * np.exp2(-folded.astype(np.float64))).astype(np.float32)
    return replace(bank, operands=swizzled.reshape(operands.shape), half_norms=rest, weights=weights)


def rounded(values: NDArray[np.floating], operand: str) -> NDArray[Any]:
    """Round (..., d) to the operand's type in memory.

    bf16 is returned as its bits (uint16). fp16x2 is returned as (..., 2 d) float16: d numbers X, then d numbers x'.
    """
    if operand == "bf16":
        bits = np.asarray(values, np.float32).view(np.uint32)
        return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)
    if operand == "fp16x2":
        # Through float32, like the signatures: X + x' is a float32 then.
        values = np.asarray(values, np.float32)
        first = values.astype(np.float16)
        return np.concatenate([first, (values - first).astype(np.float16)], axis=-1)
    return np.asarray(values, np.float16 if operand == "fp16" else np.float32)


def widened(operands: NDArray[Any], operand: str) -> NDArray[np.float64]:
    """Convert the result of `rounded` to float64, (..., d)."""
    if operand == "bf16":
        operands = (operands.astype(np.uint32) << 16).view(np.float32)
    values = operands.astype(np.float64)
    if operand == "fp16x2":
        first, rest = np.split(values, 2, axis=-1)
        return first + rest
    return values


@lru_cache(maxsize=256)
def _shares(across: int, slices: int, tiles: float, places: int) -> int:
    """Return how many blocks should share the slices of each of `across` row tiles, so that the last finishes earliest.

    Of equals take the fewest waves, and then the most blocks: they leave less of the GPU idle and have less to do each.
    tiles: per slice. places: blocks that run at a time.
    """

    def time(shares: int) -> tuple[float, int, int]:
        waves = math.ceil(across * shares / places)
        return waves * (math.ceil(slices / shares) * tiles + _START), waves, -shares

    return min(range(1, min(slices, _MOST_SHARES) + 1), key=time)


def _listed(names: Any) -> str:
    *most, last = map(str, names)
    return f"{', '.join(most)} or {last}" if most else last
