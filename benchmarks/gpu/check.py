"""Compare every kernel of every step, operand and width with float64, and print a PASS or FAIL line as each is known.

    python benchmarks/gpu/check.py [--versions wgmma]

The order is: most likely and most serious failures first. Exit code 1 if anything failed. MDMF_FAKE_GPU=1 checks the
kernels of width 64 on this machine's processor, on small inputs.
"""

from __future__ import annotations

import argparse
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
from correctness import check_kernel, expected, from_products
from inputs import all_inputs, random_input
from launcher import FAKE, KernelLauncher, open_gpu

from mdmf_deploy.hardware.device import Device, upload
from mdmf_deploy.mmd.cuda.kernels import VERSIONS, Kernel, kernels, prepare_bank
from mdmf_deploy.mmd.cuda.reduction import CudaReduction

Outcome = tuple[bool, str]
Check = Callable[[Device, Kernel], Outcome]

WIDTH = 64 if FAKE else 128
SMALL_INPUTS = {"images": 3, "patches": 7, "points": 60}
HEADLINE = (2, 49, 500) if FAKE else (64, 49, 65_536)
# B, N, M.
SHAPES = ((1, 1, 1), (1, 1, 33), (2, 7, 31), (3, 33, 129))
if not FAKE:
    SHAPES += ((1, 257, 4097), (5, 31, 1000), (9, 64, 2048), (64, 49, 1024), (1, 49, 20011))
# Largest relative error of a cross sum in many slices. One slice adds up more terms in float32.
CROSS_ERROR = {"fp32": 5e-6, "fp16x2": 1e-5, "fp16": 2e-5, "bf16": 2e-5}
ONE_SLICE = 20


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--versions", nargs="+", choices=VERSIONS, default=list(VERSIONS))
    versions = parser.parse_args().versions
    start = time.perf_counter()
    device = open_gpu()
    print(
        f"{device.name}: {device.gpu.name}, sm_{device.gpu.sm}, {device.gpu.multiprocessors} multiprocessors",
        flush=True,
    )
    failed = []
    for kernel, check in plan(device):
        if kernel.version not in versions:
            continue
        name = f"{kernel.version} {kernel.operand} d={kernel.width} {check.__name__}"
        begun = time.perf_counter()
        good, text = outcome(check, device, kernel)
        if not good:
            failed.append(name)
        now = time.perf_counter()
        elapsed = f"{now - begun:.1f} s, {now - start:.0f} s in"
        print(f"{'PASS' if good else 'FAIL'} {name}: {text} [{elapsed}]", flush=True)
    names = f": {'; '.join(failed)}" if failed else ""
    print(f"{'FAIL' if failed else 'PASS'} all: {len(failed)} failed{names}", flush=True)
    return 1 if failed else 0


def plan(device: Device) -> list[tuple[Kernel, Check]]:
    """Return every check in order: first one width and the tensor cores, which fail most likely and matter most."""
    tested = [kernel for kernel in kernels() if kernel.supports(device.gpu.sm) and (not FAKE or kernel.width == WIDTH)]
    tested.sort(key=lambda kernel: (kernel.width != WIDTH, kernel.version not in ("wgmma", "tensor")))
    planned: list[tuple[Kernel, Check]] = [(kernel, inputs) for kernel in tested]
    for kernel in tested:
        if kernel.width == WIDTH:
            checks = (written, shifted) if kernel.version == "plain" else (headline, written, shifted)
            planned += [(kernel, check) for check in checks]
    return planned + [(kernel, shapes) for kernel in tested]


def outcome(check: Check, device: Device, kernel: Kernel) -> Outcome:
    """Run one check. An exception is a failure and names the line that raised it."""
    try:
        return check(device, kernel)
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        reason = (str(error).splitlines() or [""])[0]
        return False, f"{type(error).__name__}: {reason} at {where.filename}:{where.lineno}"


def inputs(device: Device, kernel: Kernel) -> Outcome:
    """Check kind and nasty inputs."""
    given = list(all_inputs(kernel.width, **(SMALL_INPUTS if FAKE else {})))
    check = check_kernel(device, kernel, given)
    summary = f"{len(given)} inputs, at most {check.share:.2g} of the tolerance ({check.worst})"
    return not check.mistakes, "; ".join(check.mistakes) or f"{summary}, score error {check.rounding:.1e}"


def headline(device: Device, kernel: Kernel) -> Outcome:
    """Check the headline case: contributions, scores and the same bits in every call."""
    given = random_input(*HEADLINE, kernel.width)
    wanted = expected(given, kernel, from_products)
    reduction = CudaReduction(device, operand=kernel.operand, version=kernel.version)
    calls = [reduction(given.x, given.bank) for _ in range(5)]
    reduction.close()
    share = float(np.max(np.abs(calls[0].contributions - wanted.contributions) / wanted.tolerance))
    error = float(np.max(np.abs(calls[0].mmd2 / wanted.contributions.mean(axis=1) - 1)))
    same = all(np.array_equal(call.contributions, calls[0].contributions) for call in calls)
    text = f"{share:.2g} of the tolerance, scores off by at most {error:.1e}"
    return share <= 1 and same, text if same else f"{text}, other bits from one call to the next"


