"""`mdmf rescore`: stored signatures to rows, without the model."""

from __future__ import annotations

import sys
import time
from contextlib import ExitStack, closing
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from mdmf_deploy.bundle import DEFAULT_BUNDLE
from mdmf_deploy.cli.console import draws_bars, log_written, progress
from mdmf_deploy.cli.detect import FailOn
from mdmf_deploy.cli.discoveries import FdrOption, held_back, told
from mdmf_deploy.cli.options import BundleOption
from mdmf_deploy.cli.row_output import row_output
from mdmf_deploy.cli.summary import Counts, advise_on_videos, exit_by, following, summarise, warn_of_caveat
from mdmf_deploy.errors import UsageError


class RescoreReduction(StrEnum):
    """Reductions of --reduction, as choices."""

    cpu = "cpu"
    cuda = "cuda"


def rescore(
    signatures: Annotated[str, typer.Argument(metavar="DIR", help="A folder of `mdmf detect --keep-signatures`.")],
    bundle: BundleOption = DEFAULT_BUNDLE,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="FILE", help="Write rows here: .jsonl, .json, .csv or .parquet."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object per line instead of a table.")] = False,
    fail_on: Annotated[
        list[FailOn] | None, typer.Option(help="Exit with 1 if an image gets this verdict; may be repeated.")
    ] = None,
    fdr: FdrOption = None,
    each_frame: Annotated[
        bool, typer.Option("--each-frame", help="Give a row for each frame of a video. Frames get no verdict.")
    ] = False,
    reduction: Annotated[
        RescoreReduction, typer.Option(help="What compares signatures with the bank.")
    ] = RescoreReduction.cpu,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads of the reduction; by default one per core.")
    ] = None,
) -> None:
    """Judge stored signatures with another bundle.

    The bundle must have the model and the crop plan of the one that extracted the signatures. Then rows are those of
    `mdmf detect` with it, without reading an image or running the model: to the last bit for signatures in fp32, apart
    from ms_mmd. Runtime and precision are those that extracted. Rows come in the order in which they were stored, and
    exit codes are those of `mdmf detect`.

    Example: mdmf rescore signatures/ --bundle mine.mdmf -o verdicts.csv
    """
    if as_json and output is not None:
        raise UsageError("--json prints rows and -o writes them; give one of the two (-o rows.jsonl writes JSON)")
    from mdmf_deploy.bundle.bundle import Bundle
    from mdmf_deploy.detection.outputs.stored import StoredSignatures
    from mdmf_deploy.tasks.rescore import Rescorer

    with ExitStack() as stack:
        write = stack.enter_context(row_output(output, as_json, "all rows are made anew"))
        held = None if fdr is None else stack.enter_context(held_back(write, fdr))
        stored = StoredSignatures.open(signatures)
        opened = Bundle.open(bundle)
        rescorer = stack.enter_context(
            Rescorer(stored, opened, reduction=reduction.value, threads=threads, each_frame=each_frame)
        )
        warn_of_caveat(rescorer.caveat, bool(fail_on))
        shown = draws_bars() and not (output is None and sys.stdout.isatty())
        counts, done = Counts(), 0
        start = time.perf_counter()
        try:
            stream = stack.enter_context(closing(rescorer.rows()))
            with progress(stream, "judging", len(stored), shown) as watched:
                for rows in watched:
                    for row in rows:
                        (write if held is None else held.write)(row)
                    counts.add(rows)
                    done += 1
            if held is not None:
                counts = told(held, opened)
        finally:
            summarise(counts.verdicts, (done, len(stored)), {}, time.perf_counter() - start)
    if counts.unjudged:
        advise_on_videos(opened, counts.unjudged)
    if output is not None:
        log_written(f"{counts.verdicts.total()} rows", output, following(opened))
    exit_by(counts.verdicts, counts.undecided, fail_on or [])
