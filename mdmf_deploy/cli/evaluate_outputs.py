"""The files of `mdmf evaluate`: rows and plots."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from mdmf_deploy.cli.console import log_written, progress

if TYPE_CHECKING:
    from mdmf_deploy.detection.detector import Detector
    from mdmf_deploy.detection.outputs import Writer
    from mdmf_deploy.tasks.evaluate.audit import Audit
    from mdmf_deploy.tasks.evaluate.comparison import Judged
    from mdmf_deploy.tasks.evaluate.evaluate import Table
    from mdmf_deploy.tasks.evaluate.leaks import LeakAudit
    from mdmf_deploy.tasks.evaluate.robustness import SweepResult

# Columns of -o before those of a row.
_LABELS = ("condition", "generator", "kind", "compared_with")


def check_outputs(output: Path | None, plots: Path | None, sweep: Path | None) -> None:
    """Raise UsageError if a file or folder cannot be what it is for, before anything is read."""
    from mdmf_deploy.detection.outputs import WRITERS, check_ending

    if output is not None:
        check_ending(output, WRITERS)
    if plots is not None:
        _make_folder(plots)
    if sweep is not None:
        from mdmf_deploy.tasks.evaluate.robustness import check_folder

        check_folder(sweep)


@contextmanager
def evaluation_outputs(output: Path | None, plots: Path | None) -> Iterator[Outputs]:
    """Open the files. They take their names when the block ends."""
    from mdmf_deploy.detection.outputs import open_output

    with ExitStack() as stack:
        writer = None if output is None else stack.enter_context(open_output(output, _LABELS))
        yield Outputs(writer, plots)


class Outputs:
    """Writes each row as it comes, and the rest when it is known."""

    def __init__(self, writer: Writer | None, plots: Path | None) -> None:
        self._writer, self._plots = writer, plots

    def begin(self, detector: Detector, rows: int) -> None:
        """Get ready for this many rows."""

    def written(self, judged: Iterable[Judged], total: int, condition: str) -> Iterator[Judged]:
        """Pass the pairs on, write each one's row, and show a bar."""
        with progress(judged, condition, total) as pairs:
            for pair in pairs:
                if self._writer is not None:
                    image = pair.image
                    self._writer.write(pair.row, condition, image.generator, image.kind, image.compared_with)
                yield pair

    def draw(self, judged: Sequence[Judged], table: Table) -> None:
        """Draw the plots of one condition."""
        if self._plots is None:
            return
        from mdmf_deploy.files import atomic_file
        from mdmf_deploy.tasks.evaluate.pictures import pictures
        from mdmf_deploy.tasks.plots import encoded

        for picture in pictures(judged, table):
            with atomic_file(self._plots / f"{picture.name}.svg", durable=False) as scratch:
                scratch.write_bytes(encoded(picture.figure, "svg"))
        log_written("plots", self._plots)

    def finish(
        self, tables: Sequence[Table], audited: Audit, leaks: LeakAudit | None, swept: SweepResult | None
    ) -> None:
        """Write what needs all figures."""


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
