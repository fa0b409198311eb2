"""Benchmark the GPU path on one card: is it right, how fast is it, and how fast could it be?

    python benchmarks/gpu/run.py [--quick] [--no-pipeline] [--no-record] [--only PART ...]

Needs a CUDA card and cuda-core. PyTorch, CuPy and pykeops are compared if they are installed, and TensorRT and ONNX
Runtime run if they are installed. Every kernel version is compared with float64 on easy and nasty inputs. Then it is
timed (events, cache emptied, medians) next to the least time that this card allows, as measured here. Every table is
printed as soon as it is measured. All of them are appended to RESULTS.md at the end.

Parts: kernels (every kernel against float64), images (real images against float64), headline (the headline case,
timed), cases (the other cases, timed), pipeline (from files to rows). --only runs the named parts, in the given order.

Exit code 1 if a number is wrong, 2 without a GPU.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from baselines import Baseline, baselines
from clock import Clock
from correctness import ACCURATE, HALF, check_kernel, is_accurate
from floors import Card, Case, floor, measure
from inputs import KernelInput, all_inputs, random_input, real_images

from mdmf_deploy.errors import MdmfError
from mdmf_deploy.hardware.device import LEGACY_STREAM, Device, Stream, open_device, upload
from mdmf_deploy.mmd.cuda.kernels import Kernel, kernels
from mdmf_deploy.mmd.cuda.reduction import CudaReduction
from mdmf_deploy.mmd.reference import ReferenceReduction

BENCHMARKS = Path(__file__).resolve().parents[1]
sys.path.append(str(BENCHMARKS))
from common import machine, number, table  # noqa: E402

RESULTS = BENCHMARKS / "RESULTS.md"
HEADLINE = Case(64, 49, 65_536, 128)
OTHER_CASES = (
    Case(64, 49, 65_536, 64),
    Case(64, 49, 65_536, 256),
    Case(1, 49, 65_536, 128),
    Case(64, 49, 1_024, 128),
)
AIMS = "3 times as fast as torch.compile, 70% of the floor"
# Largest error of a real image's score, as a share of the standard deviation of such scores.
OF_SPREAD = 0.01
PACKAGES = ("cuda-core", "nvidia-cuda-nvrtc", "torch", "triton", "cupy-cuda12x", "cupy-cuda13x", "pykeops")
PACKAGES += ("tensorrt", "tensorrt-rtx", "onnxruntime-gpu")
PARTS = ("kernels", "images", "headline", "cases", "pipeline")
_MEMORY = "free some of the GPU's memory"


@dataclass(frozen=True, slots=True)
class Section:
    """A piece of the report in Markdown, with its line breaks, and the mistakes found in it, one line each."""

    text: str
    mistakes: Sequence[str] = ()


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="leave out the other cases, and check one width")
    parser.add_argument("--no-pipeline", action="store_true", help="leave the models out")
    parser.add_argument("--no-record", action="store_true", help="do not append to RESULTS.md")
    parser.add_argument("--only", nargs="+", choices=PARTS, metavar="PART", help=f"some of {', '.join(PARTS)}")
    options = parser.parse_args(arguments)
    texts, mistakes = [], []
    try:
        for section in run(open_device(), chosen(options), quick=options.quick):
            print(section.text, end="", flush=True)
            texts.append(section.text)
            mistakes += section.mistakes
    except MdmfError as error:
        print(f"run.py: {error}", file=sys.stderr)
        return 2
    if not options.no_record:
        with RESULTS.open("a", encoding="utf-8") as file:
            file.write("\n" + "".join(texts))
    for mistake in mistakes:
        print(f"run.py: wrong: {mistake}", file=sys.stderr)
    return 1 if mistakes else 0


def chosen(options: argparse.Namespace) -> list[str]:
    """Return the parts to run, in order."""
    if options.only:
        return list(options.only)
    left_out = {"cases": options.quick, "pipeline": options.no_pipeline}
    return [part for part in PARTS if not left_out.get(part)]


def run(device: Device, parts: Sequence[str], *, quick: bool) -> Iterator[Section]:
    """Measure part after part and yield each table as soon as it is known. quick: check one width only."""
    clock = Clock(device)
    card = measure(device, clock)
    yield Section(f"{heading(device, card)}\n")
    for part in parts:
        if part == "kernels":
            widths = (128,) if quick else (64, 128, 256)
            text, mistakes = validate(device, [k for k in kernels() if k.width in widths and k.supports(device.gpu.sm)])
            title = "Every kernel next to float64 over its own operands, as a share of the error allowed"
            yield Section(f"\n{title}\n\n{text}", mistakes)
        elif part == "images":
            text, mistakes = spread(device)
            yield Section(f"\n{text}", mistakes)
        elif part == "pipeline":
            yield Section("\nFrom files to rows, 64 images at a time, M = 65,536\n\n")
            yield from map(Section, pipeline())
        else:
            for case in (HEADLINE,) if part == "headline" else OTHER_CASES:
                rows, mistakes = compare(device, clock, case, card)
                aims = f". Aims for the tensor cores in 16 bits: {AIMS}" if case == HEADLINE else ""
                columns = ("what", "time", "of the floor", "next to torch.compile", "score error")
                yield Section(f"\n{case}{aims}\n\n{table(rows, columns)}", mistakes)
    clock.close()


def heading(device: Device, card: Card) -> str:
    rates = ", ".join(f"{name} {number(rate / 1e12)} TFLOP/s" for name, rate in card.operations.items())
    return (
        f"## GPU: {device.gpu.name}\n`python {shlex.join(sys.argv)}`\n\n"
        f"{machine(*filter(_is_installed, PACKAGES))}\n\n"
        f"Compute capability {device.gpu.sm / 10}, {device.gpu.multiprocessors} multiprocessors, "
        f"{device.gpu.memory / 2**30:.0f} GiB, driver for CUDA {'.'.join(map(str, device.gpu.driver))}. Measured: "
        f"copies {number(card.bandwidth / 1e9)} GB/s, exponentials {number(card.exponentials / 1e12)} T/s"
        + (f", products {rates}." if rates else "; products were not: neither PyTorch nor CuPy is installed.")
    )


def _is_installed(package: str) -> bool:
    try:
        return bool(metadata.version(package))
    except metadata.PackageNotFoundError:
        return False


def validate(
    device: Device, tested: Iterable[Kernel], inputs: Iterable[KernelInput] | None = None
) -> tuple[str, list[str]]:
    """Return a table of every kernel's largest error as a share of its tolerance, and the mistakes."""
    rows, mistakes = [], []
    for kernel in tested:
        name = f"{kernel.version} {kernel.operand}, d = {kernel.width}"
        check = check_kernel(device, kernel, all_inputs(kernel.width) if inputs is None else inputs)
        mistakes += [f"{name}: {mistake}" for mistake in check.mistakes]
        rows.append((name, f"{check.share:.2g}", check.worst, f"{check.rounding:.1e}"))
    return table(rows, ("kernel", "share", "where", "score error, next to the signatures'")), mistakes


