"""Ask what a second look (`mdmf detect --probe`) changes, what it costs, and whether it looks at the right images.

    python benchmarks/second_look.py DATA [--bundle dinov2s] [--recipe dinov2s] [--most 40] [--no-copies]

DATA holds real/SOURCE/ and generated/GENERATOR/. Only the recipe's test images count, at most --most of each source,
spread over it. Images in the bank and in the calibration are left out. They are judged without and with --probe. Then
all copies of all images are judged, unless --no-copies says not to, to count the verdicts that flip and are not seen by
`--probe`, because their image is not near its threshold.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from common import header, number, table

from mdmf_deploy.bundle.recipe import load_recipe, source_of
from mdmf_deploy.detection.detector import Detector
from mdmf_deploy.detection.rows import Row
from mdmf_deploy.detection.second_look import copies
from mdmf_deploy.detection.verdicts import Copy, Verdicts
from mdmf_deploy.images.decode import decode, read
from mdmf_deploy.tasks.evaluate.audit import audit
from mdmf_deploy.tasks.evaluate.datasets import KnownImage, find_images


class Judged(NamedTuple):
    """seconds: of the processors, which other programs do not change much."""

    rows: list[Row]
    seconds: float


def chosen(data: Path, detector: Detector, recipe: str, most: int) -> list[KnownImage]:
    """Return test images, at most so many of each source."""
    kept, _ = audit(find_images(data), detector.bundle, load_recipe(recipe).training.split)
    sources: dict[str, list[KnownImage]] = defaultdict(list)
    for image in kept:
        sources[source_of(image.path, image.generator)].append(image)
    return [
        images[place * len(images) // count]
        for images in sources.values()
        for count in [min(most, len(images))]
        for place in range(count)
    ]


def judged(images: Sequence[KnownImage], bundle: str, probe: bool) -> Judged:
    with Detector(bundle, probe=probe) as detector:
        start = time.process_time()
        rows = detector.detect([image.path for image in images])
        return Judged(rows, time.process_time() - start)


def class_lines(name: str, plain: Sequence[Row], probed: Sequence[Row]) -> tuple[object, ...]:
    """Return one class's line of the first table."""
    called = [sum(row.verdict == "generated" for row in rows) for rows in (plain, probed)]
    decided = [sum(row.verdict in ("real", "generated") for row in rows) for rows in (plain, probed)]
    looked = sum(row.probes is not None for row in probed)
    unstable = Counter(
        before.verdict for before, after in zip(plain, probed, strict=True) if after.reason == "unstable"
    )
    return (
        name,
        len(plain),
        looked,
        *(unstable[verdict] for verdict in ("real", "generated", "uncertain")),
        *(f"{count / len(plain):.1%}" for count in called),
        *(f"{count / len(plain):.1%}" for count in decided),
    )


def all_flips(images: Sequence[KnownImage], rows: Sequence[Row], bundle: str) -> str:
    """Return a table of the verdicts that flip among all images and copies, near the threshold and elsewhere."""
    found: dict[tuple[str, bool], list[bool]] = defaultdict(list)
    with Detector(bundle) as detector:
        preprocessing = detector.bundle.manifest.preprocessing
        verdicts = Verdicts(detector.bundle, detector.runtime, detector.engine.precision, preprocessing.crops)
        for image, row in zip(images, rows, strict=True):
            if row.threshold is None:
                continue
            changed = detector.detect(list(copies(decode(read(image.path)).pixels, preprocessing.crop)))
            scores = [Copy(copy.score, copy.evidence or 0.0) for copy in changed if copy.score is not None]
            again = verdicts.looked_again(row, scores)
            kind = "real" if image.generator is None else "generated"
            found[kind, verdicts.near(row)].append(again.reason == "unstable")
    lines = [
        (kind, "near" if near else "elsewhere", len(found[kind, near]), sum(found[kind, near]))
        for kind in ("real", "generated")
        for near in (True, False)
    ]
    return table(lines, ("images", "score", "count", "verdicts that flip among all copies"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, metavar="DATA")
    parser.add_argument("--bundle", default="dinov2s")
    parser.add_argument("--recipe", default="dinov2s")
    parser.add_argument("--most", type=int, default=40)
    parser.add_argument("--no-copies", action="store_true")
    arguments = parser.parse_args()
    header("numpy", "pillow")
    with Detector(arguments.bundle) as detector:
        images = chosen(arguments.data, detector, arguments.recipe, arguments.most)
    plain, probed = (judged(images, arguments.bundle, probe) for probe in (False, True))
    generated = [image.generator is not None for image in images]
    lines = [
        class_lines(
            name, *([row for row, is_one in zip(rows, generated, strict=True) if is_one == kind] for rows in both)
        )
        for name, kind in (("real", False), ("generated", True))
        for both in [(plain.rows, probed.rows)]
    ]
    flips = ("real, now unstable", "generated, now unstable", "borderline, now unstable")
    shares = ("called generated", "with --probe", "decided", "with --probe")
    print(table(lines, ("images", "count", "looked at again", *flips, *shares)))
    print(
        f"{len(images)} images: {number(plain.seconds)} s of CPU, with --probe {number(probed.seconds)} s, "
        f"{probed.seconds / plain.seconds:.2f} times as long\n",
        flush=True,
    )
    if not arguments.no_copies:
        print(all_flips(images, plain.rows, arguments.bundle))


if __name__ == "__main__":
    main()
