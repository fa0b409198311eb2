"""`mdmf detect`: images to rows."""

from __future__ import annotations

import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, nullcontext
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mdmf_deploy.bundle import DEFAULT_BUNDLE
from mdmf_deploy.cli.console import draws_bars, log, log_written, print_row, print_text, progress
from mdmf_deploy.cli.options import BundleOption, Yes, runtime_option
from mdmf_deploy.errors import CalibrationError, GateFailed, UsageError
from mdmf_deploy.images.limits import DEFAULT_LIMITS, FRAMES, MOST_FRAMES, ReadLimits

if TYPE_CHECKING:
    from mdmf_deploy.bundle.bundle import Bundle
    from mdmf_deploy.detection.detector import Detector
    from mdmf_deploy.detection.outputs.heatmaps import HeatmapPool
    from mdmf_deploy.detection.rows import Row

_UNREADABLE = 3
_NO_VIDEOS = "no_video_thresholds"
_TOO_FEW = "no_calibration_for_this_size"


class HeatmapFormat(StrEnum):
    """Formats of --heatmap-format, as choices."""

    jpeg = "jpeg"
    png = "png"


class HeatmapScale(StrEnum):
    """Colour scales of --heatmap-scale, as choices."""

    run = "run"
    image = "image"


class SignatureType(StrEnum):
    """Types of --signature-type, as choices."""

    fp32 = "fp32"
    fp16 = "fp16"


class DetectEngine(StrEnum):
    """Engines of --engine, as choices."""

    local = "local"
    ray = "ray"


class FailOn(StrEnum):
    """Verdicts that --fail-on can refuse, as choices."""

    generated = "generated"
    uncertain = "uncertain"


