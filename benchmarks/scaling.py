"""Measure how cost grows with the bank, the patches, the width of a signature, and the size and number of images.

    python benchmarks/scaling.py DATA [--only bank|patches|width|size|count] [--to 10000] [--plots FOLDER]

Each part prints a table with exponents, fitted over its three largest sizes, and writes a log-log plot. The first three
parts time the reduction on random signatures. "size" and "count" run the starter on one crop of photographs of DATA,
"size" on pages laid out from them. A peer that takes more than 4 s for one call stops there. "count" stops at --to
files.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from common import Timing, header, interleaved, number, random_bank, table
from memory import fill, run
from numpy.typing import NDArray
from peer_reductions import cdist, numpy_matrix, pykeops, torch_matrix
from PIL import Image

from mdmf_deploy.bundle.bank import Bank
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
TAIL = 3
COLOURS = ("#0b5fa5", "#d1632a", "#2f8f5b", "#8a5fb0", "#6b6b6b")
MARKS = "osD^v"

# Size -> cost. A line may stop before the others do.
Line = Mapping[int, float]


def reductions(bank: Bank, keops: bool) -> dict[str, Callable[[NDArray[np.float32]], Any]]:
    ours = CpuReduction()
    work: dict[str, Callable[[NDArray[np.float32]], Any]] = {
        OURS: lambda x: ours(x, bank),
        "NumPy, kernel matrix": numpy_matrix(bank),
        "torch, cdist": torch_matrix(bank, cdist),
    }
    return work | {"pykeops": pykeops(bank)} if keops else work


def reduction(shapes: Iterable[tuple[int, int, int, int]], rounds: int, keops: bool = True) -> dict[str, Line]:
    """Time the reduction for growing (size, N, M, d) and return milliseconds an image by size."""
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
    # pykeops is left out because it compiles for every width.
    sizes = (64, 96, 128, 192, 256)
    lines = reduction(((d, 49, 65_536, d) for d in sizes), options.rounds, keops=False)
    return lines, "width of a signature, d", "M = 65,536, N = 49"


def size(options: argparse.Namespace) -> tuple[dict[str, Line], str, str]:
    """Measure milliseconds an image, of eight: decoding on one thread, and the whole detection."""
    lines: dict[str, dict[int, float]] = {"detect, all stages": {}, "read, decode, crop": {}, "Pillow, whole image": {}}
    with tempfile.TemporaryDirectory() as folder, Detector("starter", options.runtime, crops=1) as detector:
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
    """Lay photographs side by side at their own scale until they fill the shape."""
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
    """Measure seconds and peak memory of `mdmf detect`, each run in a process of its own."""
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


def exponent(line: Line) -> float:
    """Fit b of cost = a size^b by least squares over the last three points, since small sizes show constant costs."""
    points = sorted(line.items())[-TAIL:]
    sizes, costs = np.log(np.array(points)).T
    return float(np.polyfit(sizes, costs, 1)[0])


def tabulate(lines: Mapping[str, Line], size: str, unit: str) -> str:
    """Return a table with a row for each size, a column for each line, and a row of exponents."""
    sizes = sorted({x for line in lines.values() for x in line})
    rows = [
        (f"{x:,}", *(f"{number(line[x])} {unit}".strip() if x in line else "too slow" for line in lines.values()))
        for x in sizes
    ]
    return table([*rows, ("exponent", *(f"{exponent(line):.2f}" for line in lines.values()))], (size, *lines))


def plot(path: Path, lines: Mapping[str, Line], title: str, xlabel: str, ylabel: str) -> None:
    """Write a log-log plot as SVG, with the same bytes for the same numbers."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams.update({"svg.hashsalt": "mdmf", "svg.fonttype": "none", "font.family": "sans-serif"})
    from matplotlib import pyplot as plt
    from matplotlib.ticker import LogLocator, NullLocator

    figure, axes = plt.subplots(figsize=(6.4, 4.0), layout="constrained")
    for (name, line), colour, mark in zip(lines.items(), COLOURS, MARKS, strict=False):
        xs, ys = zip(*sorted(line.items()), strict=True)
        label = f"{name} ({exponent(line):.2f})"
        axes.plot(xs, ys, color=colour, marker=mark, markersize=5, linewidth=1.6, label=label)
    axes.set(xscale="log", yscale="log", title=title, xlabel=xlabel, ylabel=ylabel)
    ticks = sorted({x for line in lines.values() for x in line})
    axes.set_xticks(ticks, [short(x) for x in ticks])
    axes.set_xticks([], minor=True)
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=20))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter("{x:g}")
    axes.grid(which="major", color="#e3e3e3", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(title="exponent in brackets", frameon=False, fontsize=8, title_fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def short(value: float) -> str:
    """Shorten a number: 1,048,576 -> 1M."""
    for size, name in ((1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{number(value / size)}{name}"
    return number(value)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--only", choices=PARTS, action="append", help="may be repeated; all parts by default")
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
