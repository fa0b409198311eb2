"""Ask whether an image without texture is ever called generated, and how much texture real and generated images have.

    python benchmarks/featureless.py [DATA] [--bundle starter] [--count 200]

Draws flats, gradients, skies, walls, pages of text, blank scans and black frames, JPEG and PNG, and judges them as
`mdmf detect` does. With DATA, a folder with real/SOURCE/ and generated/GENERATOR/ (and others, such as fullsize/), it
also measures the evidence in the central crop of up to --most images of each.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from functools import partial
from pathlib import Path

import numpy as np
from common import header, interleaved, ms, number, table

from mdmf_deploy.bundle.calibration import LEAST_EVIDENCE
from mdmf_deploy.detection.detector import Detector
from mdmf_deploy.detection.rows import Row
from mdmf_deploy.images.crops import center_crop
from mdmf_deploy.images.decode import decode, read
from mdmf_deploy.images.evidence import evidence
from mdmf_deploy.images.inputs import in_folder

# The tests draw the same images.
sys.path.append(str(Path(__file__).resolve().parent.parent / "tests"))
from helpers.featureless import featureless

CROP = 224


def judged(bundle: str, count: int) -> dict[str, list[Row]]:
    names, files = zip(*featureless(count, side=512), strict=True)
    rows = defaultdict(list)
    with Detector(bundle) as detector:
        for name, row in zip(names, detector.stream(files), strict=True):
            rows[name.partition("-")[0]].append(row)
    return dict(rows)


def drawn(bundle: str, count: int) -> int:
    """Print the verdicts on images that are drawn, and return how many are "generated"."""
    lines = []
    by_kind = judged(bundle, count)
    for kind, rows in [*by_kind.items(), ("all", [row for of_kind in by_kind.values() for row in of_kind])]:
        verdicts = [f"{row.verdict} ({row.reason})" if row.reason else row.verdict for row in rows]
        counts = ", ".join(f"{verdicts.count(verdict)} {verdict}" for verdict in sorted(set(verdicts)))
        lines.append((kind, len(rows), number(max(row.evidence or 0.0 for row in rows)), counts))
    print(table(lines, ("images", "count", "most evidence", "verdicts")), flush=True)
    return sum(row.verdict == "generated" for rows in by_kind.values() for row in rows)


def measured(data: Path, most: int) -> str:
    parents = [data / "real", data / "generated"]
    folders = [folder for parent in (data, *parents) if parent.is_dir() for folder in sorted(parent.iterdir())]
    lines = []
    for folder in folders:
        if folder in parents or not folder.is_dir():
            continue
        paths = sorted(in_folder(folder).paths)[:most]
        shares = np.array([evidence(center_crop(decode(read(path)).pixels, CROP).pixels) for path in paths])
        if len(shares):
            few = f"{np.mean(shares < LEAST_EVIDENCE):.0%}"
            low, middle = (f"{value:.2f}" for value in np.quantile(shares, (0.05, 0.5)))
            lines.append((folder.relative_to(data).as_posix(), len(shares), middle, low, few))
    return table(lines, ("folder", "images", "median evidence", "5% have at most", f"below {LEAST_EVIDENCE:.0%}"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="?", type=Path, metavar="DATA")
    parser.add_argument("--bundle", default="starter")
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--most", type=int, default=60)
    arguments = parser.parse_args()
    header("numpy", "pillow")
    wrong = drawn(arguments.bundle, arguments.count)
    if arguments.data:
        print(measured(arguments.data, arguments.most), flush=True)
    crop = np.random.default_rng(0).integers(0, 256, (1, CROP, CROP, 3), np.uint8)
    timing = interleaved({"evidence": partial(evidence, crop)}, 100)["evidence"]
    print(f"Evidence of one crop: {ms(timing)} ms")
    sys.exit(f"{wrong} featureless images were called generated" if wrong else 0)


if __name__ == "__main__":
    main()
