"""Launch the project's kernels one by one, with any grid, slices or source.

MDMF_FAKE_GPU=1 replaces the GPU by the kernels' host build (tests/fakes), to rehearse every script of this folder with
small inputs on a machine without a GPU.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mdmf_deploy.hardware.device import Device, Memory, Stream, open_device, upload
from mdmf_deploy.mmd.cuda.kernels import Kernel, Launch, PreparedBank

FAKE = os.environ.get("MDMF_FAKE_GPU") == "1"
TESTS = Path(__file__).resolve().parents[2] / "tests"
ENTRIES = ("prepare", "cross", "finish")
# Most slices that `cross` may be asked for.
MOST_SLICES = 2048


def open_gpu() -> Device:
    """Open the first GPU, or the fake one. Raises RuntimeUnavailable without a GPU."""
    if not FAKE:
        return open_device()
    sys.path.append(str(TESTS))
    from fakes.on_host import host_device

    return host_device(sm=90)


class KernelLauncher:
    """One kernel with one batch, (B, N, d), and one prepared bank on the GPU.

    source: a file to compile instead of the project's own.
    options: for the compiler, besides the kernel's own.
    Raises CompilationFailed and OutOfMemory.
    """

    def __init__(
        self,
        device: Device,
        kernel: Kernel,
        x: NDArray[np.float32],
        prepared: PreparedBank,
        source: Path | None = None,
        options: tuple[str, ...] = (),
    ) -> None:
        self.device, self.kernel, self.prepared = device, kernel, prepared
        self.images, self.patches, self.width = x.shape
        self.rows, self.bank_rows = self.images * self.patches, len(prepared.operands)
        module = device.module(source or kernel.source, (*kernel.options(device.gpu.sm), *options))
        self.entries = {name: module[f"mdmf_{name}"] for name in ENTRIES}
        self.launches = kernel.launches(self.images, self.patches, self.bank_rows, device.gpu.multiprocessors)
        self.stream = device.stream()
        self.x = self.upload(x)
        self.bank, self.bank_norms = self.upload(prepared.operands), self.upload(prepared.half_norms)
        self.weights, self.centre = self.upload(prepared.weights), self.upload(prepared.centre)
        self.operands = device.allocate(self.rows * kernel.row_bytes, "-")
        self.norms, self.within_sums = (device.allocate(4 * self.rows, "-") for _ in range(2))
        self.out = device.allocate(8 * (self.rows + self.images), "-")
        self.partial = device.allocate(4 * self.rows * MOST_SLICES, "-")
        self.prepare(self.stream)
        self.stream.synchronize()

    def upload(self, array: NDArray[Any]) -> Memory:
        return upload(self.device, array, self.stream, "-")

    def prepare(self, stream: Stream) -> None:
        scale = np.float32(self.prepared.scale)
        arguments = self.x, self.centre, scale, self.patches, self.operands, self.norms, self.within_sums
        self._launch("prepare", self.launches.prepare, arguments, stream)

    def cross(self, stream: Stream, slices: int | None = None, launch: Launch | None = None) -> None:
        """Launch the cross term. slices, launch: instead of the kernel's own."""
        bank = self.bank, self.bank_norms, self.weights
        slices = slices or self.launches.slices
        arguments = self.operands, self.norms, *bank, self.rows, self.bank_rows, slices, self.partial
        self._launch("cross", launch or self.launches.cross, arguments, stream)

    def finish(self, stream: Stream) -> None:
        scalars = np.float32(self.prepared.unit), np.float64(self.prepared.self_term)
        sizes = self.launches.slices, self.images, self.patches
        mmd2 = np.uintp(self.out.pointer + 8 * self.rows)
        arguments = self.partial, self.within_sums, *sizes, *scalars, self.out, mmd2
        self._launch("finish", self.launches.finish, arguments, stream)

    def partial_sums(self, slices: int | None = None) -> NDArray[np.float32]:
        """Wait and return what `cross` wrote, (slices, rows)."""
        slices = slices or self.launches.slices
        return self.fetch(self.partial, self.rows * slices, np.float32).reshape(slices, self.rows)

    def fetch(self, memory: Memory, count: int, dtype: type) -> NDArray[Any]:
        """Wait and return the first `count` numbers of a memory."""
        nbytes = count * np.dtype(dtype).itemsize
        host = self.device.allocate(nbytes, "-", pinned=True)
        self.device.copy(host, memory, nbytes, self.stream)
        self.stream.synchronize()
        result = host.host[:nbytes].view(dtype).copy()
        host.free()
        return result

    def poison(self, memory: Memory, nbytes: int) -> None:
        """Fill a memory with bytes of 0xff, which are NaN as float32 and as float64."""
        host = self.device.allocate(nbytes, "-", pinned=True)
        host.host[:nbytes] = 0xFF
        self.device.copy(memory, host, nbytes, self.stream)
        self.stream.synchronize()
        host.free()

    def free(self) -> None:
        bank = self.bank, self.bank_norms, self.weights, self.centre
        for memory in (*bank, self.x, self.operands, self.norms, self.within_sums, self.out, self.partial):
            memory.free()

    def _launch(self, name: str, launch: Launch, arguments: Sequence[Any], stream: Stream) -> None:
        given = tuple(map(as_argument, arguments))
        self.device.launch(self.entries[name], launch.grid, launch.block, launch.shared, given, stream)


def as_argument(value: Any) -> np.generic:
    """Convert a NumPy scalar, an int or a memory to a kernel's argument."""
    if isinstance(value, np.generic):
        return value
    return np.int32(value) if isinstance(value, int) else np.uintp(value.pointer)


def edited_source(kernel: Kernel, edits: Sequence[tuple[str, str]]) -> Path:
    """Copy the folder of a kernel's source and edit the copy. Raises LookupError unless each old text is there once."""
    folder = Path(tempfile.mkdtemp(prefix="mdmf-variant-"))
    shutil.copytree(kernel.source.parent, folder, dirs_exist_ok=True)
    file = folder / kernel.source.name
    text = file.read_text(encoding="utf-8")
    for old, new in edits:
        if text.count(old) != 1:
            raise LookupError(f"{text.count(old)} times, not once, in {file.name}: {old!r}")
        text = text.replace(old, new)
    file.write_text(text, encoding="utf-8")
    return file
