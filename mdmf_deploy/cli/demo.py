"""`mdmf demo`: verdicts on the samples in the package."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mdmf_deploy.bundle import DEFAULT_BUNDLE
from mdmf_deploy.cli.console import log, log_written, print_json, print_row, print_text, progress
from mdmf_deploy.cli.options import AsJson, BundleOption, runtime_option
from mdmf_deploy.errors import ImageError, UsageError

if TYPE_CHECKING:
    from mdmf_deploy.detection.detector import Detector
    from mdmf_deploy.detection.rows import Row

_UNREADABLE = 3
# Folder of samples -> the verdict that is right for them. A copy is named <photograph>-<autoencoder>.
_RIGHT = {"photographs": "real", "generated": "generated"}


def demo(
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="DIR", help="New or empty folder for the heat map.")
    ] = Path("mdmf-demo"),
    bundle: BundleOption = DEFAULT_BUNDLE,
    runtime: Annotated[str, runtime_option("Runtime to score on.")] = "auto",
    as_json: AsJson = False,
) -> None:
    """Judge the twelve samples in the package.

    Draws one heat map, and counts the right verdicts.

    Six samples are photographs. The others are the same six passed through small image autoencoders, which are hard to
    find: they keep the photograph's content. The heat map is of the sample with the highest score. Nothing is ever
    overwritten, and a folder that cannot be written to costs only the heat map. Twelve images measure nothing. To
    measure a bundle, use mdmf evaluate.

    Example: mdmf demo --bundle starter
    """
    from mdmf_deploy.detection.detector import Detector
    from mdmf_deploy.files import room

    folder = room("examples")
    paths = samples(folder)
    with Detector(bundle, runtime) as detector:
        if detector.caveat:
            log(f"warning: {detector.caveat}")
        with progress(detector.stream(paths), "detecting", len(paths)) as stream:
            rows = [_named(row, path.relative_to(folder)) for row, path in zip(stream, paths, strict=True)]
        heatmap = _heatmap(output, detector, rows, paths)
        ids = {"bundle_id": detector.bundle.bundle_id, "calibration_id": detector.bundle.calibration_id}
        facts = {"samples": str(folder), **ids, "runtime": detector.runtime}
    rows = [_named(row, path.relative_to(folder)) for row, path in zip(rows, paths, strict=True)]
    log(f"the samples and their licences are in {folder}")
    if as_json:
        from mdmf_deploy.detection.rows import COLUMNS

        shown = [{name: getattr(row, name) for name in COLUMNS} for row in rows]
        print_json(facts | {"heatmap": heatmap and str(heatmap), "counts": counts(rows), "rows": shown})
    else:
        _print_table(rows)
        print_text(f"\n{closing(rows)}")
    if heatmap is not None:
        log_written("the heat map of the highest score", heatmap, "mdmf detect FOLDER_OF_YOUR_OWN")
    if any(row.verdict == "error" for row in rows):
        raise typer.Exit(_UNREADABLE)


def samples(folder: Path) -> list[Path]:
    """Return the sample images, photographs first. Raises UsageError if a folder of them is missing or empty."""
    from mdmf_deploy.images.inputs import in_folder

    return [path for kind in _RIGHT for path in in_folder(folder / kind).paths]


def counts(rows: Sequence[Row]) -> dict[str, dict[str, int]]:
    """Return how many samples of each folder got each verdict."""
    found: dict[str, Counter[str]] = {kind: Counter() for kind in _RIGHT}
    for row in rows:
        found[row.uri.partition("/")[0]][row.verdict] += 1
    return {kind: dict(verdicts) for kind, verdicts in found.items()}


def closing(rows: Sequence[Row]) -> str:
    """Return lines that say what the samples are and how many verdicts are right. They fit 80 columns."""
    found = counts(rows)
    right = sum(verdicts.get(_RIGHT[kind], 0) for kind, verdicts in found.items())
    decided = sum(verdicts.get(verdict, 0) for verdicts in found.values() for verdict in _RIGHT.values())
    above, pairs = _copies_above(rows)
    return f"""\
The first six are photographs. The others are the same six passed through small
image autoencoders. Such copies keep the content, so they are harder to find
than images from generators. {above} of {pairs} score higher than their photograph.

Photographs: {_tally(found["photographs"])}
Copies: {_tally(found["generated"])}
Right is "real" for a photograph and "generated" for a copy.
Right: {right} of {len(rows)}. Wrong: {decided - right}. Neither: {len(rows) - decided}."""


def _tally(verdicts: Mapping[str, int]) -> str:
    named = {"real": 0, "generated": 0, **verdicts}
    return ", ".join(f"{count} {verdict}" for verdict, count in named.items())


def _copies_above(rows: Sequence[Row]) -> tuple[int, int]:
    """Return how many copies score higher than their photograph, and how many pairs have two scores."""
    scores = {Path(row.uri).parts: row.score for row in rows if row.score is not None}
    above = pairs = 0
    for (kind, name), score in scores.items():
        original = scores.get(("photographs", f"{name.partition('-')[0]}.jpg"))
        if kind == "generated" and original is not None:
            pairs += 1
            above += score > original
    return above, pairs


def _named(row: Row, name: Path) -> Row:
    """Return the row under a short name, because the package may lie deep below the root."""
    import msgspec

    return msgspec.structs.replace(row, uri=name.as_posix())


def _print_table(rows: Sequence[Row]) -> None:
    from mdmf_deploy.detection.rows import TABLE_HEADER

    print_text(TABLE_HEADER)
    for row in rows:
        print_row(row)


def _heatmap(folder: Path, detector: Detector, rows: Sequence[Row], paths: Sequence[Path]) -> Path | None:
    """Draw the highest score's heat map and return its path. Without a place to write to, say so and return None."""
    from mdmf_deploy.detection.outputs.heatmaps import HeatmapFolder, HeatmapOptions

    scored = [(row.score, row, path) for row, path in zip(rows, paths, strict=True) if row.score is not None]
    if not scored:
        return None
    _, row, path = max(scored, key=lambda one: one[0])
    try:
        if folder.is_dir() and any(folder.iterdir()):
            log(f"no heat map: {folder} holds files, which are never overwritten; give -o a new folder")
            return None
        return HeatmapFolder(folder, HeatmapOptions.of(detector.bundle)).write(row, path)
    except (UsageError, ImageError, OSError) as error:
        cause = error if isinstance(error, OSError) else error.__cause__
        problem = f"{folder}: {cause.strerror}" if isinstance(cause, OSError) else str(error)
        log(f"warning: no heat map: {problem}; give -o a folder that can be written to")
        return None
