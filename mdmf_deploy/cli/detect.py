"""`mdmf detect`."""

from __future__ import annotations

import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mdmf_deploy.errors import CalibrationError, GateFailed, ImageError, UsageError

if TYPE_CHECKING:
    from mdmf_deploy.detection.detector import Detector
    from mdmf_deploy.detection.rows import Row
    from mdmf_deploy.images.decode import ReadLimits

_UNREADABLE = 3


class FailOn(StrEnum):
    """Verdicts that a gate may refuse, as choices."""

    generated = "generated"
    uncertain = "uncertain"


def detect(
    inputs: Annotated[
        list[str],
        typer.Argument(metavar="PATHS...", help="Images, folders, globs, @LIST, or - for a list of paths on stdin."),
    ],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Write rows here: .jsonl, .csv or .parquet.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object a line in place of a table.")] = False,
    heatmaps: Annotated[
        Path | None, typer.Option(help="Write each image here with every patch's share of its score over it.")
    ] = None,
    fail_on: Annotated[
        list[FailOn] | None, typer.Option(help="Exit with 1 if an image gets this verdict; may be repeated.")
    ] = None,
    bundle: Annotated[str, typer.Option(help="Bundle to score with: a .mdmf folder, or a name.")] = "starter",
    runtime: Annotated[str, typer.Option(help="Runtime to score on.")] = "auto",
    crops: Annotated[int, typer.Option(min=1, help="Pool the patches of up to this many crops of an image.")] = 1,
    batch_size: Annotated[int, typer.Option(min=1, help="Crops given to the runtime at once.")] = 8,
    threads: Annotated[
        int | None,
        typer.Option(min=1, help="Threads for decoding, the runtime and the reduction, each; by default one a core."),
    ] = None,
    max_pixels: Annotated[int, typer.Option(min=1, help="Larger images are refused, unread.")] = 100_000_000,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="No progress bar and no summary.")] = False,
) -> None:
    """Say of each image whether it is real or generated: one row an input, in order, whatever happens.

    Rows go to stdout or to -o, all else to stderr. Exit code 3 if some inputs were unreadable, 1 if --fail-on says so
    (which comes first), 130 if interrupted; what was finished is then written.

    Example: mdmf detect photos/ "more/*.png" -o verdicts.csv --heatmaps maps/
    """
    from mdmf_deploy.images.inputs import expand

    if as_json and output is not None:
        raise UsageError("--json prints rows and -o writes them; give one of the two (-o rows.jsonl writes JSON)")
    if heatmaps is not None and crops > 1:
        raise UsageError("--heatmaps shows one crop of an image; leave out --crops, or the heat maps")
    found = expand(inputs)
    with ExitStack() as stack:
        write = _stdout(as_json) if output is None else stack.enter_context(_file(output))

        from mdmf_deploy.detection.detector import Detector
        from mdmf_deploy.images.decode import ReadLimits

        limits = ReadLimits(max_pixels=max_pixels)
        detector = stack.enter_context(
            Detector(bundle, runtime, threads, batch_size=batch_size, crops=crops, limits=limits)
        )
        _tell_caveat(detector, bool(fail_on))
        draw = None if heatmaps is None else _heatmaps(heatmaps, detector, limits)
        shown = not quiet and sys.stderr.isatty() and not (output is None and sys.stdout.isatty())
        counts: Counter[str] = Counter()
        start = time.perf_counter()
        try:
            # So that a row that cannot be written ends the stream before its engine.
            stream = stack.enter_context(closing(detector.stream(found.paths)))
            rows = zip(found.paths, stream, strict=True)
            for path, row in _watched(rows, len(found.paths), shown):
                write(row)
                counts[row.verdict] += 1
                if draw is not None:
                    draw(row, path)
        finally:
            if not quiet:
                _summarise(counts, len(found.paths), found.skipped, time.perf_counter() - start)
    _leave(counts, fail_on or [])


def _stdout(as_json: bool) -> Callable[[Row], None]:
    """Prints each row as it comes."""
    if as_json:
        from mdmf_deploy.detection.outputs.jsonl import line

        def print_json(row: Row) -> None:
            sys.stdout.buffer.write(line(row))
            sys.stdout.flush()

        return print_json
    from mdmf_deploy.detection.outputs import table

    colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    header = [table.HEADER]

    def print_text(row: Row) -> None:
        while header:
            print(header.pop())
        print(table.text(row, colour), flush=True)

    return print_text


@contextmanager
def _file(path: Path) -> Iterator[Callable[[Row], None]]:
    from mdmf_deploy.detection.outputs import open_output

    with open_output(path) as writer:
        yield writer.write


def _heatmaps(folder: Path, detector: Detector, limits: ReadLimits) -> Callable[[Row, Path], None]:
    """Draws each row's heat map; one that cannot be drawn or written is told, and costs no more than itself."""
    from mdmf_deploy.detection.outputs.heatmaps import HeatmapFolder

    manifest = detector.bundle.manifest
    maps = HeatmapFolder(folder, manifest.model.pool, manifest.preprocessing.crop, limits)

    def draw(row: Row, path: Path) -> None:
        try:
            maps.write(row, path)
        except (ImageError, OSError) as error:
            print(f"mdmf: no heat map of {row.uri}: {error}", file=sys.stderr)

    return draw


def _tell_caveat(detector: Detector, gated: bool) -> None:
    """Once, before the first row.  A gate that no image could ever fail is an error, not a pass."""
    if detector.caveat is None:
        return
    if gated:
        raise CalibrationError(f"--fail-on cannot be judged: {detector.caveat}")
    print(f"mdmf: warning: {detector.caveat}", file=sys.stderr)


def _watched(rows: Iterable[tuple[Path, Row]], total: int, shown: bool) -> Iterable[tuple[Path, Row]]:
    """The rows, with a bar on stderr that follows them."""
    if not shown:
        return rows
    from rich.console import Console
    from rich.progress import track

    return track(rows, "detecting", total, console=Console(stderr=True), transient=True)


def _summarise(counts: Counter[str], asked: int, skipped: int, seconds: float) -> None:
    done = counts.total()
    images = f"{done} image{'s' * (done != 1)}" if done == asked else f"{done} of {asked} images"
    said = ", ".join(f"{count} {'unreadable' if verdict == 'error' else verdict}" for verdict, count in counts.items())
    rate = f"{seconds:.1f} s, {done / max(seconds, 1e-9):.1f} images/s"
    also = f"; {skipped} other files in folders skipped" if skipped else ""
    print(f"mdmf: {images}: {said or 'none finished'}; {rate}{also}", file=sys.stderr)


def _leave(counts: Counter[str], fail_on: list[FailOn]) -> None:
    refused = [f"{counts[verdict]} {verdict}" for verdict in dict.fromkeys(fail_on) if counts[verdict]]
    if refused:
        raise GateFailed(f"--fail-on: {', '.join(refused)} of {counts.total()} images")
    if counts["error"]:
        raise typer.Exit(_UNREADABLE)
