"""Time a Hopper design of step 3 (wgmma.cu, a sketch) and compare its sums with those of step 3.

    python benchmarks/gpu/wgmma.py

Needs a GPU of compute capability 9.0. With MDMF_FAKE_GPU=1 it only compiles the sketch.
"""

from __future__ import annotations

import itertools
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from clock import Clock
from inputs import random_input
from launcher import FAKE, KernelLauncher, as_argument, open_gpu
from numpy.typing import NDArray

from mdmf_deploy.errors import MdmfError
from mdmf_deploy.hardware.cubin import Nvrtc
from mdmf_deploy.mmd.cuda.kernels import Kernel, prepare_bank

sys.path.append(str(Path(__file__).resolve().parents[1]))
from common import table

SOURCE = Path(__file__).with_name("wgmma.cu")
TILE, SHARED = 128, 4 * 33 * 1024 + 1024  # points, bytes
REPEATS, ROUNDS = 5, 9
HEADINGS = ("wgmma", "µs", "next to step 3", "rate", "sums")


@dataclass(frozen=True, slots=True)
class Design:
    """How the sketch is compiled.

    consumers: warpgroups that compute, two or three.
    folded: whether the norms are in the weights.
    special: how many of four exponentials the special-function unit computes.
    """

    consumers: int
    folded: bool
    special: int

    def __str__(self) -> str:
        norms = "norms in the weights" if self.folded else "norms added"
        return f"{self.consumers} warpgroups, {norms}, {self.special} of 4 by the special-function unit"

    def cubin(self) -> bytes:
        """Compile the sketch. Raises CompilationFailed."""
        options = f"-DFOLDED={int(self.folded)}", f"-DSPECIAL={self.special}", f"-DCONSUMERS={self.consumers}"
        # wgmma exists only in the architecture's own dialect, sm_90a, which has no number.
        return Nvrtc()(SOURCE, ("--std=c++17", *options), "90a")  # type: ignore[arg-type]


DESIGNS = [Design(*choice) for choice in itertools.product((2, 3), (False, True), (3, 4, 2))]


def swizzled(operands: NDArray[np.float16]) -> NDArray[np.float16]:
    """Lay a bank out for wgmma: (M, 128) -> (tiles, half of the columns, point, word of 16 bytes, 8).

    Word w of point p lies at w ^ (p % 8).
    """
    tiles = operands.reshape(-1, TILE, 2, 8, 8).transpose(0, 2, 1, 3, 4)
    point, word = np.arange(TILE)[:, None], np.arange(8)[None]
    out = np.empty(tiles.shape, operands.dtype)
    out[:, :, point, word ^ (point % 8)] = tiles[:, :, point, word]
    return np.ascontiguousarray(out)


def loaded(cubin: bytes) -> tuple[Any, Any]:
    """Load the kernel with enough dynamic shared memory. Returns the code as well, which the kernel needs to live."""
    from cuda import core
    from cuda.bindings import driver

    code = core.ObjectCode.from_cubin(cubin)
    kernel = code.get_kernel("wg_cross")
    attribute = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
    result, device = driver.cuCtxGetDevice()
    if result == driver.CUresult.CUDA_SUCCESS:
        (result,) = driver.cuKernelSetAttribute(attribute, SHARED, kernel.handle, device)
    if result != driver.CUresult.CUDA_SUCCESS:
        raise RuntimeError(f"{SHARED} bytes of shared memory: {result.name}")
    return code, kernel


def main() -> None:
    if FAKE:
        for design in DESIGNS[:2]:
            print(design, len(design.cubin()), "bytes", flush=True)
        return
    device = open_gpu()
    clock = Clock(device)
    given = random_input(64, 49, 65_536, 128)
    kernel = Kernel("tensor", "fp16", 128)
    prepared = prepare_bank(given.bank, kernel)
    step3 = KernelLauncher(device, kernel, given.x, prepared)
    step3.cross(step3.stream)
    own = step3.partial_sums()
    base = clock.seconds(step3.cross, step3.stream, ROUNDS, REPEATS)
    rows = [("step 3", f"{1e6 * base:.1f}", "1.00")]
    tiles, norms, plain = map(step3.upload, (swizzled(prepared.operands), prepared.half_norms, prepared.weights))
    folded = step3.upload((prepared.weights * np.exp2(-prepared.half_norms.astype(np.float64))).astype(np.float32))
    operations = 2.0 * step3.rows * step3.bank_rows * 128
    for design in DESIGNS:
        weights = folded if design.folded else plain
        sizes = step3.rows, step3.launches.slices
        values = step3.operands, step3.norms, tiles, norms, weights, *sizes, step3.partial
        arguments = tuple(map(as_argument, values))
        threads = 128 * (design.consumers + 1)
        try:
            code, entry = loaded(design.cubin())

            def launch(on: Any, entry: Any = entry, arguments: Any = arguments, threads: int = threads) -> None:
                device.launch(entry, (device.gpu.multiprocessors, 1, 1), threads, SHARED, arguments, on)

            step3.poison(step3.partial, own.nbytes)
            launch(step3.stream)
            off = float(np.max(np.abs(step3.partial_sums() / own - 1)))
            seconds = clock.seconds(launch, step3.stream, ROUNDS, REPEATS)
            del code
        # A design that does not compile or launch leaves the others to be measured.
        except Exception as error:
            rows.append((str(design), f"failed: {str(error)[:80]}", ""))
            if not isinstance(error, MdmfError) and "CUDA_ERROR" in str(error):
                # The context is lost, so nothing after this would run.
                break
        else:
            rate = f"{operations / seconds / 1e12:.0f} TFLOP/s"
            rows.append((str(design), f"{1e6 * seconds:.1f}", f"{seconds / base:.2f}", rate, f"off by {off:.1e}"))
    print(table(rows, HEADINGS), flush=True)


if __name__ == "__main__":
    main()
