"""All that there is to know about the GPU path on one card: is it right, how fast is it, and how fast could it be?

    python benchmarks/gpu/run.py [--quick] [--no-pipeline] [--no-record]

Needs a CUDA card and cuda-core; PyTorch, CuPy and pykeops are compared with where they are installed, and TensorRT and
ONNX Runtime run where they are.  Every kernel version is held to float64 on easy and nasty input; then timed (events,
cache emptied, medians) next to the least time that this card allows, as measured here.  Prints a table and appends it
to RESULTS.md.  Exit code 1 if a number is wrong, 2 without a GPU.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Iterable, Iterator, Sequence
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

sys.path.append(str(Path(__file__).resolve().parents[1]))
from baselines import peers
from clock import Clock
from common import machine, number, table
from floors import Card, Case, floor, measure
from inputs import Given, all_given, cost_of_operand, drawn, real, wrong

from mdmf_deploy.errors import MdmfError
from mdmf_deploy.hardware.device import LEGACY_STREAM, Device, Stream, open_device
from mdmf_deploy.hardware.memory import upload
from mdmf_deploy.mmd.cuda.kernels import Kernel, kernels
from mdmf_deploy.mmd.cuda.reduction import CudaReduction
from mdmf_deploy.mmd.reference import ReferenceReduction

RESULTS = Path(__file__).resolve().parents[1] / "RESULTS.md"
HEADLINE = Case(64, 49, 65_536, 128)
CASES = (
    HEADLINE,
    Case(64, 49, 65_536, 64),
    Case(64, 49, 65_536, 256),
    Case(1, 49, 65_536, 128),
    Case(64, 49, 1_024, 128),
)
AIMS = "3 times as fast as torch.compile, 70% of the floor"
# Largest relative error of a score, in the accurate operands and in 16 bits.
ACCURATE, HALF = 1e-5, 1e-2
# Largest error of a real image's score, as a share of how far such scores lie apart.
OF_SPREAD = 0.01
PACKAGES = ("cuda-core", "nvidia-cuda-nvrtc", "torch", "triton", "cupy-cuda12x", "cupy-cuda13x", "pykeops")
PACKAGES += ("tensorrt", "tensorrt-rtx", "onnxruntime-gpu")
_MEMORY = "free some of the GPU's memory"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the headline case alone, and one width")
    parser.add_argument("--no-pipeline", action="store_true", help="leave the models out")
    parser.add_argument("--no-record", action="store_true", help="do not append to RESULTS.md")
    given = parser.parse_args(arguments)
    try:
        device = open_device()
        report, mistakes = run(device, given)
    except MdmfError as error:
        print(f"run.py: {error}", file=sys.stderr)
        return 2
    print(report)
    if not given.no_record:
        with RESULTS.open("a", encoding="utf-8") as file:
            file.write(f"\n{report}")
    for mistake in mistakes:
        print(f"run.py: wrong: {mistake}", file=sys.stderr)
    return 1 if mistakes else 0


def run(device: Device, given: argparse.Namespace) -> tuple[str, list[str]]:
    """The report, Markdown, and what is wrong, a line each."""
    widths = (128,) if given.quick else (64, 128, 256)
    checked, mistakes = validate(device, [k for k in kernels() if k.width in widths and k.supports(device.gpu.sm)])
    real_images, found = spread(device)
    mistakes += found
    clock = Clock(device)
    card = measure(device, clock)
    parts = [
        heading(device, card),
        "Every kernel next to float64 over its own operands, as a share of the error allowed",
        checked,
        real_images,
    ]
    for case in (HEADLINE,) if given.quick else CASES:
        rows, found = compare(device, clock, case, card)
        mistakes += found
        aims = f". Aims for the tensor cores in 16 bits: {AIMS}" if case == HEADLINE else ""
        parts += [
            f"{case}{aims}",
            table(rows, ("what", "time", "of the floor", "next to torch.compile", "score error")),
        ]
    clock.close()
    if not given.no_pipeline:
        parts += ["From files to rows, 64 images at a time, M = 65,536", pipeline()]
    return "\n\n".join(part.rstrip() for part in parts) + "\n", mistakes


def heading(device: Device, card: Card) -> str:
    rates = ", ".join(f"{name} {number(rate / 1e12)} TFLOP/s" for name, rate in card.operations.items())
    return (
        f"## GPU: {device.gpu.name}\n`python {shlex.join(sys.argv)}`\n\n"
        f"{machine(*filter(_is_there, PACKAGES))}\n\n"
        f"Compute capability {device.gpu.sm / 10}, {device.gpu.multiprocessors} multiprocessors, "
        f"{device.gpu.memory / 2**30:.0f} GiB, driver for CUDA {'.'.join(map(str, device.gpu.driver))}. Measured: "
        f"copies {number(card.bandwidth / 1e9)} GB/s, exponentials {number(card.exponentials / 1e12)} T/s"
        + (f", products {rates}." if rates else "; products were not: neither PyTorch nor CuPy is installed.")
    )


def _is_there(package: str) -> bool:
    try:
        return bool(metadata.version(package))
    except metadata.PackageNotFoundError:
        return False


def validate(device: Device, tested: Iterable[Kernel], given: Iterable[Given] | None = None) -> tuple[str, list[str]]:
    """A table of every kernel's largest error as a share of what is allowed, and what is wrong."""
    rows: dict[str, list[str]] = {}
    mistakes = []
    for kernel in tested:
        reduction = CudaReduction(device, operand=kernel.operand, version=kernel.version)
        cases = list(all_given(kernel.width) if given is None else given)
        shares = []
        for case in cases:
            what, share = wrong(case, kernel, reduction)
            shares.append(share)
            if what:
                mistakes.append(f"{kernel.version} {kernel.operand} d = {kernel.width}, {case.name}: {what}")
        cost = cost_of_operand(next(case for case in cases if not case.broken), reduction)
        if kernel.operand in ("fp32", "tf32") and not cost <= ACCURATE:
            mistakes.append(f"{kernel.version} {kernel.operand} d = {kernel.width}: a score is off by {cost:.2g}")
        worst = int(np.argmax(shares))
        rows[f"{kernel.version} {kernel.operand}, d = {kernel.width}"] = [
            f"{shares[worst]:.2g}",
            cases[worst].name,
            f"{cost:.1e}",
        ]
        reduction.close()
    told = [(name, *cells) for name, cells in rows.items()]
    return table(told, ("kernel", "share", "where", "score error, next to the signatures'")), mistakes


