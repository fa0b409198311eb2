"""Time `mdmf detect` of this checkout against an older one on the same images, and compare the scores.

    python benchmarks/versions.py IMAGES --before CHECKOUT [--count 200] [--repeat 5] [--bundle starter] [--rounds 7]

IMAGES: a folder, of which every nth image is taken. --repeat lists each that many times. The two commands take turns,
each in a process of its own. Seconds are those of the rate that they print, so starting does not count. Processor
seconds are those of the whole process and its children, start included.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from common import Timing, header, number, ratio, table

from mdmf_deploy.images.inputs import expand

ROOT = Path(__file__).parents[1]


def detect(checkout: Path, images: Path, bundle: str, rows: Path) -> tuple[float, float]:
    """Return the seconds of one run without its start, and the processor seconds of all of it."""
    # Older checkouts have no mdmf_deploy.__main__.
    program = "from mdmf_deploy.cli import main; main()"
    command = [sys.executable, "-c", program, "detect", f"@{images}", "--bundle", bundle, "-o", str(rows)]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    answer = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(checkout)}, cwd=rows.parent
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    rates = re.findall(r"([\d.]+) images/s", answer.stderr)
    if answer.returncode not in (0, 3) or not rates:
        raise SystemExit(answer.stderr)
    seconds = len(images.read_text(encoding="utf-8").splitlines()) / float(rates[-1])
    return seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def scores(rows: Path) -> dict[str, float | None]:
    """Return the score of each image."""
    lines = rows.read_text(encoding="utf-8").splitlines()
    return {row["uri"]: row["score"] for row in map(json.loads, lines)}


def compare(paths: Sequence[Path], bundle: str, rounds: int, before: Path) -> None:
    checkouts = {"before": before.resolve(), "now": ROOT}
    wall: dict[str, list[float]] = {name: [] for name in checkouts}
    processor: dict[str, list[float]] = {name: [] for name in checkouts}
    with tempfile.TemporaryDirectory() as scratch:
        images = Path(scratch, "images.txt")
        images.write_text("".join(f"{path}\n" for path in paths), encoding="utf-8")
        rows = {name: Path(scratch, f"{name}.jsonl") for name in checkouts}
        for turn in range(rounds + 1):
            for name in checkouts if turn % 2 else reversed(checkouts):
                seconds, cpu = detect(checkouts[name], images, bundle, rows[name])
                if turn:  # the first one warms the files' cache
                    wall[name].append(seconds)
                    processor[name].append(cpu)
        old, new = scores(rows["before"]), scores(rows["now"])
    lines = []
    for name in checkouts:
        lines.append(
            (
                name,
                *(
                    f"{number(1e3 * timing.median / len(paths))} ms ({ratio(timing, Timing(tuple(base['before'])))})"
                    for timing, base in ((Timing(tuple(wall[name])), wall), (Timing(tuple(processor[name])), processor))
                ),
            )
        )
    same = sum(old[uri] == new[uri] for uri in old)
    print(f"\n{bundle}, {len(paths)} images, {rounds} alternating rounds; {same} of {len(old)} scores equal\n")
    print(table(lines, ("checkout", "an image (times before)", "processor time an image (times before)")))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images")
    parser.add_argument("--before", type=Path, required=True)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--bundle", default="starter")
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    header("pillow")
    found = [path.resolve() for path in expand([arguments.images]).paths]
    chosen = found[:: max(1, len(found) // arguments.count)][: arguments.count]
    compare(chosen * arguments.repeat, arguments.bundle, arguments.rounds, arguments.before)


if __name__ == "__main__":
    main()
