"""Measure a bundle, and print the tables of its model card. The aims that are missed come first.

    python benchmarks/model_card.py BUNDLE DATA [--recipe NAME] [--held-out SOURCE ...] [--unseen FILE ...]
        [--pairs DIR] [--featureless 200] [--limit N] [-o FILE.md]

DATA: a folder with real/SOURCE/, generated/SOURCE/ and, for camera originals, fullsize/. Sources named art_* are art,
screen_* are screenshots, and all other real ones photographs.

Only images that were not trained on are judged. They are those of held-out sources, which the recipe or --held-out
names, and the files that --unseen lists. fullsize/ counts as held out. Images of the bank and copies are left out.
Every image is scored once, with the bundle's own crop plan. Other banks are tried on the same signatures.

--pairs: a folder with original/ and rebuilt_NAME/, whose files have the same names.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from textwrap import fill

from card_images import CHANGES, GENERATED, Folder, Scored, Scorer, changed, find_folders, spread, without
from card_tables import (
    WIDTH,
    Section,
    aims,
    bank,
    by_folder,
    conditions,
    false_positives,
    generators,
    pairs,
    photorealistic,
    swapped,
)

from mdmf_deploy.bundle.recipe import load_recipe
from mdmf_deploy.detection.detector import Detector
from mdmf_deploy.errors import MdmfError, UsageError
from mdmf_deploy.images.inputs import in_folder, uri

# The tests draw the same images.
sys.path.append(str(Path(__file__).resolve().parent.parent / "tests"))
from helpers.featureless import featureless

PHOTOREALISTIC = ("xlabs_flux_dev", "sd35_large", "mflux_refs", "sd_cpp", "comfy_examples", "sdnext_models_old")
SMALL_BANK, GENERATED_BANK = 50, 200
CHANGED = 40  # images of each source that are judged under each condition


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", metavar="BUNDLE")
    parser.add_argument("data", metavar="DATA", type=Path)
    parser.add_argument("--recipe", help="its training.split.held_out names the sources")
    parser.add_argument("--held-out", nargs="+", default=[], metavar="SOURCE")
    parser.add_argument("--unseen", nargs="+", default=[], type=Path, metavar="FILE", help="lists of files")
    parser.add_argument("--pairs", type=Path, metavar="DIR")
    parser.add_argument("--photorealistic", nargs="+", default=PHOTOREALISTIC, metavar="SOURCE")
    parser.add_argument("--featureless", type=int, default=200, metavar="N", help="images without texture to draw")
    parser.add_argument("--limit", type=int, metavar="N", help="at most N images of a source")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE.md")
    options = parser.parse_args(arguments)
    try:
        with Detector(options.bundle) as detector:
            text = card(detector, options)
    except MdmfError as error:
        sys.exit(f"model_card.py: {error}")
    if options.output:
        options.output.write_text(text, encoding="utf-8")
    else:
        print(text)


def card(detector: Detector, options: argparse.Namespace) -> str:
    """Return the card."""
    scorer = Scorer(detector)
    held_out = [*options.held_out, *(load_recipe(options.recipe).training.split.held_out if options.recipe else ())]
    folders, left_out = without(find_folders(options.data, held_out, options.unseen), scorer.bundle.bank.hashes)
    folders = [folder.at_most(options.limit) for folder in folders]
    judged = [folder for folder in folders if folder.kept != "trained on"]
    images, unreadable = [], 0
    for folder in judged:
        print(f"scoring {folder.name} ({len(folder.paths)}, {folder.kept})", file=sys.stderr)
        scored = [image for image in scorer(folder, folder.paths, keep=True) if image]
        unreadable += len(folder.paths) - len(scored)
        images += scored
    real, generated = _headline(images, False), _headline(images, True)
    drawn = scorer(Folder("real/featureless", "held out", ()), (file for _, file in featureless(options.featureless)))
    sections = [
        generators(images, real),
        false_positives(images, [image for image in drawn if image]),
        photorealistic(images, options.photorealistic),
        _banks(scorer, detector, folders, real, generated),
        _conditions(scorer, judged, real, generated),
    ]
    if options.pairs:
        sections.append(_pairs(scorer, options.pairs, options.limit))
    engine, crops = detector.engine, detector.bundle.manifest.preprocessing.crops
    facts = (
        f"Bundle {detector.bundle.bundle_id[:12]}, calibration {(detector.bundle.calibration_id or 'none')[:12]}, "
        f"on {engine.name} {engine.precision}, at most {crops} "
        f"{'crop' if crops == 1 else 'crops'} of an image. Images judged: {len(images)}. Unreadable: {unreadable}. "
        f"Left out, because they are copies or in the bank: {left_out}."
    )
    trained_on = sorted(folder.name for folder in folders if folder.kept == "trained on")
    if trained_on:
        facts += f" Not judged, because they were trained on: images of {', '.join(trained_on)}."
    return "\n".join([f"{fill(facts, WIDTH)}\n", f"### Aims\n{aims(sections)}", *map(str, sections)])


def _headline(images: Sequence[Scored], generated: bool) -> list[Scored]:
    """Return the real or generated images of held-out sources, or, if there are none, the unseen files of others.

    Camera originals are not among them, because generated images of their size are missing.
    """
    own = [image for image in images if (image.kind == GENERATED) == generated and image.folder != "fullsize"]
    found = [image for image in own if image.kept == "held out"] or own
    if not found:
        raise UsageError(
            f"no {'generated' if generated else 'real'} image was kept out of training; "
            "name sources with --recipe or --held-out, or files with --unseen"
        )
    return found


def _banks(
    scorer: Scorer, detector: Detector, folders: Sequence[Folder], real: Sequence[Scored], generated: Sequence[Scored]
) -> Section:
    """Make other banks of images that were trained on, so that none of them is judged, and try them."""
    shipped, others = scorer.bundle.bank, {}
    for what, count, wanted in (("real", SMALL_BANK, False), ("generated", GENERATED_BANK, True)):
        sources = [f for f in folders if f.kept == "trained on" and (f.kind == GENERATED) == wanted]
        paths = spread([path for folder in sources for path in folder.paths], count)
        if found := [one for one in scorer(Folder(f"{what}/bank", "trained on", ()), paths, keep=True) if one]:
            others[f"{len(found)} {what} images"] = swapped(found, shipped)
    return bank(real, generated, shipped, others, detector.reduction)


def _conditions(
    scorer: Scorer, folders: Sequence[Folder], real: Sequence[Scored], generated: Sequence[Scored]
) -> Section:
    """Judge some images of each source again, after each change."""
    judged = {"as it is": [one for own in by_folder([*real, *generated]).values() for one in spread(own, CHANGED)]}
    measured = {(image.folder, image.kept) for image in (*real, *generated)}
    chosen = [folder.at_most(CHANGED) for folder in folders if (folder.name, folder.kept) in measured]
    for name, change in CHANGES.items():
        print(f"condition: {name}", file=sys.stderr)
        scored = [scorer(folder, map(partial(changed, change=change), folder.paths)) for folder in chosen]
        judged[name] = [image for own in scored for image in own if image]
    return conditions(judged)


def _pairs(scorer: Scorer, folder: Path, limit: int | None) -> Section:
    originals = {path.name: path for path in in_folder(folder / "original").paths}
    judged = {}
    for rebuilt in sorted(folder.glob("rebuilt_*")):
        names = [path.name for path in in_folder(rebuilt).paths if path.name in originals][:limit]
        if not names:
            raise UsageError(f"{uri(rebuilt)}: no file has the name of one in {uri(folder / 'original')}")
        first = scorer(Folder("real/original", "held out", ()), [originals[name] for name in names])
        second = scorer(Folder(f"generated/{rebuilt.name}", "held out", ()), [rebuilt / name for name in names])
        judged[rebuilt.name.removeprefix("rebuilt_")] = [(a, b) for a, b in zip(first, second, strict=True) if a and b]
    return pairs(judged)


if __name__ == "__main__":
    main()