def spread(device: Device) -> tuple[str, list[str]]:
    """What each operand does to the scores of real images, next to how far those lie apart, and what is wrong."""
    try:
        given, apart = real()
    except ImportError as error:
        return f"Real images: skipped, {error.name} is not installed.", []
    exact = ReferenceReduction()(given.x, given.bank).mmd2
    rows, mistakes = [], []
    for kernel in kernels():
        if kernel.width != given.x.shape[2] or not kernel.supports(device.gpu.sm):
            continue
        reduction = CudaReduction(device, operand=kernel.operand, version=kernel.version)
        error = np.abs(reduction(given.x, given.bank).mmd2 - exact)
        reduction.close()
        share, relative = float(error.max() / apart), float((error / exact).max())
        rows.append((f"{kernel.version} {kernel.operand}", f"{100 * share:.2g}%", f"{relative:.1e}"))
        if not share <= OF_SPREAD or (kernel.operand in ("fp32", "tf32") and not relative <= ACCURATE):
            told = f"off by {100 * share:.2g}% of their spread, {relative:.1e} of a score"
            mistakes.append(f"{kernel.version} {kernel.operand}, real images: {told}")
    return f"{given.name}\n\n{table(rows, ('kernel', 'of the spread of real scores', 'score error'))}", mistakes


