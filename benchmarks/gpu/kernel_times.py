"""Time each kernel alone, next to what the card can do, and step 3 with one thing changed at a time.

    python benchmarks/gpu/kernel_times.py [--skip rates variants pieces]

Times are medians of events around launches that were queued behind a copy. "cold" has the second-level cache emptied
before; "warm" is one of five launches in a row. Events may read long where queueing a batch takes longer than the copy
that hides it, so the wall clock of a whole call is printed as well.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from clock import Clock
from floors import Card, Case, measure
from inputs import random_input
from launcher import ENTRIES, FAKE, KernelLauncher, edited_source, open_gpu
from variants import AS_IT_IS, VARIANTS, Variant

from mdmf_deploy.hardware.device import Device
from mdmf_deploy.mmd.cuda.kernels import Kernel, kernels, prepare_bank
from mdmf_deploy.mmd.cuda.reduction import CudaReduction

sys.path.append(str(Path(__file__).resolve().parents[1]))
from common import table

RATES = Path(__file__).with_name("mma_rates.cu")
# The grid, the products and the depth of a product of mma_rates.cu.
RATE_BLOCKS, RATE_COUNT, RATE_WARPS, RATE_CHAINS = 2, 2000, 8, 8
RATE_KERNELS = ("mma_fp16", "mma_bf16", "mma_tf32", "mma_fp16_ex2", "mma_fp16_ex2_fma", "mma_fp16_fma")
BOOST = 1.98e9  # Hz, an H100's
REPEATS = 5
HEADLINE = Case(64, 49, 65_536, 128)
CASES = (
    HEADLINE,
    Case(64, 49, 1_024, 128),
    Case(1, 49, 65_536, 128),
    Case(64, 49, 65_536, 64),
    Case(64, 49, 65_536, 256),
)
SLICES = (128, 256, 512, 2048)
COLUMNS = ("kernel", "grid", "slices", *(f"{name}, cold" for name in ENTRIES), "cross, warm", "all, events")
COLUMNS += ("a call, wall clock", "TFLOP/s", "of the library's", "of mma.sync's")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--skip", nargs="+", choices=("rates", "variants", "pieces"), default=[])
    skipped = parser.parse_args().skip
    device = open_gpu()
    clock = Clock(device, 4096) if FAKE else Clock(device)
    mma = {} if FAKE or "rates" in skipped else mma_rates(device, clock)
    card = Card(1e12, 1e12, {"fp16": 8e14}) if FAKE else measure(device, clock)
    products = ", ".join(f"{name} {rate / 1e12:.0f} TFLOP/s" for name, rate in card.operations.items())
    print(
        f"products of the library: {products or 'not measured'}; copies {card.bandwidth / 1e9:.0f} GB/s; "
        f"exponentials {card.exponentials / 1e12:.2f} T/s\n",
        flush=True,
    )
    case = Case(2, 7, 300, 128) if FAKE else HEADLINE
    if "variants" not in skipped:
        for operand in ("fp16", "fp16x2"):
            print(f"Step 3's cross term in {operand}, {case}, one thing changed\n")
            rows = variants(device, clock, case, operand)
            print(table(rows, ("what", "µs", "next to it as it is", "sums")), flush=True)
    if "pieces" not in skipped:
        for case in (Case(2, 7, 300, 64),) if FAKE else CASES:
            print(f"{case}; µs\n\n{table(pieces(device, clock, case, mma, card), COLUMNS)}", flush=True)
    clock.close()
    return 0


def mma_rates(device: Device, clock: Clock) -> dict[str, float]:
    """Print and return the measured operations a second of mma.sync, by kernel of mma_rates.cu."""
    module = device.module(RATES, ("--std=c++17",))
    out, stream = device.allocate(4, "-"), device.stream()
    blocks = device.gpu.multiprocessors * RATE_BLOCKS
    arguments = np.uintp(out.pointer), np.int32(RATE_COUNT)
    rates, rows = {}, []
    for name in RATE_KERNELS:
        entry, depth = module[name], 8 if "tf32" in name else 16
        seconds = clock.seconds(
            lambda on, entry=entry: device.launch(entry, (blocks, 1, 1), 32 * RATE_WARPS, 0, arguments, on), stream, 7
        )
        products = blocks * RATE_WARPS * RATE_COUNT * RATE_CHAINS
        rates[name] = 2.0 * products * 16 * 8 * depth / seconds
        # A multiprocessor has four schedulers. The clock is an H100's boost, so this is an estimate.
        cycles = seconds * BOOST / (products / (device.gpu.multiprocessors * 4))
        rows.append((name, f"{rates[name] / 1e12:.0f} TFLOP/s", f"{cycles:.2f}"))
    out.free()
    print(table(rows, ("mma.sync", "rate", "cycles a product and scheduler at 1.98 GHz")), flush=True)
    return rates


def variants(device: Device, clock: Clock, case: Case, operand: str) -> list[tuple[str, ...]]:
    """Return a table of step 3 as it is, then with one thing changed, then with its work split otherwise."""
    kernel = Kernel("tensor", operand, case.width)
    given = random_input(case.images, case.patches, case.points, case.width)
    prepared = prepare_bank(given.bank, kernel)
    rows: list[tuple[str, ...]] = []
    base, exact = math.nan, np.array([])
    for name, variant in VARIANTS.items():
        try:
            source = edited_source(kernel, variant.edits) if variant.edits else None
            launcher = KernelLauncher(device, kernel, given.x, prepared, source)
            seconds = timed_variant(launcher, clock, variant)
            sums = launcher.partial_sums().sum(axis=0, dtype=np.float64)
            launcher.free()
        # A variant that does not compile or run leaves the others to be measured.
        except Exception as error:
            rows.append((name, f"failed: {str(error)[:90]}"))
            continue
        if name == AS_IT_IS:
            base, exact = seconds, sums
        same = exact.size and float(np.max(np.abs(sums / exact - 1))) < 1e-4
        rows.append((name, microseconds(seconds), f"{seconds / base:.2f}", "as before" if same else "other sums"))
    launcher = KernelLauncher(device, kernel, given.x, prepared)
    for slices in (1, 2) if FAKE else SLICES:
        seconds, shares = best_split(launcher, clock, slices)
        name = f"{slices} slices, {shares} blocks share them"
        rows.append((name, microseconds(seconds), f"{seconds / base:.2f}"))
    launcher.free()
    return rows


def timed_variant(launcher: KernelLauncher, clock: Clock, variant: Variant) -> float:
    """Time the cross term of a variant, warm, in seconds."""
    kernel, own = launcher.kernel, launcher.launches
    bytes_of_a_point = kernel.row_bytes + 8
    across = math.ceil(launcher.rows / int(kernel.rows * variant.rows))
    shares = own.cross.grid[1]
    if variant.rows != 1.0:
        resident = variant.resident[kernel.resident - 1]
        shares = max(1, launcher.device.gpu.multiprocessors * resident // across)
    launch = replace(
        own.cross,
        grid=(across, min(shares, own.slices), 1),
        block=variant.threads,
        shared=variant.stages * variant.tile * bytes_of_a_point,
    )
    return clock.seconds(lambda on: launcher.cross(on, launch=launch), launcher.stream, 9, REPEATS)


def best_split(launcher: KernelLauncher, clock: Clock, slices: int) -> tuple[float, int]:
    """Return the least time, in seconds, for this number of slices, and how many blocks shared them then."""
    own = launcher.launches.cross
    across = own.grid[0]
    places = launcher.device.gpu.multiprocessors * launcher.kernel.resident
    tried = {max(1, places // across), places // across - 1, 2 * places // across, 4 * places // across}
    best = math.inf, 0
    for shares in sorted(shares for shares in tried if 0 < shares <= slices) or [1]:
        launch = replace(own, grid=(across, shares, 1))
        seconds = clock.seconds(
            lambda on, launch=launch: launcher.cross(on, slices, launch), launcher.stream, 7, REPEATS
        )
        best = min(best, (seconds, shares))
    return best


def pieces(device: Device, clock: Clock, case: Case, mma: Mapping[str, float], card: Card) -> list[tuple[object, ...]]:
    """Return a row for every kernel of this width: each of its three launches alone, and the whole reduction."""
    given = random_input(case.images, case.patches, case.points, case.width)
    rows: list[tuple[object, ...]] = []
    for kernel in kernels():
        if kernel.width != case.width or (kernel.version == "plain" and kernel.operand != "fp32"):
            continue
        launcher = KernelLauncher(device, kernel, given.x, prepare_bank(given.bank, kernel))
        stream = launcher.stream
        # Step 1 takes thousands of times as long as the others.
        slow = kernel.version == "plain"
        rounds = 1 if slow else 11
        cold = [clock.seconds(getattr(launcher, name), stream, rounds) for name in ENTRIES]
        warm = clock.seconds(launcher.cross, stream, rounds, 1 if slow else REPEATS)
        reduction = CudaReduction(device, operand=kernel.operand, version=kernel.version)
        place = {"data": (launcher.x.pointer, False), "stream": stream.handle}
        interface = {"version": 3, "shape": given.x.shape, "typestr": "<f4", **place}
        array = SimpleNamespace(__cuda_array_interface__=interface)
        whole = clock.own_seconds(
            lambda reduction=reduction, array=array: reduction.submit(array, given.bank).milliseconds, stream, rounds
        )
        begun = time.perf_counter()
        calls = 1 if slow else 20
        for _ in range(calls):
            reduction(array, given.bank)
        wall = (time.perf_counter() - begun) / calls
        reduction.close()
        # fp16x2 takes three products in fp16.
        products, multiplied = (3, "fp16") if kernel.operand == "fp16x2" else (1, kernel.operand)
        rate = 2.0 * products * launcher.rows * launcher.bank_rows * case.width / warm
        grid = "x".join(map(str, launcher.launches.cross.grid[:2]))
        of_library = share(rate, card.operations.get(multiplied))
        of_mma = share(rate, mma.get(f"mma_{multiplied}"))
        times = (microseconds(seconds) for seconds in (*cold, warm, whole, wall))
        name = f"{kernel.version} {kernel.operand}"
        rows.append((name, grid, launcher.launches.slices, *times, f"{rate / 1e12:.0f}", of_library, of_mma))
        launcher.free()
    return rows


def microseconds(seconds: float) -> str:
    return f"{1e6 * seconds:.1f}"


def share(rate: float, peak: float | None) -> str:
    return f"{100 * rate / peak:.0f}%" if peak else ""


if __name__ == "__main__":
    sys.exit(main())