def detect(
    inputs: Annotated[
        list[str],
        typer.Argument(metavar="PATHS", help="Images, folders, globs, @LIST, or - for a list of paths on stdin."),
    ],
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="FILE", help="Write rows here: .jsonl, .json, .csv or .parquet."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object per line instead of a table.")] = False,
    heatmaps: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Write each image here, overlaid with every patch's share of its score."),
    ] = None,
    heatmap_format: Annotated[
        HeatmapFormat, typer.Option(help="Format of heat maps; png takes several times as long.")
    ] = HeatmapFormat.jpeg,
    heatmap_scale: Annotated[
        HeatmapScale,
        typer.Option(help="run: the same colours mean the same on every map. image: each map uses all colours."),
    ] = HeatmapScale.run,
    fail_on: Annotated[
        list[FailOn] | None, typer.Option(help="Exit with 1 if an image gets this verdict; may be repeated.")
    ] = None,
    bundle: BundleOption = DEFAULT_BUNDLE,
    runtime: Annotated[str, runtime_option("Runtime to score on.")] = "auto",
    crops: Annotated[
        int | None,
        typer.Option(min=1, help="Most crops per image, in place of the bundle's plan. Withholds verdicts."),
    ] = None,
    frames: Annotated[
        int, typer.Option(min=1, max=MOST_FRAMES, help="Frames of a video, evenly over its length.")
    ] = FRAMES,
    each_frame: Annotated[
        bool, typer.Option("--each-frame", help="Give a row for each frame of a video. Frames get no verdict.")
    ] = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Most crops given to the runtime at once.")] = 8,
    threads: Annotated[
        int | None,
        typer.Option(min=1, help="Threads for decoding, the runtime and the reduction, each; by default one per core."),
    ] = None,
    max_pixels: Annotated[
        int, typer.Option(min=1, help="Refuse larger images without decoding them.")
    ] = DEFAULT_LIMITS.max_pixels,
    max_memory: Annotated[
        int,
        typer.Option(min=1, metavar="MIB", help="Refuse images that need more MiB to decode. All threads share it."),
    ] = DEFAULT_LIMITS.max_memory >> 20,
    max_seconds: Annotated[
        float,
        typer.Option(min=0.1, help="Stop decoding after this, in formats that are decoded in a process of their own."),
    ] = DEFAULT_LIMITS.max_seconds,
    resume: Annotated[
        bool, typer.Option("--resume", help="Append to -o as rows come, and do only what is missing there.")
    ] = False,
    verify: Annotated[
        bool, typer.Option("--verify", help="With --resume: compare hashes of files, not only size and time.")
    ] = False,
    fsync: Annotated[
        bool, typer.Option("--fsync", help="With --resume: flush every row to the disk, not only every few seconds.")
    ] = False,
    keep_signatures: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Keep signatures here, for `mdmf rescore`.")
    ] = None,
    signature_type: Annotated[
        SignatureType, typer.Option(help="How signatures are kept; fp16 takes half the space.")
    ] = SignatureType.fp32,
    engine: Annotated[
        DetectEngine, typer.Option(help="local: this process. ray: Ray Data, here or on a cluster.")
    ] = DetectEngine.local,
    address: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="With --engine ray: join this running cluster.")
    ] = None,
    actors: Annotated[
        int | None, typer.Option(min=1, help="With --engine ray: processes that hold the detector.")
    ] = None,
    list_inputs: Annotated[
        bool,
        typer.Option("--list-inputs", help="Print what would be read and count what is skipped. Scores nothing."),
    ] = False,
    yes: Yes = False,
) -> None:
    """Judge whether images and videos are real or generated.

    Every input gets one row, in input order, whatever happens. A video's score is the mean of its frames' scores, and
    its heat map is that of its highest frame.

    Rows go to stdout or to -o, everything else to stderr. Exit code 1 if --fail-on refuses a verdict, otherwise 2 if
    the calibration has too few images of some input's size for --fail-on to be judged, otherwise 3 if some inputs were
    unreadable. Exit code 130 if interrupted (143 by SIGTERM): finished rows are still written.

    Example: mdmf detect photos/ "more/*.png" -o verdicts.csv --heatmaps maps/
    """
    limits = ReadLimits(max_pixels=max_pixels, max_memory=max_memory << 20, max_seconds=max_seconds)
    if engine == DetectEngine.ray:
        from mdmf_deploy.cli.detect_on_ray import RayOptions, detect_on_ray

        others = {
            "--json": as_json and not list_inputs,
            "--heatmaps": heatmaps is not None,
            "--verify": verify,
            "--fsync": fsync,
            "--keep-signatures": keep_signatures is not None,
        }
        detect_on_ray(
            RayOptions(
                inputs=inputs,
                output=output,
                fail_on=fail_on or [],
                bundle=bundle,
                runtime=runtime,
                crops=crops,
                frames=frames,
                each_frame=each_frame,
                batch_size=batch_size,
                threads=threads,
                limits=limits,
                address=address,
                actors=actors,
                whole_disk=yes,
                list_inputs=list_inputs,
                as_json=as_json,
                refused=[name for name, given in others.items() if given],
            )
        )
        return
    if address is not None or actors is not None:
        raise UsageError("--address and --actors are for a cluster; add --engine ray")
    from mdmf_deploy.images.inputs import expand

    if as_json and output is not None:
        raise UsageError("--json prints rows and -o writes them; give one of the two (-o rows.jsonl writes JSON)")
    if output is not None:
        from mdmf_deploy.detection.outputs import WRITERS, check_ending

        check_ending(output, WRITERS)
    found = expand(inputs, yes, log)
    if list_inputs:
        from mdmf_deploy.cli.list_inputs import print_inputs

        print_inputs(found, as_json)
        return
    with ExitStack() as stack:
        write = _stdout(as_json) if output is None else stack.enter_context(_file(output))

        from mdmf_deploy.detection.detector import Detector

        detector = stack.enter_context(
            Detector(bundle, runtime, threads, batch_size=batch_size, crops=crops, limits=limits, frames=frames)
        )
        warn_of_caveat(detector.caveat, bool(fail_on))
        look = (heatmap_format, heatmap_scale)
        maps = None if heatmaps is None else _heatmaps(heatmaps, detector, look, limits, threads)
        if heatmaps is not None and _lies_in(heatmaps, inputs):
            log(f"note: {heatmaps} lies in a folder of inputs, so the next run would judge its heat maps as well")
        shown = draws_bars() and not (output is None and sys.stdout.isatty())
        counts: Counter[str] = Counter()
        undecided: Counter[str] = Counter()
        unjudged = done = 0
        start = time.perf_counter()
        try:
            # If a row cannot be written, the stream must end before its engine is closed.
            stream = stack.enter_context(closing(detector.stream_by_source(found.paths, each_frame=each_frame)))
            pairs = zip(found.paths, stream, strict=True)
            with maps or nullcontext(), progress(pairs, "detecting", len(found.paths), shown) as watched:
                for path, rows in watched:
                    for row in rows:
                        write(row)
                        counts[row.verdict] += 1
                        undecided[_group(row)] += row.verdict == "uncalibrated" or row.reason == _TOO_FEW
                        unjudged += row.reason == _NO_VIDEOS
                        if maps is not None:
                            maps.add(row, path)
                    done += 1
        finally:
            summarise(counts, (done, len(found.paths)), found.others, time.perf_counter() - start)
    if unjudged:
        advise_on_videos(detector.bundle, unjudged)
    if output is not None:
        log_written(f"{counts.total()} rows", output, following(detector.bundle))
    if heatmaps is not None and any(heatmaps.iterdir()):
        log_written("heat maps", heatmaps)
    exit_by(counts, +undecided, fail_on or [])


