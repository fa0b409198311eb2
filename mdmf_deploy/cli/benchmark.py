"""`mdmf benchmark`: where the time goes."""

from __future__ import annotations

import logging
import os
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer

from mdmf_deploy.bundle import DEFAULT_BUNDLE
from mdmf_deploy.cli.console import log, log_written, print_json, print_lines
from mdmf_deploy.cli.options import BUNDLE_VARIABLE, Yes, complete_bundle, runtime_option
from mdmf_deploy.tasks.benchmark import BATCH_SIZE


def benchmark(
    bundles: Annotated[
        list[str] | None,
        typer.Argument(
            help="Bundles to time; by default that of MDMF_BUNDLE, or dinov2s.", autocompletion=complete_bundle
        ),
    ] = None,
    images: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATHS",
            help="Images to time: a folder, file, glob or @LIST; may be repeated. Of more than 256, 256 are taken. By "
            "default generated JPEGs of 0.5 and 12 megapixels, the smaller ones for the scenarios.",
        ),
    ] = None,
    runtime: Annotated[
        str,
        runtime_option(
            "Runtimes to compare, separated by commas; one on a GPU may name a build profile: tensorrt:latency,cuda."
        ),
    ] = "auto",
    precision: Annotated[
        str | None,
        typer.Option(
            help="Precisions to compare, such as fp32,int8. Precisions below a bundle's own are made here, but only "
            "from a bundle exported with --precision fp32, which the starter is not."
        ),
    ] = None,
    scenario: Annotated[str, typer.Option(help="Scenarios to run.")] = "single-stream,offline,server",
    batch_size: Annotated[
        int, typer.Option(help="Most crops given to the runtime at once, as for mdmf detect.")
    ] = BATCH_SIZE,
    seconds: Annotated[float, typer.Option(help="Seconds for each scenario and configuration.")] = 6.0,
    rate: Annotated[
        float | None,
        typer.Option(help="Server: requests per second; by default the most that keep --p99-bound."),
    ] = None,
    p99_bound: Annotated[
        float, typer.Option(help="Server: milliseconds within which 99% of requests must end.")
    ] = 100.0,
    batch_wait: Annotated[
        float, typer.Option(help="Server: milliseconds that a request waits for others to join its batch.")
    ] = 0.0,
    threads: Annotated[int | None, typer.Option(min=1, help="As for mdmf detect; by default one per core.")] = None,
    yes: Yes = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="FILE", help="Also write the report here: .json, .csv or .html."),
    ] = None,
) -> None:
    """Measure where the milliseconds of a detection go.

    Covers stages, latency, throughput, memory, start-up, and what faster runtimes do to verdicts.

    Several bundles, runtimes or precisions are timed in turn, and the verdicts of each are compared with those of the
    first. Figures from a busy machine are marked as noisy. The names of scenarios are those of MLPerf.

    Example: mdmf benchmark mine.mdmf --images photos/ --precision fp32,int8 -o report.html
    """
    from mdmf_deploy.detection.outputs import open_report
    from mdmf_deploy.images.inputs import expand
    from mdmf_deploy.tasks.benchmark.benchmark import run
    from mdmf_deploy.tasks.benchmark.report import check_output, lines, to_bytes
    from mdmf_deploy.tasks.benchmark.results import Settings

    if output is not None:
        check_output(output)
    settings = Settings(
        scenarios=tuple(_split(scenario)),
        batch_size=batch_size,
        seconds=seconds,
        rate=rate,
        p99_bound=p99_bound,
        batch_wait=batch_wait,
        threads=threads,
    )
    paths = None if images is None else expand(images, yes, log).paths
    with nullcontext() if output is None else open_report(output) as write:
        report = run(
            bundles or [os.environ.get(BUNDLE_VARIABLE) or DEFAULT_BUNDLE],
            settings,
            runtimes=_split(runtime),
            precisions=_split(precision or ""),
            images=paths,
            log=_log_on_terminal,
        )
        if output is not None and write is not None:
            write(to_bytes(report, output.suffix.lower()))
    if not as_json:
        print_lines(lines(report))
    else:
        print_json(report)
        for warning in report.noise.warnings:
            log(f"warning: noisy: {warning}")
    if output is not None:
        log_written("the report", output)


def _split(text: str) -> list[str]:
    """Return the parts between commas in order, each once."""
    return list(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))


def _log_on_terminal(text: str) -> None:
    """Print what is being measured. A moving bar would take time from the measurement.

    Unless stderr is a terminal, these lines are details.
    """
    log(text, logging.INFO if sys.stderr.isatty() else logging.DEBUG)
