"""Measure the peak memory of `mdmf detect` for more and more files. It must not grow with them.

    python benchmarks/memory.py [DATA] [--files 10000 100000] [--bundle BUNDLE] [--engine ray]

DATA: a folder of images. The inputs are hard links to them in nested folders, or copies where links are not possible.
Every run is a process of its own, `mdmf detect FOLDER -o rows.jsonl`. Its peak is the largest resident set that the
system counted. With --engine ray, that is the driver's, and a column holds the largest sum over all of Ray's processes.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import header, number, table
from detect_runs import Watch
from synthetic_jpegs import write_jpegs

from mdmf_deploy.images.inputs import in_folder

AIM = 1.10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="?", type=Path, help="a folder of images; JPEGs are made without one")
    parser.add_argument("--files", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--runtime", default="onnxruntime")
    parser.add_argument("--bundle", default="starter")
    parser.add_argument("--engine", choices=["local", "ray"], default="local")
    arguments = parser.parse_args()
    header("pillow", arguments.runtime)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if arguments.data is None:
            originals = write_jpegs(folder, None, small=64, large=0)["0.5 MP"]
        else:
            originals = list(in_folder(arguments.data).paths)
        peaks: dict[int, float] = {}
        options = ["--runtime", arguments.runtime, "--bundle", arguments.bundle]
        ending = "jsonl"
        if arguments.engine == "ray":
            options, ending = [*options, "--engine", "ray"], "parts"
        rows = []
        for count in arguments.files:
            inputs = folder / str(count)
            fill(inputs, originals, count)
            seconds, peaks[count], together = run(inputs, folder / f"{count}.{ending}", options)
            against = peaks[count] / peaks[arguments.files[0]]
            aim = "" if count == arguments.files[0] else f"at most {AIM:g}"
            rows.append(
                (
                    f"{count} files, {number(count / seconds)}/s",
                    f"{peaks[count]:.0f} MB, with all its processes {together:.0f} MB",
                    aim,
                    number(against),
                )
            )
            shutil.rmtree(inputs)
    print(table(rows))


def fill(folder: Path, originals: list[Path], count: int) -> None:
    folder.mkdir()
    for n in range(count):
        original = originals[n % len(originals)]
        part = folder / f"{n // 1000:04}"
        part.mkdir(exist_ok=True)
        copy = part / f"{n:06}{original.suffix}"
        try:
            os.link(original.resolve(), copy)
        except OSError:
            shutil.copyfile(original, copy)


def run(inputs: Path, output: Path, options: list[str]) -> tuple[float, float, float]:
    """Return seconds, the process's peak in megabytes, and the largest sum of it and its descendants."""
    command = [sys.executable, "-m", "mdmf_deploy", "detect", str(inputs), *options, "-q", "-o", str(output)]
    start = time.perf_counter()
    process = subprocess.Popen(command)
    with Watch(process.pid, itself=True, interval=0.2) as watch:
        _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode not in (0, 3):
        sys.exit(f"{' '.join(command)} exited with {process.returncode}")
    scale = 1 if sys.platform == "darwin" else 1024
    return time.perf_counter() - start, usage.ru_maxrss * scale / 1e6, watch.peak / 1e6


if __name__ == "__main__":
    main()
