"""Time `mdmf detect` with and without heat maps, and the drawing alone.

    python benchmarks/heatmaps.py IMAGES [--count 200] [--bundle starter dinov2s] [--rounds 5] [--before CHECKOUT]

IMAGES: a folder, of which every nth image is taken. Commands take turns, each in a process of its own. Their rates are
those that they print, so starting does not count. A heat map's own cost is its processor time, drawn alone.
--before: the root of an older checkout, whose heat maps are timed as well.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from common import Timing, header, ms, per_second, ratio, table

from mdmf_deploy.detection.detector import Detector
from mdmf_deploy.detection.outputs.heatmaps import FORMATS, HeatmapFolder, HeatmapOptions
from mdmf_deploy.detection.rows import Row
from mdmf_deploy.images.inputs import expand

ROOT = Path(__file__).parents[1]
WITHOUT, BEFORE = "no heat maps", "heat maps before"


def detect(checkout: Path, images: Path, bundle: str, scratch: Path, *options: str) -> float:
    """Return the seconds of one run, without its start."""
    # Older checkouts have no mdmf_deploy.__main__.
    program = "from mdmf_deploy.cli import main; main()"
    command = [sys.executable, "-c", program, "detect", f"@{images}", "--bundle", bundle]
    answer = subprocess.run(
        [*command, "-o", str(scratch / "rows.jsonl"), *options],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(checkout)},
        cwd=scratch,
    )
    rates = re.findall(r"([\d.]+) images/s", answer.stderr)
    if answer.returncode not in (0, 3) or not rates:
        raise SystemExit(answer.stderr)
    return len(images.read_text(encoding="utf-8").splitlines()) / float(rates[-1])


def draw(rows: Sequence[tuple[Row, Path]], options: HeatmapOptions, scratch: Path) -> float:
    """Return the seconds of processor time that drawing takes on one thread."""
    folder = HeatmapFolder(scratch / "alone", options)
    start = time.thread_time()
    for row, path in rows:
        folder.write(row, path)
    return time.thread_time() - start


def compare(paths: Sequence[Path], bundle: str, rounds: int, before: Path | None) -> None:
    with tempfile.TemporaryDirectory() as folder, Detector(bundle) as detector:
        scratch = Path(folder)
        images = scratch / "images.txt"
        images.write_text("\n".join(map(str, paths)), encoding="utf-8")
        rows = list(zip(detector.detect(paths), paths, strict=True))
        runs: dict[str, tuple[Path, list[str]]] = {WITHOUT: (ROOT, [])}
        for format in FORMATS:
            runs[format] = (ROOT, ["--heatmaps", "maps", "--heatmap-format", format])
        if before is not None:
            runs[BEFORE] = (before.resolve(), ["--heatmaps", "before"])
        seconds: dict[str, list[float]] = {name: [] for name in [*runs, *(f"{format} alone" for format in FORMATS)]}
        for n in range(rounds):
            for name in list(seconds) if n % 2 else reversed(list(seconds)):
                if name in runs:
                    checkout, options = runs[name]
                    seconds[name].append(detect(checkout, images, bundle, scratch, *options))
                else:
                    look = HeatmapOptions.of(detector.bundle, name.removesuffix(" alone"))
                    seconds[name].append(draw(rows, look, scratch))
    times = {name: Timing(tuple(values)) for name, values in seconds.items()}
    print(f"{bundle}: {len(paths)} images\n")
    print(table([_line(name, times, len(paths)) for name in runs], ("detect", "images/s", "times as long", "one map")))


def _line(name: str, times: dict[str, Timing], count: int) -> tuple[str, ...]:
    timing, without = times[name], times[WITHOUT]
    if name == WITHOUT:
        return name, per_second(timing, count)
    if name == BEFORE:
        return name, per_second(timing, count), str(ratio(timing, without))
    alone = ms(times[f"{name} alone"], 1 / count)
    return f"heat maps, {name}", per_second(timing, count), str(ratio(timing, without)), alone


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=Path)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--bundle", nargs="+", default=["starter", "dinov2s"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--before", type=Path)
    options = parser.parse_args()
    found = [path.resolve() for path in expand([str(options.images)]).paths]
    paths = found[:: max(1, len(found) // options.count)][: options.count]
    header("pillow", "onnxruntime", "openvino")
    for bundle in options.bundle:
        compare(paths, bundle, options.rounds, options.before)


if __name__ == "__main__":
    main()
