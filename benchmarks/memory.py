"""Measure the peak memory of `mdmf detect` for more and more files. It must not grow with them.

    python benchmarks/memory.py [DATA] [--files 1000 10000]

DATA: a folder of images. The inputs are hard links to them, or copies where links are not possible. Every run is a
process of its own, `mdmf detect FOLDER -o rows.jsonl`. Its peak is the largest resident set that the system counted.
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
from synthetic_jpegs import write_jpegs

from mdmf_deploy.images.inputs import in_folder

AIM = 1.10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="?", type=Path, help="a folder of images; JPEGs are made without one")
    parser.add_argument("--files", type=int, nargs="+", default=[1000, 10_000])
    parser.add_argument("--runtime", default="onnxruntime")
    arguments = parser.parse_args()
    header("pillow", arguments.runtime)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if arguments.data is None:
            originals = write_jpegs(folder, None, small=64, large=0)["0.5 MP"]
        else:
            originals = list(in_folder(arguments.data).paths)
        peaks: dict[int, float] = {}
        rows = []
        for count in arguments.files:
            inputs = folder / str(count)
            fill(inputs, originals, count)
            seconds, peaks[count] = run(inputs, folder / f"{count}.jsonl", arguments.runtime)
            lines = (folder / f"{count}.jsonl").read_bytes().count(b"\n")
            against = peaks[count] / peaks[arguments.files[0]]
            aim = "" if count == arguments.files[0] else f"at most {AIM:g}"
            rows.append(
                (
                    f"{count} files, {lines} rows, {number(count / seconds)}/s",
                    f"{peaks[count]:.0f} MB",
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
        copy = folder / f"{n:06}{original.suffix}"
        try:
            os.link(original.resolve(), copy)
        except OSError:
            shutil.copyfile(original, copy)


def run(inputs: Path, output: Path, runtime: str) -> tuple[float, float]:
    """Return seconds and megabytes."""
    command = [
        sys.executable,
        "-m",
        "mdmf_deploy",
        "detect",
        str(inputs),
        "--runtime",
        runtime,
        "-q",
        "-o",
        str(output),
    ]
    start = time.perf_counter()
    process = subprocess.Popen(command)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode not in (0, 3):
        sys.exit(f"{' '.join(command)} exited with {process.returncode}")
    scale = 1 if sys.platform == "darwin" else 1024
    return time.perf_counter() - start, usage.ru_maxrss * scale / 1e6


if __name__ == "__main__":
    main()
