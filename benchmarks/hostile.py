"""Feed `mdmf detect` files that are damaged, costly, cut short or very large, and count what came of them.

    python benchmarks/hostile.py --mutated [--count 2000] [--seed 0]
    python benchmarks/hostile.py --costly [--scale 1]
    python benchmarks/hostile.py --cuts PHOTOGRAPHS [--count 200]
    python benchmarks/hostile.py --large [--folder FOLDER]

--mutated damages files of every format that the libraries here can write: bits, bytes, lengths, ends, chunks. It runs
    the folder twice, with new memory filled with another byte, and compares the rows. --folder keeps the files.
--costly decodes each kind of tests/helpers/costly.py alone in a process, with 30 seconds of a core and 4 GiB of address
    space at most.
--cuts cuts JPEGs, saved again as baseline and as progressive ones, at 10, 30, 50 and 90% of their scans, and closes
    them with an end marker. It also takes only the end marker away.
--large makes JPEGs of 108, 200 and 280 megapixels. --folder keeps them for another run.

--checkout DIR runs the code of that checkout, so that two can be compared. Peak memory is the resident memory of the
process and its children, sampled every 20 ms, so pages that they share count for each.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from common import header, number, table
from detect_runs import ROOT, Run, code_of, counted, detected
from helpers.cost import costs
from helpers.costly import KINDS, NEEDS, group
from helpers.cut_jpegs import cut, without_end
from helpers.every_format import samples
from helpers.mutations import mutated
from large_jpegs import SIZES, write_large
from PIL import Image

from mdmf_deploy.images.inputs import in_folder

SHARES = (0.1, 0.3, 0.5, 0.9)
RAISED = 400_000_000  # pixels


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    mode = parser.add_mutually_exclusive_group(required=True)
    mode.add_argument("--mutated", action="store_true")
    mode.add_argument("--costly", action="store_true")
    mode.add_argument("--cuts", type=Path, metavar="PHOTOGRAPHS")
    mode.add_argument("--large", action="store_true")
    parser.add_argument("--count", type=int, help="files to make, or photographs to cut")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scale", type=float, default=1.0, help="of the floods among the costly kinds")
    parser.add_argument("--only", default="", help="costly kinds whose name contains this")
    parser.add_argument("--folder", type=Path, help="where to put the files, and leave them")
    parser.add_argument("--checkout", type=Path, default=ROOT, help="whose code to run")
    arguments = parser.parse_args()
    header("pillow", "pillow-heif", "pillow-jxl-plugin", "opencv-python-headless")
    with folder_of(arguments.folder) as folder:
        if arguments.mutated:
            mutations(folder / "mutated", arguments.count or 2000, arguments.seed, arguments.checkout)
        elif arguments.costly:
            costly(folder, arguments.scale, arguments.only, arguments.checkout)
        elif arguments.large:
            large(folder, arguments.checkout)
        else:
            cuts(folder / "cuts", arguments.cuts, arguments.count or 200, arguments.checkout)


@contextmanager
def folder_of(given: Path | None) -> Iterator[Path]:
    if given is not None:
        given.mkdir(parents=True, exist_ok=True)
        yield given.resolve()
        return
    with tempfile.TemporaryDirectory(prefix="hostile-") as name:
        yield Path(name)


def mutations(folder: Path, count: int, seed: int, checkout: Path) -> None:
    folder.mkdir()
    files = samples()
    names, others = list(files), list(files.values())
    for n in range(count):
        name = names[n % len(names)]
        way, data = mutated(files[name], others, np.random.default_rng([seed, n]))
        stem, _, suffix = name.rpartition(".")
        (folder / f"{stem}-{n:05}-{way}.{suffix}").write_bytes(data)
    first, second = (detected(folder, checkout, fill=fill) for fill in (0, 170))
    if not first.rows:
        sys.exit("\n".join([f"mdmf detect exited with {first.code} and wrote no rows", *first.messages[-5:]]))
    print(table(_codes(first), ("format", "files", "codes")))
    slowest, which = first.slowest
    print(
        table(
            [
                ("rows of files", f"{len(first.rows)} of {count}", "all"),
                ("exit code", f"{first.code}, then {second.code}", "3"),
                ("rows of both runs, apart from timings", _equal(first, second), "equal"),
                ("slowest row", f"{number(slowest)} s ({which})", "under 10 s"),
                ("peak memory, 8 threads", f"{max(first.peak, second.peak) / 1e6:.0f} MB", "under 1500 MB"),
                ("lines on stderr of others than mdmf", f"{len(first.foreign)}", "0"),
                ("the whole run", f"{number(first.seconds)} s", ""),
            ],
            ("what", "figure", "aim"),
        )
    )
    for line in dict.fromkeys(first.foreign[:20]):
        print(f"    {line[:200]}")


def _codes(run: Run) -> Iterator[tuple[str, int, str]]:
    formats: dict[str, list[str]] = {}
    for row in run.rows:
        formats.setdefault(Path(row["uri"]).name.partition("-")[0], []).append(code_of(row))
    for format, codes in sorted(formats.items()):
        yield format, len(codes), _listed(codes)
    codes = [code for found in formats.values() for code in found]
    yield "all", len(codes), _listed(codes)


def _listed(codes: list[str]) -> str:
    return ", ".join(f"{code} {times}" for code, times in counted(codes).items())


def _equal(first: Run, second: Run) -> str:
    if len(first.rows) != len(second.rows):
        return f"{len(first.rows)} and {len(second.rows)}"
    pairs = zip(first.untimed(), second.untimed(), strict=True)
    different = [Path(str(one["uri"])).name for one, two in pairs if json.dumps(one) != json.dumps(two)]
    return f"{len(different)} differ: {', '.join(different[:3])}" if different else "equal"


def costly(folder: Path, scale: float, only: str, checkout: Path) -> None:
    headings = ("kind", "bytes", "code", "seconds of a core", "peak MB", "")
    print(table([], headings), end="")
    for name, kind in KINDS.items():
        needed = NEEDS.get(group(name))
        if only not in name or (needed and not find_spec(needed)):
            continue
        path = folder / name
        path.write_bytes(kind.make(scale))
        size = path.stat().st_size
        [cost, *_], _ = costs([path], checkout=checkout, seconds=150.0, cpu=30)
        path.unlink()
        peak = "" if cost.peak is None else f"{cost.peak / 1e6:.0f}"
        right = "" if cost.code in kind.codes else f"not {' or '.join(sorted(kind.codes))}"
        seconds = f"{cost.cpu:.2f}"
        row = (path.stem, f"{size:,}", cost.code, seconds, peak, right)
        print(f"| {' | '.join(row)} |", flush=True)


def cuts(folder: Path, photographs: Path, count: int, checkout: Path) -> None:
    folder.mkdir()
    paths = list(in_folder(photographs).paths)
    chosen = paths[:: max(1, len(paths) // count)][:count]
    for n, path in enumerate(chosen):
        with Image.open(path) as image:
            picture = image.convert("RGB")
        for kind in ("baseline", "progressive"):
            buffer = io.BytesIO()
            picture.save(buffer, "JPEG", quality=90, progressive=kind == "progressive")
            data = buffer.getvalue()
            (folder / f"{kind}-whole-{n:04}.jpg").write_bytes(data)
            (folder / f"{kind}-no end marker-{n:04}.jpg").write_bytes(without_end(data))
            for share in SHARES:
                (folder / f"{kind}-cut at {share:.0%}-{n:04}.jpg").write_bytes(cut(data, share))
    run = detected(folder, checkout)
    rows = []
    for kind in ("baseline", "progressive"):
        for what in ("whole", *(f"cut at {share:.0%}" for share in SHARES), "no end marker"):
            of_kind = [row for row in run.rows if Path(row["uri"]).name.startswith(f"{kind}-{what}-")]
            generated = sum(row["verdict"] == "generated" for row in of_kind)
            notes = counted([note for row in of_kind for note in (row.get("notes") or "").split()])
            said = ", ".join(f"{note} {times}" for note, times in notes.items())
            rows.append((kind, what, len(of_kind), _listed([code_of(row) for row in of_kind]), generated, said))
    print(table(rows, ("saved as", "file", "rows", "codes", "generated", "notes")))
    print(f"{len(run.rows)} rows of {12 * len(chosen)} files, exit code {run.code}, {number(run.seconds)} s")


def large(folder: Path, checkout: Path) -> None:
    rows = []
    for name, (width, height) in SIZES.items():
        path = folder / f"{width}x{height}.jpg"
        write_large(path, width, height)
        for options in ((), ("--max-pixels", str(RAISED))):
            run = detected(path, checkout, *options, threads=1)
            code = code_of(run.rows[0]) if run.rows else f"exit code {run.code}"
            figures = (code, number(run.slowest[0]) if run.rows else "", f"{run.peak / 1e6:.0f}")
            rows.append((name, f"{path.stat().st_size / 1e6:.0f} MB", " ".join(options) or "by default", *figures))
    print(table(rows, ("picture", "file", "limit", "code", "seconds of decoding", "peak MB of the process")))


if __name__ == "__main__":
    main()