def spread(device: Device) -> tuple[str, list[str]]:
    """Return a table of what each operand does to the scores of real images, next to their spread, and the mistakes."""
    try:
        given, apart = real_images()
    except ImportError as error:
        return f"Real images: skipped, {error.name} is not installed.\n", []
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
        if not share <= OF_SPREAD or (is_accurate(kernel) and not relative <= ACCURATE):
            error_text = f"off by {100 * share:.2g}% of their spread, {relative:.1e} of a score"
            mistakes.append(f"{kernel.version} {kernel.operand}, real images: {error_text}")
    return f"{given.name}\n\n{table(rows, ('kernel', 'of the spread of real scores', 'score error'))}", mistakes


def compare(device: Device, clock: Clock, case: Case, card: Card) -> tuple[list[list[str]], list[str]]:
    """Return the rows of one case's table, our kernels first, and the mistakes."""
    given = random_input(case.images, case.patches, case.points, case.width)
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
        # The first kernel is the plain one in float32, which the part "kernels" compares with float64.
        exact = scores if exact is None else exact
        error = float(np.abs(scores / exact - 1).max())
        if not error <= (ACCURATE if is_accurate(kernel) else HALF):
            mistakes.append(f"{kernel.version} {kernel.operand}, {case}: a score is off by {error:.2g}")
        seconds = clock.own_seconds(
            lambda reduction=reduction: reduction.submit(array, given.bank).milliseconds, stream
        )
        timed[f"{kernel.version}, {kernel.operand}"] = seconds, floor(case, kernel, card), error, ""
        reduction.close()
    assert exact is not None
    for baseline in baselines(given.x, given.bank):
        timed[baseline.name] = _baseline(baseline, clock, device, exact)
    compiled = timed["torch.compile"][0]
    return [_row(name, *measured, compiled) for name, measured in timed.items()], mistakes


def on_device(device: Device, x: np.ndarray, stream: Stream) -> Any:
    """Copy x to the GPU as an array of another library that works on this stream."""
    memory = upload(device, x, stream, _MEMORY)
    place = {"data": (memory.pointer, False), "stream": stream.handle}
    interface = {"version": 3, "shape": x.shape, "typestr": "<f4", **place}
    return SimpleNamespace(__cuda_array_interface__=interface, memory=memory)


def _baseline(
    baseline: Baseline, clock: Clock, device: Device, exact: np.ndarray
) -> tuple[float | None, None, float, str]:
    if baseline.make is None or baseline.to_numpy is None:
        return None, None, np.nan, baseline.missing or ""
    try:
        reduce = baseline.make()
        error = float(np.abs(baseline.to_numpy(reduce()) / exact - 1).max())
        return clock.seconds(lambda _: reduce(), device.stream(LEGACY_STREAM)), None, error, ""
    except ImportError as error:
        return None, None, np.nan, f"{error.name} is not installed"
    # Baselines fail in many ways, mostly by running out of memory. Their row gives the reason.
    except Exception as error:
        return None, None, np.nan, (str(error).strip().splitlines() or [type(error).__name__])[0][:120]


def _row(name: str, seconds: float | None, least: Any, error: float, missing: str, compiled: float | None) -> list[str]:
    if seconds is None:
        return [name, f"skipped: {missing}", "", "", ""]
    share = "" if least is None else f"{100 * least.seconds / seconds:.0f}% ({least.limit})"
    times = "" if compiled is None else f"{number(compiled / seconds)} times as fast"
    return [name, f"{number(1e6 * seconds)} µs", share, times, f"{error:.1e}"]


def pipeline() -> Iterator[str]:
    """Yield the lines of a table of ViT-S, B and L on every engine, each as soon as it is measured."""
    try:
        from end_to_end import measure as measure_models
    except ImportError as error:
        yield f"Skipped: {error.name} is not installed.\n"
        return
    columns = ("model", "engine", "decode, one core", "engine", "reduction", "all of it")
    yield table([], columns)
    for one in measure_models(65_536, 64, 512):
        if one.missing:
            cells = [f"skipped: {one.missing}"]
        else:
            cells = [f"{number(value)} ms" for value in (one.decode, one.signatures, one.reduction)]
            cells.append(f"{number(one.images_per_second)} images/s")
        yield table([(one.model, one.engine, *cells)], columns).splitlines(keepends=True)[-1]


if __name__ == "__main__":
    sys.exit(main())
