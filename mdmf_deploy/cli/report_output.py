"""The HTML report of `mdmf detect`: instead of rows (-o report.html) or beside them (--report)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mdmf_deploy.cli.console import log
from mdmf_deploy.cli.row_output import row_output
from mdmf_deploy.errors import UsageError
from mdmf_deploy.files import url_in
from mdmf_deploy.images.limits import ReadLimits

if TYPE_CHECKING:
    from mdmf_deploy.detection.detector import Detector
    from mdmf_deploy.detection.outputs import Scratch
    from mdmf_deploy.detection.rows import Row
    from mdmf_deploy.tasks.report.report import Report

REPORT = ".html"
_NAMED = 3


@dataclass(frozen=True, slots=True)
class ReportPlan:
    """What a report is of.  path: None makes none.  rows: how many are expected."""

    path: Path | None
    inputs: Sequence[str]
    rows: int
    limits: ReadLimits
    threads: int | None


def is_report(output: str | Path | None) -> bool:
    """Return whether -o asks for a report instead of rows."""
    return output is not None and Path(output).suffix.lower() == REPORT


def report_path(output: Path | None, report: Path | None, as_json: bool, resume: bool) -> Path | None:
    """Return where the report goes, by -o and --report, or None.

    Raises UsageError if there is no place for it, or it contradicts another option.
    """
    if is_report(output):
        if report is not None:
            raise UsageError(f"-o {output} and --report {report} are both reports; give -o the name of a file for rows")
        if as_json:
            raise UsageError(f"--json prints rows and -o {output} is a report; give --report {output} --json for both")
        report = output
    if report is None:
        return None
    option = "-o" if report is output else "--report"
    if resume:
        raise UsageError(f"{option} {report}: --resume cannot add to a report; leave out --resume, or make no report")
    if url := url_in(report):
        raise UsageError(f"{option} {url} is a URL; give a path")
    if report.is_dir():
        raise UsageError(f"{option} {report} is a folder; give the name of a file that ends in {REPORT}")
    if not is_report(report):
        raise UsageError(f"{option} {report}: a report ends in {REPORT}; give such a name")
    return report


@contextmanager
def rows_beside(output: Path | None, as_json: bool, anew: str) -> Iterator[Callable[[Row], None]]:
    """Yield what `row_output` yields, or a function that does nothing where -o is the report, which takes the rows."""
    if is_report(output):
        yield lambda row: None
        return
    with row_output(output, as_json, anew) as write:
        yield write


@contextmanager
def report_file(path: Path | None, output: Path | None) -> Iterator[Scratch | None]:
    """Hold the report's place from the beginning, so that a place that takes none is found before a model is read."""
    if path is None:
        yield None
        return
    from mdmf_deploy.detection.outputs import replacing

    with replacing(path, "-o" if path == output else "--report") as scratch:
        yield scratch


@contextmanager
def reporting(scratch: Scratch | None, plan: ReportPlan, detector: Detector) -> Iterator[Report | NoReport]:
    """Yield what takes each row and its file. The page is written when the block ends, also by Ctrl-C."""
    if scratch is None or plan.path is None:
        yield NoReport()
        return
    from mdmf_deploy.tasks.report.report import Report, ReportOptions

    options = ReportOptions(title=_title(plan.inputs), rows=plan.rows, limits=plan.limits, threads=plan.threads)
    with Report(scratch, plan.path, detector, options, picture_failed) as report:
        yield report


class NoReport:
    """Takes rows where no report is asked for."""

    def add(self, row: Row, source: Path | None) -> None:
        """Drop the row."""

    def revise(self, n: int, row: Row) -> None:
        """Drop the row."""


def picture_failed(row: Row, error: Exception) -> None:
    """Log that a row has no picture in the report."""
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    log(f"warning: no picture of {row.uri} in the report: {reason}")


def _title(inputs: Sequence[str]) -> str:
    names = [*inputs[:_NAMED], *([f"{len(inputs) - _NAMED} more"] if len(inputs) > _NAMED else [])]
    return f"Report on {', '.join(names)}"
