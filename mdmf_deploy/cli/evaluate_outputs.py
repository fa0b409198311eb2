"""The files of `mdmf evaluate`: rows, plots and the report."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mdmf_deploy.cli.console import log, log_written, progress
from mdmf_deploy.cli.report_output import REPORT, is_report, picture_failed, report_file, report_path

if TYPE_CHECKING:
    from mdmf_deploy.detection.detector import Detector
    from mdmf_deploy.detection.outputs import Scratch, Writer
    from mdmf_deploy.tasks.evaluate.audit import Audit
    from mdmf_deploy.tasks.evaluate.comparison import Judged
    from mdmf_deploy.tasks.evaluate.evaluate import Table
    from mdmf_deploy.tasks.evaluate.leaks import LeakAudit
    from mdmf_deploy.tasks.evaluate.plots import Plot
    from mdmf_deploy.tasks.evaluate.robustness import SweepResult
    from mdmf_deploy.tasks.report.report import Report

# Columns of -o before those of a row.
_LABELS = ("condition", "generator", "kind", "compared_with")
# Those of the report, whose rows are of one condition.
_PAGE_LABELS = ("class", "generator", "kind")


@dataclass(frozen=True, slots=True)
class OutputPaths:
    """Where an evaluation writes. None means nowhere.

    output: as -o gives it.  rows: a file of rows.  report: a page.  plots, sweep: folders.
    """

    output: Path | None
    rows: Path | None
    report: Path | None
    plots: Path | None
    sweep: Path | None

    @classmethod
    def of(cls, output: Path | None, report: Path | None, plots: Path | None, sweep: Path | None) -> OutputPaths:
        """Check the options before anything is read. -o may name rows or a report.

        Raises UsageError if a file or folder cannot be what it is for.
        """
        from mdmf_deploy.detection.outputs import WRITERS, check_ending

        page = report_path(output, report, as_json=False, resume=False)
        if output is not None:
            check_ending(output, (*WRITERS, REPORT))
        if plots is not None:
            _make_folder(plots)
        if sweep is not None:
            from mdmf_deploy.tasks.evaluate.robustness import check_folder

            check_folder(sweep)
        return cls(output, None if is_report(output) else output, page, plots, sweep)


@contextmanager
def evaluation_outputs(paths: OutputPaths) -> Iterator[Outputs]:
    """Open the files. They take their names when the block ends."""
    from mdmf_deploy.detection.outputs import open_output

    with ExitStack() as stack:
        writer = None if paths.rows is None else stack.enter_context(open_output(paths.rows, _LABELS))
        scratch = stack.enter_context(report_file(paths.report, paths.output))
        yield Outputs(paths, writer, scratch, stack)


class Outputs:
    """Writes each row as it comes, and the rest when it is known.  stack: closes the report."""

    def __init__(self, paths: OutputPaths, writer: Writer | None, scratch: Scratch | None, stack: ExitStack) -> None:
        self._paths, self._writer, self._scratch, self._stack = paths, writer, scratch, stack
        self._report: Report | None = None
        self._drawn: Sequence[Plot] = ()

    def begin(self, detector: Detector, dataset: Path, rows: int) -> None:
        """Begin the report.  rows: how many the first condition has."""
        if self._scratch is None or self._paths.report is None:
            return
        from mdmf_deploy.images.inputs import uri
        from mdmf_deploy.tasks.report.report import Report, ReportOptions

        options = ReportOptions(title=f"Evaluation on {uri(dataset)}", rows=rows, labels=_PAGE_LABELS)
        report = Report(self._scratch, self._paths.report, detector, options, picture_failed)
        self._report = self._stack.enter_context(report)

    def written(self, judged: Iterable[Judged], total: int, condition: str, *, first: bool) -> Iterator[Judged]:
        """Pass the pairs on, write each one's row, and show a bar.  first: whether the report shows them."""
        import msgspec

        with progress(judged, condition, total) as pairs:
            for pair in pairs:
                image = pair.image
                if self._writer is not None:
                    self._writer.write(pair.row, condition, image.generator, image.kind, image.compared_with)
                if self._report is not None and first:
                    labels = {
                        "class": "real" if image.generator is None else "generated",
                        "generator": image.generator or "",
                        "kind": image.kind or "",
                    }
                    self._report.add(pair.row, image.path, labels)
                # All rows are held until the last one is there, and contributions take most of their memory.
                yield pair._replace(row=msgspec.structs.replace(pair.row, contributions=None))

    def draw(self, judged: Sequence[Judged], table: Table) -> None:
        """Draw the plots of one condition."""
        if self._paths.plots is None and self._report is None:
            return
        from mdmf_deploy.tasks.evaluate.plots import plots_of

        try:
            self._drawn = plots_of(judged, table)
        except ModuleNotFoundError as error:
            if self._paths.plots is not None or error.name != "matplotlib":
                raise
            from mdmf_deploy.errors import install

            log(f"the report has no plots, which need matplotlib; run: {install('evaluate')}")
        if self._paths.plots is not None:
            self._write_plots(self._paths.plots)

    def finish(
        self, tables: Sequence[Table], audited: Audit, leaks: LeakAudit | None, swept: SweepResult | None
    ) -> None:
        """Give the report its figures."""
        if self._report is None:
            return
        from mdmf_deploy.cli.evaluate_sections import figures_section, leaks_section, sweep_section

        if leaks is not None:
            self._report.sections.append(leaks_section(leaks))
        for n, table in enumerate(tables):
            self._report.sections.append(figures_section(table, self._drawn if n == 0 else (), audited))
        if swept is not None:
            self._report.sections.append(sweep_section(swept))

    def _write_plots(self, folder: Path) -> None:
        from mdmf_deploy.files import atomic_file
        from mdmf_deploy.tasks.plots import encoded

        for plot in self._drawn:
            with atomic_file(folder / f"{plot.name}.svg", durable=False) as scratch:
                scratch.write_bytes(encoded(plot.figure, "svg"))
        log_written("plots", folder)


def _make_folder(folder: Path) -> None:
    """Make the folder of --plots. Raises UsageError if it cannot be written to."""
    from mdmf_deploy.errors import UsageError
    from mdmf_deploy.files import failure
    from mdmf_deploy.scratch import scratch_file
    from mdmf_deploy.tasks.plots import new_figure

    new_figure(1, 1)  # so that a missing matplotlib fails now
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with scratch_file(folder / "plot"):
            pass
    except OSError as error:
        raise UsageError(failure(f"--plots {folder}", error, "choose a folder you can write to")) from error
