"""Measure what a card can do at most, and compute the least time that a reduction can take there: its floor.

Bytes, operations, exponentials: whichever takes longest is the floor (engines/kernels/README.md).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from clock import Clock

from mdmf_deploy.hardware.device import LEGACY_STREAM, Device, Stream
from mdmf_deploy.mmd.cuda.kernels import Kernel

_COPIED = 1 << 30  # bytes
_CHAINS, _LONG, _THREADS, _WAVES = 4, 4096, 256, 8
_SIDE = 8192
# Share of the exponentials that the special-function unit computes.
_SPECIAL = {"plain": 0.0, "tiled": 0.75, "tensor": 0.75, "wgmma": 1.0}


@dataclass(frozen=True, slots=True)
class Case:
    """B images of N signatures, d wide, against M points."""

    images: int
    patches: int
    points: int
    width: int

    def __str__(self) -> str:
        return f"B = {self.images}, N = {self.patches}, M = {self.points:,}, d = {self.width}"

    @property
    def rows(self) -> int:
        return self.images * self.patches

    @property
    def pairs(self) -> int:
        return self.rows * (self.points + self.patches)


@dataclass(frozen=True, slots=True)
class Card:
    """Measured rates of a card.

    bandwidth: bytes/s.
    exponentials: 1/s.
    operations: operand -> 1/s, for the operands that could be measured.
    """

    bandwidth: float
    exponentials: float
    operations: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Floor:
    """The least time of a reduction in seconds, and what limits it: bytes, operations or exponentials."""

    seconds: float
    limit: str


def floor(case: Case, kernel: Kernel, card: Card) -> Floor | None:
    """Return the least time for a case, or None if the card's rate for the kernel's operand is unknown."""
    # fp16x2 takes three products in fp16. Step 1 has a difference and a product in place of one product.
    products = 3 if kernel.operand == "fp16x2" else 2 if kernel.version == "plain" else 1
    multiplied = "fp32" if kernel.version == "plain" else "fp16" if kernel.operand == "fp16x2" else kernel.operand
    rate = card.operations.get(multiplied)
    if rate is None:
        return None
    read = 4 * kernel.width * case.rows + (case.points + 2 * case.rows) * kernel.row_bytes
    takes = {
        "bytes": read / card.bandwidth,
        "operations": 2.0 * products * case.pairs * case.width / rate,
        "exponentials": _SPECIAL[kernel.version] * case.pairs / card.exponentials,
    }
    limit = max(takes, key=lambda name: takes[name])
    return Floor(takes[limit], limit)


def measure(device: Device, clock: Clock) -> Card:
    """Measure this card's rates. Products are timed through PyTorch or CuPy and left out if neither is installed."""
    stream = device.stream()
    operations: dict[str, float] = {}
    for operand in ("fp16", "bf16", "fp32"):
        if (multiply := _product(operand)) is not None:
            seconds = clock.seconds(lambda _, multiply=multiply: multiply(), device.stream(LEGACY_STREAM))
            operations[operand] = 2.0 * _SIDE**3 / seconds
    return Card(_bandwidth(device, clock, stream), _exponentials(device, clock, stream), operations)


def _bandwidth(device: Device, clock: Clock, stream: Stream) -> float:
    nbytes = min(_COPIED, device.gpu.memory // 16)
    memory = [device.allocate(nbytes, "free some of the GPU's memory") for _ in range(2)]
    seconds = clock.seconds(lambda on: device.copy(*memory, nbytes, on), stream)
    for room in memory:
        room.free()
    return 2 * nbytes / seconds


def _exponentials(device: Device, clock: Clock, stream: Stream) -> float:
    kernel = device.module(Path(__file__).with_name("exp2_rate.cu"), ("--std=c++17",))["exp2_rate"]
    out = device.allocate(4, "free some of the GPU's memory")
    blocks = device.gpu.multiprocessors * _WAVES
    arguments = np.uintp(out.pointer), np.int32(_LONG)
    seconds = clock.seconds(lambda on: device.launch(kernel, (blocks, 1, 1), _THREADS, 0, arguments, on), stream)
    out.free()
    return blocks * _THREADS * _CHAINS * _LONG / seconds


def _product(operand: str) -> Callable[[], Any] | None:
    try:
        import torch
    except ImportError:
        return _cupy_product(operand)
    if not torch.cuda.is_available():
        return _cupy_product(operand)
    dtype = {"fp16": torch.float16, "bf16": torch.bfloat16}.get(operand, torch.float32)
    a, b = (torch.randn(_SIDE, _SIDE, device="cuda", dtype=dtype) for _ in range(2))

    def multiply() -> Any:
        torch.backends.cuda.matmul.allow_tf32 = False
        return a @ b

    return multiply


def _cupy_product(operand: str) -> Callable[[], Any] | None:
    try:
        import cupy
    except ImportError:
        return None
    dtype = {"fp16": cupy.float16, "fp32": cupy.float32}.get(operand)
    if dtype is None:
        return None
    a, b = (cupy.random.standard_normal((_SIDE, _SIDE), dtype=cupy.float32).astype(dtype) for _ in range(2))
    return lambda: a @ b
