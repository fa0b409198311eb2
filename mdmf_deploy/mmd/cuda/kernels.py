"""Describe the CUDA kernels of the reduction for compilation and launch, without importing any GPU library.

    k(a, b) = 2^(a'.b' - |a'|^2/2 - |b'|^2/2),   a' = scale (a - centre),   scale = sqrt(log2(e)) / sigma

The sources and formulas are in engines/kernels. The length of a bank alone decides its slices, and the sum of a slice
has a fixed order. Each batch chooses how many blocks share the slices. So an image's bits depend neither on its batch
nor on the size of the GPU.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mdmf_deploy.bundle.bank import Bank
from mdmf_deploy.errors import UsageError
from mdmf_deploy.files import room

WIDTHS = (64, 128, 256)
OPERANDS = ("fp32", "tf32", "fp16", "bf16")
# version -> source file, operands.
VERSIONS: dict[str, tuple[str, tuple[str, ...]]] = {
    "plain": ("1_plain.cu", ("fp32", "fp16", "bf16")),
    "tiled": ("2_tiled.cu", ("fp32",)),
    "tensor": ("3_tensor.cu", ("tf32", "fp16", "bf16")),
}
# Oldest compute capability for each kernel: matrix products in tf32 and bf16 came with 8.0.
_OLDEST = 75
_OLDEST_TENSOR = {"fp16": 75, "tf32": 80, "bf16": 80}
# The same as LIMIT in common.cuh: no sum of products overflows, and fp16 holds nothing larger.
_LIMITS = {"fp32": 2.0**56, "tf32": 2.0**56, "fp16": 65504.0, "bf16": 2.0**56}
_BYTES = {"fp32": 4, "tf32": 4, "fp16": 2, "bf16": 2}
# Slices of a bank: enough for one image to occupy a large GPU. A long bank has more, so that no slice has more points
# than float32 can sum accurately.
_SLICES = 128
_LONGEST_SLICE = 512
# Time a block needs to start, in tiles of the bank: it loads its rows and waits for the first tiles.
_START = 3
# Most blocks that share the slices of a row tile: more than any GPU runs at once, few enough to try all counts.
_MOST_SHARES = 1024
# Threads per block of the kernels around the cross term (common.cuh, part 4).
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

    operands: (rows, d) in the kernel's operand type, bf16 as uint16.
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
        """The CUDA C++ file. It includes a header beside it."""
        return room("engines") / "kernels" / VERSIONS[self.version][0]

    @property
    def rows(self) -> int:
        """Rows (signatures) per block."""
        if self.version == "tensor":
            return 128 if self.operand == "tf32" and self.width > 64 else 256
        return 128

    @property
    def tile(self) -> int:
        """Bank points per tile. A prepared bank is a whole number of tiles."""
        return 128 if self.version == "tiled" else 32

    @property
    def shared(self) -> int:
        """Bytes of dynamic shared memory per block of the cross term."""
        if self.version == "plain":
            return 0
        if self.version == "tiled":
            return 4 * (2 * 2 * 128 * (16 + 4) + 128 * (16 + 1))
        return 3 * self.tile * (self.width * _BYTES[self.operand] + 8)

    def supports(self, sm: int) -> bool:
        """Whether GPUs of compute capability `sm` (89 for 8.9) can run this kernel."""
        return sm >= (_OLDEST_TENSOR[self.operand] if self.version == "tensor" else _OLDEST)

    def options(self, sm: int) -> tuple[str, ...]:
        """Options for the compiler, besides the architecture and the folder of headers.

        Raises UsageError if GPUs of compute capability `sm` cannot run this kernel.
        """
        if not self.supports(sm):
            instead = "choose fp32 or fp16" if sm >= _OLDEST else "choose a CPU runtime"
            raise UsageError(
                f"kernel {self.version!r} with {self.operand}: GPUs of compute capability {sm // 10}.{sm % 10} cannot"
                f" run it; {instead}"
            )
        return "--std=c++17", f"-DMDMF_WIDTH={self.width}", f"-DMDMF_{self.operand.upper()}"

    def slices(self, bank_rows: int) -> int:
        """Number of slices of a prepared bank of so many rows, at least one tile each."""
        tiles = bank_rows // self.tile
        return min(tiles, max(_SLICES, math.ceil(bank_rows / _LONGEST_SLICE)))

    def launches(self, images: int, patches: int, bank_rows: int, multiprocessors: int) -> Launches:
        """Launches for B >= 1 images of N >= 1 signatures each against a prepared bank of `bank_rows` rows."""
        rows, slices = images * patches, self.slices(bank_rows)
        across = math.ceil(rows / self.rows)
        threads = 128 if self.version == "plain" else 256
        shares = _shares(across, slices, bank_rows / self.tile / slices, multiprocessors * self.resident)
        return Launches(
            Launch("mdmf_prepare", (images, self._chunks(images, patches, multiprocessors), 1), _PREPARE_THREADS, 0),
            Launch("mdmf_cross", (across, shares, 1), threads, self.shared),
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
        return 2 if self.version == "tiled" or (self.operand != "tf32" and self.width <= 128) else 1


def kernels() -> Iterator[Kernel]:
    """Yield every kernel."""
    for version, (_, operands) in VERSIONS.items():
        for operand in operands:
            for width in WIDTHS:
                yield Kernel(version, operand, width)


def choose(sm: int, width: int, operand: str, version: str | None = None) -> Kernel:
    """Return the kernel for a GPU of compute capability `sm` (89 for 8.9) and signatures of width d.

    operand: "fp32", "tf32" (on tensor cores, accurate to 1e-5), "fp16" or "bf16".
    version: None for the fastest.
    Raises UsageError if there is none.
    """
    kernel = Kernel(version or ("tiled" if operand == "fp32" else "tensor"), operand, width)
    kernel.options(sm)
    return kernel


def prepare_bank(bank: Bank, kernel: Kernel) -> PreparedBank:
    """Prepare a bank for a kernel, on the host. Raises UsageError if the bank's width is not the kernel's."""
    m, d = bank.signatures.shape
    if d != kernel.width:
        raise UsageError(f"bank: signatures of width {d}, but the kernel is for {kernel.width}; choose it by the bank")
    centre = bank.signatures.mean(axis=0, dtype=np.float64).astype(np.float32)
    scale = np.float32(math.sqrt(math.log2(math.e)) / bank.sigma)
    rows = -(-m // kernel.tile) * kernel.tile
    operands = rounded(np.zeros((rows, d)), kernel.operand)
    half_norms = np.zeros(rows, np.float32)
    limit = _LIMITS[kernel.operand]
    for start in range(0, m, PREPARED_AT_ONCE):
        points = (bank.signatures[start : start + PREPARED_AT_ONCE] - centre.astype(np.float64)) * float(scale)
        part = rounded(np.clip(points, -limit, limit), kernel.operand)
        operands[start : start + len(part)] = part
        values = widened(part)
        half_norms[start : start + len(part)] = np.einsum("md,md->m", values, values) / 2
    weights = np.zeros(rows, np.float32)
    # In units of the largest weight: equal weights become exactly 1, without a rounding error common to all terms.
    unit = float(np.abs(bank.weights).max()) or 1.0
    weights[:m] = bank.weights / unit
    return PreparedBank(operands, half_norms, weights, unit, centre, float(scale), bank.self_term)


def rounded(values: NDArray[np.floating], operand: str) -> NDArray[Any]:
    """Round to the operand's type in memory. bf16 is returned as its bits (uint16)."""
    if operand == "bf16":
        bits = np.asarray(values, np.float32).view(np.uint32)
        return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)
    return np.asarray(values, np.float16 if operand == "fp16" else np.float32)


def widened(operands: NDArray[Any]) -> NDArray[np.float64]:
    """Convert the result of `rounded` to float64."""
    if operands.dtype == np.uint16:
        operands = (operands.astype(np.uint32) << 16).view(np.float32)
    return operands.astype(np.float64)


@lru_cache(maxsize=256)
def _shares(across: int, slices: int, tiles: float, places: int) -> int:
    """Return how many blocks should share the slices of each of `across` row tiles: the fewest that finish earliest.

    tiles: per slice. places: blocks that run at a time.
    """

    def time(shares: int) -> float:
        return math.ceil(across * shares / places) * (math.ceil(slices / shares) * tiles + _START)

    return min(range(1, min(slices, _MOST_SHARES) + 1), key=time)


def _listed(names: Any) -> str:
    *most, last = map(str, names)
    return f"{', '.join(most)} or {last}" if most else last