def compare(device: Device, clock: Clock, case: Case, card: Card) -> tuple[list[list[str]], list[str]]:
    """Rows of the table for one case, ours first, and what is wrong."""
    given = drawn(case.images, case.patches, case.points, case.width)
    timed: dict[str, tuple[float | None, Any, float, str]] = {}
    exact = None
    mistakes = []
    stream = device.stream()
    array = on_device(device, given.x, stream)
    for kernel in kernels():
        if kernel.width != case.width or not kernel.supports(device.gpu.sm):
            continue
        reduction = CudaReduction(device, operand=kernel.operand, version=kernel.version)
        scores = reduction(array, given.bank).mmd2
        # The first is the plain one in float32, which was just held to float64.
        exact = scores if exact is None else exact
        error = float(np.abs(scores / exact - 1).max())
        if not error <= (ACCURATE if kernel.operand in ("fp32", "tf32") else HALF):
            mistakes.append(f"{kernel.version} {kernel.operand}, {case}: a score is off by {error:.2g}")
        seconds = clock.own_seconds(
            lambda reduction=reduction: reduction.submit(array, given.bank).milliseconds, stream
        )
        timed[f"{kernel.version}, {kernel.operand}"] = seconds, floor(case, kernel, card), error, ""
        reduction.close()
    assert exact is not None
    for peer in peers(given.x, given.bank):
        timed[peer.name] = _peer(peer, clock, device, exact)
    compiled = timed["torch.compile"][0]
    return [_row(name, *measured, compiled) for name, measured in timed.items()], mistakes


def on_device(device: Device, x: np.ndarray, stream: Stream) -> Any:
    """A copy of x on the GPU, as another library would have it that works on this stream."""
    memory = upload(device, x, stream, _MEMORY)
    place = {"data": (memory.pointer, False), "stream": stream.handle}
    interface = {"version": 3, "shape": x.shape, "typestr": "<f4", **place}
    return SimpleNamespace(__cuda_array_interface__=interface, memory=memory)


def _peer(peer: Any, clock: Clock, device: Device, exact: np.ndarray) -> tuple[float | None, None, float, str]:
    if peer.make is None:
        return None, None, np.nan, peer.missing or ""
    try:
        reduce = peer.make()
        error = float(np.abs(peer.to_numpy(reduce()) / exact - 1).max())
        return clock.seconds(lambda _: reduce(), device.stream(LEGACY_STREAM)), None, error, ""
    except ImportError as error:
        return None, None, np.nan, f"{error.name} is not installed"
    # Whatever a peer dies of, mostly too little memory, is what its row is to say.
    except Exception as error:
        return None, None, np.nan, (str(error).strip().splitlines() or [type(error).__name__])[0][:120]


def _row(name: str, seconds: float | None, least: Any, error: float, missing: str, compiled: float | None) -> list[str]:
    if seconds is None:
        return [name, f"skipped: {missing}", "", "", ""]
    share = "" if least is None else f"{100 * least.seconds / seconds:.0f}% ({least.limit})"
    times = "" if compiled is None else f"{number(compiled / seconds)} times as fast"
    return [name, f"{number(1e6 * seconds)} µs", share, times, f"{error:.1e}"]


def pipeline() -> str:
    try:
        from end_to_end import measure as measure_models
    except ImportError as error:
        return f"Skipped: {error.name} is not installed."
    rows: Iterator[list[str]] = (
        [one.model, one.engine, f"skipped: {one.missing}"]
        if one.missing
        else [
            one.model,
            one.engine,
            *(f"{number(value)} ms" for value in (one.decode, one.signatures, one.reduction)),
            f"{number(one.images_per_second)} images/s",
        ]
        for one in measure_models(65_536, 64, 512)
    )
    return table(rows, ("model", "engine", "decode, one core", "engine", "reduction", "all of it"))


if __name__ == "__main__":
    sys.exit(main())