def written(device: Device, kernel: Kernel) -> Outcome:
    """Check that every output of every kernel is written over old bytes, and the cross term alone for any split."""
    given = random_input(3, 49, 900, kernel.width)
    wanted = expected(given, kernel, from_products).cross
    launcher = KernelLauncher(device, kernel, given.x, prepare_bank(given.bank, kernel))
    rows, stream, own = launcher.rows, launcher.stream, launcher.launches
    mistakes = []
    for memory in (launcher.operands, launcher.norms, launcher.within_sums):
        launcher.poison(memory, memory.nbytes)
    launcher.prepare(stream)
    sums = [launcher.fetch(memory, rows, np.float32) for memory in (launcher.norms, launcher.within_sums)]
    if np.isnan(sums).any():
        mistakes.append("prepare leaves numbers unwritten")
    tiles = launcher.bank_rows // kernel.tile
    splits = {(1, 1), (tiles, 1), (tiles, tiles), (min(tiles, 3), 2), (own.slices, own.cross.grid[1])}
    bits = None
    for slices, shares in sorted(split for split in splits if split[1] <= split[0]):
        launcher.poison(launcher.partial, 4 * rows * slices)
        # The blocks of step 4 share one list. The others are a grid.
        grid = (shares, 1, 1) if kernel.version == "wgmma" else (own.cross.grid[0], shares, 1)
        launcher.cross(stream, slices, replace(own.cross, grid=grid))
        partial = launcher.partial_sums(slices)
        error = np.max(np.abs(partial.sum(axis=0, dtype=np.float64) - wanted) / wanted)
        if not error <= CROSS_ERROR[kernel.operand] * (ONE_SLICE if slices == 1 else 1):
            mistakes.append(f"{slices} slices, {shares} blocks: off by {error:.2g}")
        if slices == tiles:
            if bits is not None and not np.array_equal(bits, partial):
                mistakes.append("other bits when more blocks share the slices")
            bits = partial
    launcher.free()
    return not mistakes, "; ".join(mistakes) or "all written, the same bits however blocks share the slices"


def shifted(device: Device, kernel: Kernel) -> Outcome:
    """Check signatures on the GPU at an address that is only a multiple of 4, written on another stream."""
    given = random_input(4, 49, 700, kernel.width)
    reduction = CudaReduction(device, operand=kernel.operand, version=kernel.version)
    wanted = reduction(given.x, given.bank).contributions
    stream = device.stream()
    memory = upload(device, np.concatenate([[np.float32(np.nan)], given.x.reshape(-1)]), stream, "-")
    place = {"data": (memory.pointer + 4, False), "stream": stream.handle}
    array = SimpleNamespace(__cuda_array_interface__={"version": 3, "shape": given.x.shape, "typestr": "<f4", **place})
    same = all(np.array_equal(reduction(array, given.bank).contributions, wanted) for _ in range(5))
    reduction.close()
    return same, "the same bits as from the host" if same else "other bits than from the host"


def shapes(device: Device, kernel: Kernel) -> Outcome:
    """Check odd shapes, and that an image has the same bits alone, in a batch, launched and as a graph."""
    reduction = CudaReduction(device, operand=kernel.operand, version=kernel.version)
    mistakes, worst = [], 0.0
    for images, patches, points in SHAPES:
        where = f"B {images} N {patches} M {points}"
        given = random_input(images, patches, points, kernel.width, seed=images + points)
        wanted = expected(given, kernel, from_products)
        # One call after the other uses both lanes, launches first and graphs later.
        calls = [reduction(given.x, given.bank) for _ in range(6)]
        share = float(np.max(np.abs(calls[0].contributions - wanted.contributions) / wanted.tolerance))
        worst = max(worst, share if np.isfinite(share) else np.inf)
        if not share <= 1:
            mistakes.append(f"{where}: {share:.3g} of the tolerance")
        if any(not np.array_equal(call.contributions, calls[0].contributions) for call in calls):
            mistakes.append(f"{where}: other bits from one call to the next")
        alone = [reduction(given.x[i : i + 1], given.bank).mmd2 for i in range(min(images, 3))]
        if not np.array_equal(np.concatenate(alone), calls[0].mmd2[:3]):
            mistakes.append(f"{where}: an image alone has other bits than in its batch")
    reduction.close()
    good = f"at most {worst:.2g} of the tolerance, the same bits alone, in a batch and as a graph"
    return not mistakes, "; ".join(mistakes) or good


if __name__ == "__main__":
    sys.exit(main())
