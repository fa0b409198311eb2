"""Time step 4 (Hopper's warpgroup products) next to step 3, as it is and with one thing changed.

    python benchmarks/gpu/wgmma.py [--operands fp16] [--widths 128 64 256]

Needs a GPU of compute capability 9.0. With MDMF_FAKE_GPU=1 it only compiles a few variants.
"""

from __future__ import annotations

import argparse
import math
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from clock import Clock
from inputs import random_input
from launcher import FAKE, KernelLauncher, edited_source, open_gpu
from variants import AS_IT_IS, HOPPER_VARIANTS, HopperVariant

from mdmf_deploy.hardware.cubin import Nvrtc
from mdmf_deploy.hardware.device import Device
from mdmf_deploy.mmd.cuda.kernels import Kernel, prepare_bank

sys.path.append(str(Path(__file__).resolve().parents[1]))
from common import table

REPEATS, ROUNDS = 5, 9
SHAPE = (64, 49, 65_536)  # B, N, M
SM = 90
COLUMNS = ("what", "µs", "next to step 3", "TFLOP/s", "sums")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--operands", nargs="+", default=["fp16"])
    parser.add_argument("--widths", type=int, nargs="+", default=[128, 64, 256])
    parsed = parser.parse_args()
    tested = [Kernel("wgmma", operand, width) for operand in parsed.operands for width in parsed.widths]
    if FAKE:
        for name, variant in HOPPER_VARIANTS.items():
            print(name, len(Nvrtc()(source(tested[0], variant), compiled_with(tested[0], variant), SM)), "bytes")
        return
    device = open_gpu()
    clock = Clock(device)
    # Compiled side by side into the cache, before anything is timed.
    with ThreadPoolExecutor(8) as pool:
        jobs = [(kernel, variant) for kernel in tested for variant in HOPPER_VARIANTS.values()]
        list(pool.map(lambda job: compile_quietly(device, *job), jobs))
    for kernel in tested:
        print(f"Step 4 in {kernel.operand}, B = 64, N = 49, M = 65,536, d = {kernel.width}\n")
        print(table(rows(device, clock, kernel), COLUMNS), flush=True)
    clock.close()


def source(kernel: Kernel, variant: HopperVariant) -> Path:
    return edited_source(kernel, variant.edits) if variant.edits else kernel.source


def compiled_with(kernel: Kernel, variant: HopperVariant) -> tuple[str, ...]:
    return (*kernel.options(SM), *variant.options)


def compile_quietly(device: Device, kernel: Kernel, variant: HopperVariant) -> None:
    try:
        device.module(source(kernel, variant), compiled_with(kernel, variant))
    # The table shows what does not compile.
    except Exception:
        return


class Altered(Kernel):
    """Step 4 with a variant's warpgroups and tile."""

    @classmethod
    def of(cls, kernel: Kernel, variant: HopperVariant) -> Altered:
        altered = cls(kernel.version, kernel.operand, kernel.width)
        object.__setattr__(altered, "variant", variant)
        return altered

    @property
    def warpgroups(self) -> int:
        own = Kernel(self.version, self.operand, self.width).warpgroups
        return self.variant.consumers or own  # type: ignore[attr-defined, no-any-return]

    @property
    def tile(self) -> int:
        own = Kernel(self.version, self.operand, self.width).tile
        return self.variant.tile or own  # type: ignore[attr-defined, no-any-return]


def rows(device: Device, clock: Clock, kernel: Kernel) -> list[tuple[str, ...]]:
    """Return a table's rows: step 3, then every variant of step 4."""
    given = random_input(*SHAPE, kernel.width)
    third = Kernel("tensor", kernel.operand, kernel.width)
    step3 = KernelLauncher(device, third, given.x, prepare_bank(given.bank, third))
    base = clock.seconds(step3.cross, step3.stream, ROUNDS, REPEATS)
    exact = step3.partial_sums().sum(axis=0, dtype=np.float64)
    step3.free()
    found: list[tuple[str, ...]] = [("step 3", f"{1e6 * base:.1f}", "1.00")]
    operations = 2.0 * len(exact) * SHAPE[2] * kernel.width * (3 if kernel.operand == "fp16x2" else 1)
    for name, variant in HOPPER_VARIANTS.items():
        try:
            altered = Altered.of(kernel, variant)
            prepared = prepare_bank(given.bank, altered)
            launcher = KernelLauncher(device, altered, given.x, prepared, source(kernel, variant), variant.options)
            slices, own = variant.slices or launcher.launches.slices, launcher.launches.cross
            units = math.ceil(launcher.rows / altered.rows) * slices
            launch = replace(own, grid=(min(device.gpu.multiprocessors, units), 1, 1))
            launcher.poison(launcher.partial, 4 * launcher.rows * slices)
            cross = partial(launcher.cross, slices=slices, launch=launch)
            cross(launcher.stream)
            sums = launcher.partial_sums(slices).sum(axis=0, dtype=np.float64)
            seconds = clock.seconds(cross, launcher.stream, ROUNDS, REPEATS)
            launcher.free()
        # A variant that does not compile or launch leaves the others to be measured.
        except Exception as error:
            found.append((name, f"failed: {str(error)[:90]}"))
            if "CUDA_ERROR" in str(error):
                # The context is lost, so nothing after this would run.
                break
            continue
        # A table is printed only at its end, which a variant that hangs would prevent.
        print(name, f"{1e6 * seconds:.1f}", file=sys.stderr, flush=True)
        off = float(np.max(np.abs(sums / exact - 1)))
        rate = f"{operations / seconds / 1e12:.0f}"
        found.append((name, f"{1e6 * seconds:.1f}", f"{seconds / base:.2f}", rate, f"off by {off:.1e}"))
        assert name != AS_IT_IS or off < 1e-4, f"step 4 is wrong: {off}"
    return found


if __name__ == "__main__":
    main()
