"""`mdmf detect --engine ray`: the same rows, in parts, from the workers of a cluster."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Literal

from mdmf_deploy.cli.console import draws_bars, log, stderr_console
from mdmf_deploy.cli.summary import advise_on_videos, exit_by, following, summarise, warn_of_caveat
from mdmf_deploy.errors import RuntimeUnavailable, UsageError, install
from mdmf_deploy.images.limits import ReadLimits

if TYPE_CHECKING:
    from mdmf_deploy.tasks.scale.listing import Listing
    from mdmf_deploy.tasks.scale.run import ScaleRun
    from mdmf_deploy.tasks.scale.tally import Tally

_FILES = (".jsonl", ".json", ".csv", ".html")


@dataclass(frozen=True, slots=True)
class RayOptions:
    """The options of `mdmf detect`.  local: names of those given that only a local run has."""

    inputs: Sequence[str]
    output: str | None
    signatures: str | None
    signature_type: Literal["fp32", "fp16"]
    fail_on: Sequence[str]
    bundle: str
    runtime: str
    crops: int | None
    frames: int
    each_frame: bool
    batch_size: int
    threads: int | None
    limits: ReadLimits
    address: str | None
    actors: int | None
    whole_disk: bool
    list_inputs: bool
    as_json: bool
    local: Sequence[str]


def detect_on_ray(options: RayOptions) -> None:
    """Run on Ray: the messages, the summary and the exit codes are those of a local run."""
    if options.local:
        raise UsageError(f"{options.local[0]} is for runs on this machine; leave it out, or leave out --engine ray")
    try:
        from mdmf_deploy.tasks.scale.listing import list_inputs
    except ModuleNotFoundError as error:
        raise RuntimeUnavailable(f"--engine ray needs {error.name}; run: {install('scale')}") from error
    output = None if options.list_inputs else _checked(options.output)
    listing = list_inputs(options.inputs, options.whole_disk, log)
    if output is None:
        _print_inputs(listing, options.as_json)
        return

    from mdmf_deploy.bundle.bundle import Bundle
    from mdmf_deploy.tasks.scale.locations import whole_uri
    from mdmf_deploy.tasks.scale.run import ScaleRequest, prepared_run

    where, output = whole_uri(output)
    request = ScaleRequest(
        output=output,
        bundle=options.bundle,
        runtime=options.runtime,
        batch_size=options.batch_size,
        crops=options.crops,
        frames=options.frames,
        each_frame=options.each_frame,
        limits=options.limits,
        signatures=None if options.signatures is None else whole_uri(options.signatures)[1],
        signature_type=options.signature_type,
        threads=options.threads,
        address=options.address,
        actors=options.actors,
    )
    others = listing.others
    start = time.perf_counter()
    run_and_tallies = prepared_run(request, listing)
    del listing  # the run lets go of it as well
    with run_and_tallies as (run, tallies):
        warn_of_caveat(run.opened.caveat, bool(options.fail_on))
        _tell_before(run, where)
        try:
            with _bar(run.total) as advance:
                for tally in tallies:
                    advance(tally)
        except BaseException as error:
            error.add_note(f"finished rows are in {where}; the same command goes on there")
            raise
        finally:
            counts = Counter(run.tally.verdicts)
            if run.total:
                summarise(counts, (run.tally.inputs, run.total), others, time.perf_counter() - start)
    bundle = Bundle.open(options.bundle)
    if run.tally.unjudged:
        advise_on_videos(bundle, run.tally.unjudged)
    if run.total:
        next_command = following(bundle)
        log(f"wrote {counts.total()} rows to {where}" + (f"; next: {next_command}" if next_command else ""))
    exit_by(
        counts + Counter(run.before.verdicts),
        Counter(run.tally.undecided) + Counter(run.before.undecided),
        options.fail_on,
    )


def _checked(output: str | None) -> str:
    """Return the output folder as a path or a URL."""
    if output is None:
        raise UsageError("--engine ray writes a folder of parts; name it, such as -o rows/ or -o s3://bucket/rows/")
    if Path(output).suffix.lower() in _FILES or Path(output).is_file():
        raise UsageError(f"-o {output}: --engine ray writes a folder of Parquet parts; name a folder, such as -o rows/")
    return output


def _tell_before(run: ScaleRun, where: str) -> None:
    inputs = f"{run.already} input{'s' * (run.already != 1)}"
    if not run.total:
        log(f"nothing to do: {inputs} are in {where}")
    elif run.already or run.again:
        again = f", {run.again} changed or could not be read and are done again" if run.again else ""
        log(f"{where} has {inputs} of {run.already + run.total}{again}; {run.total - run.again} are new")


@contextmanager
def _bar(total: int) -> Iterator[Callable[[Tally], None]]:
    """Yield a function that takes each part's tally, and draws a bar on a terminal."""
    if not draws_bars() or not total:
        yield lambda tally: None
        return
    from rich.progress import Progress

    with Progress(console=stderr_console(), transient=True) as bar:
        task = bar.add_task("detecting", total=total)

        def advance(tally: Tally) -> None:
            bar.advance(task, tally.inputs)

        yield advance


def _print_inputs(listing: Listing, as_json: bool) -> None:
    from mdmf_deploy.cli.list_inputs import print_names

    names = listing.table["uri"].to_pylist()
    print_names(names, Counter(PurePosixPath(name).suffix.lower() for name in names), listing.others, as_json)
