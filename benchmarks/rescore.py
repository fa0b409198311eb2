"""Measure how fast stored signatures are judged again, and check that the rows are those of a full run.

    python benchmarks/rescore.py [IMAGES] [--inputs 4000] [--reduction cuda]

The first part stores random signatures of the size of dinov2s, 49 x 128 a crop, and judges them with banks of several
sizes, into a .jsonl file as `mdmf rescore -o` does. A bank of one signature shows what reading and writing cost alone.
The second part, with IMAGES, runs `mdmf detect --keep-signatures` on the folder, compresses the bundle's bank, and
compares the rows of `mdmf rescore` with those of a full run of the new bundle, for signatures in fp32 and in fp16.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, get_args

import numpy as np
from common import header, interleaved, number, per_second, random_bank, table

from mdmf_deploy.bundle.bundle import Bundle, write_bundle
from mdmf_deploy.bundle.manifest import BANK, MODEL, FileEntry, Manifest, ModelCard
from mdmf_deploy.bundle.recipe import Preprocessing
from mdmf_deploy.detection.feed import Extraction
from mdmf_deploy.detection.outputs import open_output
from mdmf_deploy.detection.outputs.done import InputKey
from mdmf_deploy.detection.outputs.signatures import Extractor, SignatureKeeper, SignatureType
from mdmf_deploy.detection.outputs.stored import StoredSignatures
from mdmf_deploy.detection.settings import RunSettings
from mdmf_deploy.tasks.rescore import Rescorer

POOL, WIDTH, SIGMA = 7, 128, 16.0
BANKS = (1, 512, 4096, 65_536)
TYPES: tuple[SignatureType, ...] = get_args(SignatureType)
TIMINGS = ("ms_decode", "ms_engine", "ms_mmd")
# With a large bank, so many images are judged that a round takes seconds.
_LEAST, _PRODUCT = 200, 8_000_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", nargs="?", type=Path, help="a folder of images, to compare rows with a full run")
    parser.add_argument("--inputs", type=int, default=4000, help="random inputs, of one crop each")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--reduction", default="cpu")
    parser.add_argument("--bundle", default="dinov2s")
    parser.add_argument("--runtime", default="onnxruntime")
    parser.add_argument("--points", type=int, default=512, help="of the compressed bank that rows are compared for")
    arguments = parser.parse_args()
    header("pyarrow")
    with tempfile.TemporaryDirectory() as folder:
        print(speeds(Path(folder), arguments))
        if arguments.images is not None:
            print(equality(Path(folder), arguments))


def speeds(folder: Path, arguments: argparse.Namespace) -> str:
    bundles = {points: random_bundle(folder / f"{points}.mdmf", points) for points in BANKS}
    stored = {type: store(folder / type, bundles[1], type, arguments.inputs) for type in TYPES}
    counts = {points: min(arguments.inputs, max(_LEAST, _PRODUCT // points)) for points in BANKS}
    work = {
        f"{type} {points}": partial(
            judge, stored[type], bundles[points], folder / "rows.jsonl", arguments.reduction, counts[points]
        )
        for points in BANKS
        for type in TYPES
    }
    times = interleaved(work, arguments.rounds)
    rows = [
        (f"{points:,}", *(per_second(times[f"{type} {points}"], counts[points]) for type in TYPES)) for points in BANKS
    ]
    return table(rows, ("signatures in the bank", *(f"{type}: images" for type in TYPES)))


def random_bundle(path: Path, points: int) -> Bundle:
    """Write a bundle without a model, whose bank holds so many random signatures."""
    graph = b"no graph"
    manifest = Manifest(
        name="random",
        model=ModelCard(backbone="none", pool=POOL, signature=WIDTH, sigma=SIGMA, precision="fp32", opset=18),
        preprocessing=Preprocessing(crop=224),
        provenance=Bundle.open("starter").manifest.provenance,
        files={MODEL: FileEntry(sha256=hashlib.sha256(graph).hexdigest(), size=len(graph))},
    )
    bank = replace(random_bank(points, WIDTH, sigma=SIGMA), model_sha256=manifest.model_sha256)
    return write_bundle(path, manifest, {MODEL: graph, BANK: bank.to_bytes()})


def store(folder: Path, bundle: Bundle, type: SignatureType, inputs: int) -> StoredSignatures:
    """Store random signatures as a run does, and print how fast that was."""
    extractor = Extractor.of(bundle, "onnxruntime", type)
    settings = RunSettings(
        tool="benchmark",
        bundle_id=bundle.bundle_id,
        calibration_id=None,
        runtime="onnxruntime",
        precision="fp32",
        verdicts=False,
        crops=1,
        frames=10,
        each_frame=False,
        max_pixels=1,
        max_memory=1,
        max_seconds=1.0,
    )
    generator = np.random.default_rng(0)
    drawn = generator.standard_normal((256, 1, POOL * POOL, WIDTH), np.float32)
    known: dict[str, Any] = {"width": 816, "height": 612, "format": "jpeg", "crop": "center", "evidence": 0.8}
    start = time.perf_counter()
    with SignatureKeeper(str(folder), settings, extractor, resume=False) as keeper:
        for n in range(inputs):
            uri = f"photos/{n:08}.jpg"
            keeper.extracted(Extraction(uri, f"{n:064}", signatures=drawn[n % len(drawn)], **known))
            keeper.add(InputKey(uri, 0, 100_000, n))
    rate = inputs / (time.perf_counter() - start)
    size = sum(path.stat().st_size for path in folder.iterdir()) / inputs
    print(f"{type}: {number(size / 1e3)} kB an image; {number(rate)} images/s stored\n")
    return StoredSignatures.open(str(folder))


def judge(stored: StoredSignatures, bundle: Bundle, output: Path, reduction: str, count: int) -> None:
    with Rescorer(stored, bundle, reduction=reduction) as rescorer, open_output(output) as writer:
        for rows in islice(rescorer.rows(), count):
            for row in rows:
                writer.write(row)


def equality(folder: Path, arguments: argparse.Namespace) -> str:
    new, full = folder / "new.mdmf", folder / "full.jsonl"
    run("bank", "compress", arguments.bundle, "--points", arguments.points, "-o", new)
    detect = ("detect", arguments.images, "--runtime", arguments.runtime)
    seconds = run(*detect, "--bundle", new, "-o", full)
    wanted = rows_of(full)
    cells = [("a full run of the new bundle", number(len(wanted) / seconds), "", "", "")]
    for type in TYPES:
        kept, rows = folder / f"kept-{type}", folder / f"{type}.jsonl"
        keeping = ("--keep-signatures", kept, "--signature-type", type)
        run(*detect, "--bundle", arguments.bundle, *keeping, "-o", folder / "old.jsonl")
        seconds = run("rescore", kept, "--bundle", new, "-o", rows, "--reduction", arguments.reduction)
        found = rows_of(rows)
        assert [row["uri"] for row in found] == [row["uri"] for row in wanted]
        pairs = list(zip(found, wanted, strict=True))
        change = max((abs(a["score"] - b["score"]) for a, b in pairs if b["score"] is not None), default=0.0)
        cells.append(
            (
                f"rescore, {type}",
                number(len(found) / seconds),
                f"{sum(a != b for a, b in pairs)} of {len(pairs)}",
                f"{sum(a['verdict'] != b['verdict'] for a, b in pairs)}",
                f"{change:.2g}",
            )
        )
    spread = float(np.std([row["score"] for row in wanted if row["score"] is not None]))
    print(f"Rows of {arguments.images}. Scores have a standard deviation of {spread:.2g}.\n")
    return table(
        cells, ("command", "images/s, with its start", "rows that differ", "verdicts that differ", "largest change")
    )


def run(*arguments: object) -> float:
    """Run a command of `mdmf` and return its seconds."""
    start = time.perf_counter()
    command = [sys.executable, "-m", "mdmf_deploy", "--quiet", *map(str, arguments)]
    code = subprocess.run(command, check=False).returncode
    if code not in (0, 3):  # 3: some inputs cannot be read
        sys.exit(f"{' '.join(command)}: exit code {code}")
    return time.perf_counter() - start


def rows_of(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a file, without what the clock decides."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return [{**json.loads(line), **dict.fromkeys(TIMINGS)} for line in lines]


if __name__ == "__main__":
    main()