def _stdout(as_json: bool) -> Callable[[Row], None]:
    """Return a function that prints each row as it comes."""
    from mdmf_deploy.detection.rows import TABLE_HEADER, json_line

    if as_json:

        def print_json(row: Row) -> None:
            sys.stdout.buffer.write(json_line(row))
            sys.stdout.flush()

        return print_json

    header = [TABLE_HEADER]

    def print_line(row: Row) -> None:
        while header:
            print_text(header.pop())
        print_row(row)

    return print_line


@contextmanager
def _file(path: Path) -> Iterator[Callable[[Row], None]]:
    from mdmf_deploy.detection.outputs import open_output

    with open_output(path) as writer:
        yield writer.write


def _heatmaps(
    folder: Path,
    detector: Detector,
    look: tuple[HeatmapFormat, HeatmapScale],
    limits: ReadLimits,
    threads: int | None,
) -> HeatmapPool:
    """Return the threads that draw. A heat map that fails is reported and costs no row."""
    from mdmf_deploy.detection.outputs.heatmaps import HeatmapFolder, HeatmapOptions, HeatmapPool

    format, scale = look
    options = HeatmapOptions.of(detector.bundle, format.value, comparable=scale == HeatmapScale.run, limits=limits)

    def report(row: Row, error: Exception) -> None:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        log(f"warning: no heat map of {row.uri}: {reason}")

    return HeatmapPool(HeatmapFolder(folder, options), report, threads)


def _lies_in(folder: Path, inputs: list[str]) -> bool:
    return any(os.path.isdir(name) and folder.resolve().is_relative_to(Path(name).resolve()) for name in inputs)  # noqa: PTH112


def warn_of_caveat(caveat: str | None, gated: bool) -> None:
    """Warn once, before the first row, if verdicts are withheld.

    Raises CalibrationError if a gate depends on them: a gate that no image can fail must not pass.
    """
    if caveat is None:
        return
    if gated:
        raise CalibrationError(f"--fail-on cannot be judged: {caveat}")
    log(f"warning: {caveat}")


def _group(row: Row) -> str:
    """Return the size group of a row, or "frames of videos" or "videos" without one."""
    return row.size_group or ("videos" if row.frame_time is None else "frames of videos")


def summarise(counts: Counter[str], of: tuple[int, int], others: Mapping[str, int], seconds: float) -> None:
    """Print how many inputs were done.  of: the inputs done, and all of them."""
    from mdmf_deploy.cli.list_inputs import counted

    done, total = of
    images = f"{done} image{'s' * (done != 1)}" if done == total else f"{done} of {total} images"
    verdicts = ", ".join(
        f"{count} {'unreadable' if verdict == 'error' else verdict}" for verdict, count in counts.items()
    )
    rows = f", {counts.total()} rows" if counts.total() != done else ""
    log(f"{images}{rows}: {verdicts or 'none finished'}")
    skipped = sum(others.values())
    also = f"; {skipped} other files in folders skipped ({counted(others)})" if skipped else ""
    log(f"{seconds:.1f} s, {done / max(seconds, 1e-9):.1f} images/s{also}")


def advise_on_videos(bundle: Bundle, count: int) -> None:
    """Say which command gives a bundle thresholds for this many videos that had none."""
    from mdmf_deploy.bundle.bundle import suggestion

    videos = "1 video has" if count == 1 else f"{count} videos have"
    command = suggestion("calibrate", bundle.path, "REAL_VIDEOS")
    log(f"{videos} no verdict, because this bundle has no thresholds for videos; run {command}")


def following(bundle: Bundle) -> str:
    """Return the command that gives the bundle thresholds of the user's own, or "" if it has them."""
    from mdmf_deploy.bundle.bundle import shipped_name, suggestion

    if shipped_name(bundle.path) is None and bundle.calibration is not None:
        return ""
    return suggestion("calibrate", bundle.path, "REAL_PHOTOS")


def exit_by(counts: Counter[str], undecided: Counter[str], fail_on: Sequence[str]) -> None:
    """Raise what the exit code is for: --fail-on's refusal, verdicts it cannot judge, or unreadable inputs."""
    refused = [f"{counts[verdict]} {verdict}" for verdict in dict.fromkeys(fail_on) if counts[verdict]]
    if refused:
        raise GateFailed(f"--fail-on: {', '.join(refused)} of {counts.total()} images")
    if fail_on and undecided:
        raise CalibrationError(
            f"--fail-on cannot be judged for {undecided.total()} of {counts.total()} images: too few calibration "
            f"images like them ({', '.join(undecided)}); calibrate with more, or add --fail-on uncertain"
        )
    if counts["error"]:
        raise typer.Exit(_UNREADABLE)
