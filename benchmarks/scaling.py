"""How cost grows: with the bank, the patches, the width of a signature, the size of an image, and the number of images.

    python benchmarks/scaling.py DATA [--only bank|patches|width|size|count] [--to 10000] [--plots FOLDER]

Each part prints a table with fitted exponents (over its three largest sizes) and writes a log-log plot.  The first
three time the reduction on random signatures; "size" and "count" run the starter on photographs of DATA, "size" on
pages laid out of them.  A peer that takes more than 4 s for one call stops there.  --to: "count" stops at 1000 files
without it.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from common import Timing, header, interleaved, number
from log_log import Line, plot, tabulate
from memory import fill, run
from numpy.typing import NDArray
from peer_reductions import cdist, numpy_matrix, pykeops, torch_matrix
from PIL import Image

from mdmf_deploy.bundle.bank import Bank, BankSource
from mdmf_deploy.bundle.recipe import Preprocessing
from mdmf_deploy.detection.detector import Detector
from mdmf_deploy.detection.feed import prepare
from mdmf_deploy.images.decode import ReadLimits
from mdmf_deploy.images.inputs import in_folder
from mdmf_deploy.mmd.cpu import CpuReduction

SIZES = {224: (224, 224), 512: (512, 384), 1024: (1024, 768), 2000: (2000, 1500), 4000: (4000, 3000)}
COUNTS = (100, 300, 1000, 3000, 10_000)
TOO_SLOW = 4.0
PLOTS = Path(__file__).parent / "plots"
OURS = "mdmf-deploy"


def random_bank(points: int, width: int) -> Bank:
    """Normal signatures at a median-distance bandwidth; its own term, a constant that costs nothing, is made up."""
    signatures = np.random.default_rng(0).standard_normal((points, width), dtype=np.float32)
    weights, source = np.full(points, 1 / points), np.zeros(points, np.int32)
    return Bank(signatures, weights, float(np.sqrt(2 * width)), 0.5, source, (BankSource("random", "0" * 64),), "")


def reductions(bank: Bank, keops: bool) -> dict[str, Callable[[NDArray[np.float32]], Any]]:
    ours = CpuReduction()
    work: dict[str, Callable[[NDArray[np.float32]], Any]] = {
        OURS: lambda x: ours(x, bank),
        "NumPy, kernel matrix": numpy_matrix(bank),
        "torch, cdist": torch_matrix(bank, cdist),
    }
    return work | {"pykeops": pykeops(bank)} if keops else work


def reduction(shapes: Iterable[tuple[int, int, int, int]], rounds: int, keops: bool = True) -> dict[str, Line]:
    """shapes: (size, N, M, d), growing.  -> milliseconds an image by size."""
    lines: dict[str, dict[int, float]] = {}
    slow: set[str] = set()
    for size, patches, points, width in shapes:
        x = np.random.default_rng(1).standard_normal((1, patches, width), dtype=np.float32)
        work = reductions(random_bank(points, width), keops)
        calls = {name: partial(call, x) for name, call in work.items() if name not in slow}
        for name, timing in interleaved(calls, rounds).items():
            lines.setdefault(name, {})[size] = 1e3 * timing.median
            if timing.median > TOO_SLOW:
                slow.add(name)
    return dict(lines)


def bank(options: argparse.Namespace) -> tuple[dict[str, Line], str, str]:
    sizes = [4096 << (2 * step) for step in range(5)]
    return reduction(((m, 49, m, 128) for m in sizes), options.rounds), "signatures in the bank, M", "N = 49, d = 128"


def patches(options: argparse.Namespace) -> tuple[dict[str, Line], str, str]:
    sizes = (49, 100, 196, 400, 784)
    lines = reduction(((n, n, 65_536, 128) for n in sizes), options.rounds)
    return lines, "patches of an image, N", "M = 65,536, d = 128"


def width(options: argparse.Namespace) -> tuple[dict[str, Line], str, str]:
    # Not pykeops: it compiles for every width.
    sizes = (64, 96, 128, 192, 256)
    lines = reduction(((d, 49, 65_536, d) for d in sizes), options.rounds, keops=False)
    return lines, "width of a signature, d", "M = 65,536, N = 49"


def size(options: argparse.Namespace) -> tuple[dict[str, Line], str, str]:
    """Milliseconds an image, of eight: decoding on one thread, and the whole detection."""
    lines: dict[str, dict[int, float]] = {"detect, all stages": {}, "read, decode, crop": {}, "Pillow, whole image": {}}
    with tempfile.TemporaryDirectory() as folder, Detector("starter", options.runtime) as detector:
        preprocessing = detector.bundle.manifest.preprocessing
        for side, shape in SIZES.items():
            files = pages(Path(folder), in_folder(options.data).paths, shape)
            calls = (
                partial(detector.detect, files),
                partial(decode, files, preprocessing),
                partial(with_pillow, files),
            )
            timings = interleaved(dict(zip(lines, calls, strict=True)), options.rounds)
            for name, timing in timings.items():
                lines[name][side * shape[1]] = per_image(timing, len(files))
    return dict(lines), "pixels of an image", "JPEG, quality 92, 4:2:0"


def decode(files: list[Path], preprocessing: Preprocessing) -> None:
    for n, file in enumerate(files):
        prepare(n, file, preprocessing, 1, ReadLimits())


def with_pillow(files: list[Path]) -> None:
    for file in files:
        with Image.open(file) as image:
            np.asarray(image.convert("RGB"))


def per_image(timing: Timing, count: int) -> float:
    return 1e3 * timing.median / count


def pages(folder: Path, originals: tuple[Path, ...], shape: tuple[int, int], count: int = 8) -> list[Path]:
    """Photographs side by side at their own scale, until they fill the shape."""
    files = []
    order = np.random.default_rng(0).permutation(len(originals))
    for n in range(count):
        page, top, place = Image.new("RGB", shape), 0, n * 97
        while top < shape[1]:
            left, step = 0, shape[1]
            while left < shape[0]:
                with Image.open(originals[order[place % len(order)]]) as image:
                    page.paste(image, (left, top))
                    left, step, place = left + image.width, min(step, image.height), place + 1
            top += step
        files.append(folder / f"{shape[0]}-{n}.jpg")
        page.save(files[-1], quality=92, subsampling="4:2:0")
    return files


def count(options: argparse.Namespace) -> tuple[dict[str, Line], str, str]:
    """Seconds and peak memory of `mdmf detect`, each run a process of its own."""
    seconds: dict[int, float] = {}
    megabytes: dict[int, float] = {}
    originals = list(in_folder(options.data).paths)
    for files in (files for files in COUNTS if files <= options.to):
        with tempfile.TemporaryDirectory() as name:
            inputs = Path(name) / "inputs"
            fill(inputs, originals, files)
            seconds[files], megabytes[files] = run(inputs, Path(name) / "rows.jsonl", options.runtime)
    first, last = min(megabytes), max(megabytes)
    print(f"Peak memory at {last:,} files: {number(megabytes[last] / megabytes[first])} times that at {first:,}.\n")
    return {"seconds": seconds, "peak resident memory, MB": megabytes}, "files", "the starter, whole process"


PARTS: dict[str, tuple[Callable[[argparse.Namespace], tuple[dict[str, Line], str, str]], str, str]] = {
    "bank": (bank, "ms", "ms an image"),
    "patches": (patches, "ms", "ms an image"),
    "width": (width, "ms", "ms an image"),
    "size": (size, "ms", "ms an image"),
    "count": (count, "", "seconds, megabytes"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--only", choices=PARTS, action="append", help="may be repeated; all parts without it")
    parser.add_argument("--to", type=int, default=1000, help="most files of the part `count`")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--runtime", default="onnxruntime")
    parser.add_argument("--plots", type=Path, default=PLOTS)
    options = parser.parse_args()
    header("torch", "pykeops", "pillow", options.runtime)
    for name in options.only or PARTS:
        part, unit, ylabel = PARTS[name]
        print(f"### {name}\n")
        lines, xlabel, fixed = part(options)
        print(f"{xlabel} grows; {fixed}\n\n{tabulate(lines, xlabel, unit)}", flush=True)
        plot(options.plots / f"{name}.svg", lines, f"Cost by {xlabel}; {fixed}", xlabel, ylabel)


if __name__ == "__main__":
    main()
