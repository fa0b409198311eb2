"""Time what a user waits for before anything happens: whole processes, started as a shell does, with a warm disk cache.

    python benchmarks/startup.py IMAGE_OR_DATA [--bundle starter] [--runs 10]

IMAGE_OR_DATA: one photograph, or a folder whose first image is taken. The commands take turns.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from common import Timing, header, interleaved, table

from mdmf_deploy.images.inputs import expand
from mdmf_deploy.runtime import installed

MDMF = Path(sys.executable).with_name("mdmf")
IMPORT = (sys.executable, "-c", "import mdmf_deploy.cli")
NOTHING = (sys.executable, "-c", "")
HEAVIEST = 5


def run(command: Sequence[str | Path]) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OPENBLAS_")}
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)


def heaviest(arguments: Sequence[str]) -> list[tuple[str, str]]:
    """Return the packages whose modules take longest to import, by Python's own -X importtime."""
    log = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "mdmf_deploy", *arguments],
        capture_output=True,
        text=True,
        check=True,
    ).stderr
    packages: dict[str, float] = {}
    for microseconds, module in re.findall(r"^import time:\s+(\d+) \|\s+\d+ \|\s+(\S+)$", log, re.MULTILINE):
        package = module.partition(".")[0]
        packages[package] = packages.get(package, 0.0) + int(microseconds) / 1e3
    largest = sorted(packages.items(), key=lambda item: -item[1])[:HEAVIEST]
    return [(package, f"{milliseconds:.0f} ms") for package, milliseconds in largest]


def seconds(timing: Timing) -> str:
    return f"{timing.median:.2f} s ({timing.min:.2f} to {timing.max:.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--bundle", default="starter")
    parser.add_argument("--runs", type=int, default=10)
    options = parser.parse_args()
    image = options.data if options.data.is_file() else expand([str(options.data)]).paths[0]
    header("onnxruntime", "openvino", "pillow", "typer")

    detect = {
        runtime: ["detect", str(image), "--bundle", options.bundle, "--runtime", runtime]
        for runtime in ("auto", *installed())
    }
    commands: dict[str, tuple[Sequence[str | Path], str]] = {
        "mdmf --help": ((MDMF, "--help"), "0.2 s"),
        "mdmf detect --help": ((MDMF, "detect", "--help"), ""),
    }
    for runtime, arguments in detect.items():
        commands[f"mdmf detect one.jpg --runtime {runtime}"] = (MDMF, *arguments), "1.0 s" if runtime == "auto" else ""
    commands[f"python -c '{IMPORT[-1]}'"] = IMPORT, ""
    commands["python -c ''"] = NOTHING, ""
    work = {name: partial(run, command) for name, (command, _) in commands.items()}
    timings = interleaved(work, options.runs)
    print(
        table([(name, seconds(timings[name]), aim) for name, (_, aim) in commands.items()], ("what", "figure", "aim"))
    )
    own = timings[f"python -c '{IMPORT[-1]}'"].median - timings["python -c ''"].median
    print(f"The command line's own imports: {1e3 * own:.0f} ms.\n")
    for name, arguments in {"mdmf --help": ["--help"], "mdmf detect one.jpg": detect["auto"]}.items():
        print(table(heaviest(arguments), (f"imports of `{name}`, slowed by -X importtime", "own time")))


if __name__ == "__main__":
    main()
