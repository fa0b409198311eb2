"""Kill `mdmf detect --resume` again and again, and see whether each input is in its output once, unchanged.

    python benchmarks/kills.py FOLDER [--bundle starter] [--kills 200] [--outputs jsonl csv parquet] [--seed 0]

FOLDER: some hundred images, so that a run takes a few seconds. Every kill is SIGKILL to a real process, at a moment
drawn from the seed: at most as late as a run took that nobody killed. So runs die while they start, and while they
write. A run that comes to its end is compared with that one, and the output is begun anew. Parts of a Parquet folder
hold 20 inputs here. The default of a part a minute would let no killed run get on. Exit code 1 if any input is missing,
doubled or changed.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common import header, table

from mdmf_deploy.images.inputs import expand

ENDINGS = ("jsonl", "csv", "parquet")
TIMES = "ms_"
SMALL_PARTS = """
from mdmf_deploy.detection.outputs import row_parts
row_parts.PART_INPUTS = 20
from mdmf_deploy.__main__ import main
main()
"""
# Columns of a part that its rows in one file lack.
OF_INPUT = ("input", "input_copy", "input_size", "input_mtime_ns")
Row = dict[str, Any]


@dataclass
class Tally:
    """What was seen of one kind of output.

    undisturbed: seconds of a run that nobody killed.
    empty, partial: kills after which it held no row, and some.  cut: kills after which its last line was half a row.
    finished: runs that came to their end.  lost, doubled, changed: inputs, over all kills and finished runs.
    strays: hidden files that a finished run left.  odd: exit codes and messages that should not be.
    """

    undisturbed: float = 0.0
    kills: int = 0
    empty: int = 0
    partial: int = 0
    cut: int = 0
    finished: int = 0
    lost: int = 0
    doubled: int = 0
    changed: int = 0
    strays: int = 0
    odd: list[str] = field(default_factory=list)

    @property
    def failed(self) -> bool:
        return bool(self.lost or self.doubled or self.changed or self.strays or self.odd)


def rows_in(output: Path) -> tuple[list[Row], bool]:
    """Return the rows that a reader finds, without times, and whether a last line is cut short."""
    cut = False
    if output.suffix == ".parquet":
        import pyarrow.parquet

        parts = sorted(output.glob("part-*.parquet"))
        rows = [row for part in parts for row in pyarrow.parquet.ParquetFile(part).read().to_pylist()]
    else:
        lines = output.read_bytes().splitlines(keepends=True) if output.exists() else []
        cut = bool(lines) and not lines[-1].endswith(b"\n")
        whole = [line.decode() for line in lines[: len(lines) - cut]]
        rows = [json.loads(line) for line in whole] if output.suffix == ".jsonl" else list(csv.DictReader(whole))
    dropped = [name for name in (rows[0] if rows else ()) if name.startswith(TIMES) or name in OF_INPUT]
    return [{name: value for name, value in row.items() if name not in dropped} for row in rows], cut


def compare(rows: list[Row], expected: dict[str, Row], tally: Tally, finished: bool) -> None:
    """Count what is wrong with the rows."""
    found = Counter(str(row["uri"]) for row in rows)
    tally.doubled += sum(count - 1 for count in found.values())
    tally.changed += sum(row != expected.get(str(row["uri"])) for row in rows)
    if finished:
        tally.lost += len(expected.keys() - found.keys())


def run(command: list[str], seconds: float | None) -> tuple[int, str]:
    """Run a command, kill it after these seconds, and return its exit code, or minus its signal, and its messages."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        _, errors = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        _, errors = process.communicate()
    return process.returncode, errors


def kill(ending: str, place: Path, options: argparse.Namespace, kills: int) -> Tally:
    """Kill runs that write one kind of output, and compare what they leave."""
    tally, draw = Tally(), random.Random(f"{options.seed} {ending}")

    def command(output: Path) -> list[str]:
        words = ["detect", str(options.folder), "-o", str(output), "--resume"]
        words += ["--bundle", options.bundle, "--runtime", options.runtime]
        return [sys.executable, *(("-c", SMALL_PARTS) if ending == "parquet" else ("-m", "mdmf_deploy")), *words]

    alone = place / "alone" / f"rows.{ending}"
    alone.parent.mkdir(parents=True)
    start = time.perf_counter()
    code, errors = run(command(alone), None)
    tally.undisturbed = time.perf_counter() - start
    if code not in (0, 3):
        raise SystemExit(errors)
    expected = {str(row["uri"]): row for row in rows_in(alone)[0]}
    folder = place / "killed"
    output = folder / alone.name
    folder.mkdir()
    while True:
        last = tally.kills == kills
        ended, errors = run(command(output), None if last else draw.uniform(0.0, tally.undisturbed))
        rows, cut = rows_in(output)
        finished = ended == code
        compare(rows, expected, tally, finished)
        if finished:
            tally.finished += 1
            tally.strays += sum(1 for _ in folder.rglob(".*"))
            shutil.rmtree(folder)
            folder.mkdir()
        elif ended == -9:
            tally.kills += 1
            tally.empty += not rows
            tally.partial += bool(rows)
            tally.cut += cut
        else:
            tally.odd.append(f"exit code {ended}: {errors.strip().splitlines()[-1:]}")
        if last or len(tally.odd) > 10:
            return tally


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--bundle", default="starter")
    parser.add_argument("--runtime", default="onnxruntime")
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--outputs", nargs="+", choices=ENDINGS, default=list(ENDINGS))
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    options.folder = options.folder.resolve()
    header("onnxruntime", "pyarrow")
    inputs = len(expand([str(options.folder)]).paths)
    print(f"{inputs} inputs, {options.kills} kills, seed {options.seed}\n", flush=True)
    tallies, lines = [], []
    for n, ending in enumerate(options.outputs):
        share = options.kills // len(options.outputs) + (n < options.kills % len(options.outputs))
        start = time.perf_counter()
        with tempfile.TemporaryDirectory(prefix="mdmf-kills-") as folder:
            tally = kill(ending, Path(folder), options, share)
        seconds = f"{time.perf_counter() - start:.0f} s"
        tallies.append(tally)
        state = f"{tally.empty} / {tally.partial} / {tally.cut}"
        wrong = (tally.lost, tally.doubled, tally.changed, tally.strays, len(tally.odd))
        alone = f"{tally.undisturbed:.1f} s"
        lines.append((f".{ending}", alone, tally.kills, state, tally.finished, *wrong, seconds))
    headings = ("output", "undisturbed", "kills", "left empty / partial / with half a line", "runs that finished")
    print(table(lines, (*headings, "inputs lost", "doubled", "changed", "strays", "other endings", "took")))
    for tally in tallies:
        print(*tally.odd, sep="\n", end="\n" * bool(tally.odd))
    sys.exit(any(tally.failed for tally in tallies))


if __name__ == "__main__":
    main()
