"""`mdmf detect`: images to rows."""

from __future__ import annotations

import os
import sys
import time
from contextlib import ExitStack, closing, nullcontext
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mdmf_deploy.bundle import DEFAULT_BUNDLE
from mdmf_deploy.cli.console import draws_bars, log, log_written, progress
from mdmf_deploy.cli.discoveries import FdrOption, check_fdr, held_back, told
from mdmf_deploy.cli.options import BundleOption, Yes, runtime_option
from mdmf_deploy.cli.report_output import REPORT, ReportPlan, report_file, report_path, reporting, rows_beside
from mdmf_deploy.cli.resumed import begin, check_options, going_on, job_of, job_that_keeps, keeping
from mdmf_deploy.cli.summary import Counts, advise_on_videos, exit_by, following, summarise, warn_of_caveat
from mdmf_deploy.errors import UsageError
from mdmf_deploy.files import url_in
from mdmf_deploy.images.limits import DEFAULT_LIMITS, FRAMES, MOST_FRAMES, ReadLimits

if TYPE_CHECKING:
    from mdmf_deploy.detection.detector import Detector
    from mdmf_deploy.detection.outputs.heatmaps import HeatmapPool
    from mdmf_deploy.detection.rows import Row


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
        str | None,
        typer.Option(
            "-o", "--output", metavar="FILE", help="Write rows: .jsonl, .json, .csv, .parquet, or .html to read."
        ),
    ] = None,
    report: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also write a page for readers: .html, with pictures and all.")
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
    probe: Annotated[
        bool, typer.Option("--probe", help="Look again at changed copies of images whose score is near the threshold.")
    ] = False,
    fdr: FdrOption = None,
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
        str | None, typer.Option(metavar="DIR", help="Keep signatures here, for `mdmf rescore`.")
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
    unreadable. Exit code 130 if interrupted (143 by SIGTERM): finished rows of -o rows.csv are in rows.partial.csv.

    With --resume, rows are appended to -o as they come, and the same command goes on where it was stopped. Exit codes 1
    to 3 judge all rows in there.

    Example: mdmf detect photos/ "more/*.png" -o verdicts.csv --heatmaps maps/
    """
    limits = ReadLimits(max_pixels=max_pixels, max_memory=max_memory << 20, max_seconds=max_seconds)
    check_fdr(fdr, resume, engine == DetectEngine.ray)
    if engine == DetectEngine.ray:
        from mdmf_deploy.cli.detect_on_ray import RayOptions, detect_on_ray

        local = {
            "--json": as_json and not list_inputs,
            "--report": report is not None,
            "--heatmaps": heatmaps is not None,
            "--probe": probe,
            "--verify": verify,
            "--fsync": fsync,
        }
        detect_on_ray(
            RayOptions(
                inputs=inputs,
                output=output,
                signatures=keep_signatures,
                signature_type=signature_type.value,
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
                local=[name for name, given in local.items() if given],
            )
        )
        return
    if address is not None or actors is not None:
        raise UsageError("--address and --actors are for a cluster; add --engine ray")
    path = None if output is None else Path(output)
    if path is not None and (url := url_in(path)):
        raise UsageError(f"-o {url} is a URL; give a path, or add --engine ray, which writes to other file systems")
    from mdmf_deploy.images.inputs import expand

    report = report_path(path, report, as_json, resume)
    if as_json and path is not None:
        raise UsageError("--json prints rows and -o writes them; give one of the two (-o rows.jsonl writes JSON)")
    check_options(path, resume, verify, fsync)
    if path is not None and not resume:
        from mdmf_deploy.detection.outputs import WRITERS, check_ending

        check_ending(path, (*WRITERS, REPORT))
    found = expand(inputs, yes, log)
    if list_inputs:
        from mdmf_deploy.cli.list_inputs import print_inputs

        print_inputs(found, as_json)
        return
    with ExitStack() as stack:
        anew = "without --resume, all inputs are done anew"
        write = None if resume else stack.enter_context(rows_beside(path, as_json, anew))
        page = stack.enter_context(report_file(report, path))
        held = None if fdr is None or write is None else stack.enter_context(held_back(write, fdr))
        write = write if held is None else held.write

        from mdmf_deploy.detection.detector import Detector

        detector = stack.enter_context(
            Detector(
                bundle,
                runtime,
                threads,
                batch_size=batch_size,
                crops=crops,
                limits=limits,
                frames=frames,
                probe=probe,
            )
        )
        warn_of_caveat(detector.caveat, bool(fail_on))
        counts, before = Counts(), Counts()
        keeper = None
        if keep_signatures is not None:
            kept = keeping(keep_signatures, signature_type.value, detector, each_frame, resume)
            keeper = stack.enter_context(kept)
        if write is None:
            assert path is not None
            opened = stack.enter_context(going_on(path, detector.settings(each_frame), fsync))
            job = begin(path, opened, found.paths, verify, keeper)
            before.add(opened.rows())
        else:
            job = job_of(found.paths, write) if keeper is None else job_that_keeps(found.paths, write, keeper)
        plan = ReportPlan(report, inputs, len(found.paths) * (frames if each_frame else 1), limits, threads)
        pages = stack.enter_context(reporting(page, plan, detector))
        look = (heatmap_format, heatmap_scale)
        maps = None if heatmaps is None else _heatmaps(heatmaps, detector, look, limits, threads, keep=resume)
        if heatmaps is not None and _lies_in(heatmaps, inputs):
            log(f"note: {heatmaps} lies in a folder of inputs, so the next run would judge its heat maps as well")
        shown = draws_bars() and not (path is None and sys.stdout.isatty())
        done = 0
        start = time.perf_counter()
        try:
            # If a row cannot be written, the stream must end before its engine is closed.
            extracted = None if keeper is None else keeper.extracted
            rows_of = detector.stream_by_source(job.paths, each_frame=each_frame, on_extraction=extracted)
            stream = stack.enter_context(closing(rows_of))
            with maps or nullcontext(), progress(stream, "detecting", job.count, shown) as watched:
                # The stream comes first: an input's key is known once its rows have come.
                for rows, (source, key) in zip(watched, job.taken, strict=False):
                    job.write(key, rows)
                    counts.add(rows)
                    for row in rows:
                        pages.add(row, source)
                    if maps is not None:
                        for row in rows:
                            maps.add(row, source)
                    done += 1
            if held is not None:
                counts = told(held, detector.bundle, pages.revise)
        finally:
            if job.count:
                summarise(counts.verdicts, (done, job.count), found.others, time.perf_counter() - start)
    if counts.unjudged:
        advise_on_videos(detector.bundle, counts.unjudged)
    if path is not None and job.count:
        log_written(f"{counts.verdicts.total()} rows", path, following(detector.bundle))
    if report not in (None, path):
        log_written("a report", report)
    if heatmaps is not None and any(heatmaps.iterdir()):
        log_written("heat maps", heatmaps)
    exit_by(counts.verdicts + before.verdicts, counts.undecided + before.undecided, fail_on or [])


def _heatmaps(
    folder: Path,
    detector: Detector,
    look: tuple[HeatmapFormat, HeatmapScale],
    limits: ReadLimits,
    threads: int | None,
    *,
    keep: bool,
) -> HeatmapPool:
    """Return the threads that draw. A heat map that fails is reported and costs no row.  keep: those in the folder."""
    from mdmf_deploy.detection.outputs.heatmaps import HeatmapFolder, HeatmapOptions, HeatmapPool

    format, scale = look
    options = HeatmapOptions.of(detector.bundle, format.value, comparable=scale == HeatmapScale.run, limits=limits)

    def report(row: Row, error: Exception) -> None:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        log(f"warning: no heat map of {row.uri}: {reason}")

    return HeatmapPool(HeatmapFolder(folder, options, keep=keep), report, threads)


def _lies_in(folder: Path, inputs: list[str]) -> bool:
    return any(os.path.isdir(name) and folder.resolve().is_relative_to(Path(name).resolve()) for name in inputs)  # noqa: PTH112
