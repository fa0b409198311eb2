"""Collect the rows of a run, and write them as one self-contained HTML page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from types import TracebackType

import msgspec

from mdmf_deploy import __version__
from mdmf_deploy.bundle.bundle import Bundle, shipped_name
from mdmf_deploy.detection.detector import Detector
from mdmf_deploy.detection.outputs import Scratch
from mdmf_deploy.detection.outputs.drawing import palette
from mdmf_deploy.detection.outputs.heatmaps import HeatmapOptions
from mdmf_deploy.detection.rows import Row
from mdmf_deploy.images.limits import ReadLimits
from mdmf_deploy.interrupts import held_back
from mdmf_deploy.scratch import named
from mdmf_deploy.tasks.report.data import Labelled, page_data
from mdmf_deploy.tasks.report.page import Page, PageTable
from mdmf_deploy.tasks.report.pictures import PictureOptions, PicturePool, bytes_per_row
from mdmf_deploy.tasks.report.words import BRIEF, share
from mdmf_deploy.text import one_line


class PagePicture(msgspec.Struct, frozen=True):
    """A picture of a section.  png: its bytes.  text: what it shows, in words.  caption: below it, or ""."""

    png: bytes
    text: str
    caption: str = ""


class Section(msgspec.Struct, frozen=True, kw_only=True):
    """A part of the page before the rows, such as an evaluation's figures. All of its texts are escaped.

    tables: each with a header and rows of as many texts.
    warnings: sentences, shown before everything else of the section.
    """

    title: str
    paragraphs: Sequence[str] = ()
    tables: Sequence[PageTable] = ()
    pictures: Sequence[PagePicture] = ()
    warnings: Sequence[str] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportOptions:
    """How a report is made.

    title: the heading of the page.
    rows: how many rows are expected. The more, the smaller their pictures.
    labels: names of columns that are not in a row, such as an evaluation's condition. Each becomes a filter.
    threads: that draw pictures. None means one per core, at most 8.
    """

    title: str
    rows: int
    labels: tuple[str, ...] = ()
    threads: int | None = None
    limits: ReadLimits = field(default_factory=ReadLimits)


class Report:
    """Rows on their way to a page. Use it in a `with` block inside that of `replacing`, which gives the file its name.

    If the block raises, the page holds the rows that were added, and `replacing` keeps it as <stem>.partial.html.

    >>> with replacing(path) as scratch, Detector() as detector, Report(scratch, path, detector, options) as report:
    ...     for source in sources:
    ...         for row in detector.detect(source):
    ...             report.add(row, source)

    sections: parts of the page before the rows. Append to it at any time before the block ends.
    failed: gets a row and the error for each picture that could not be drawn. The row stays.
    Raises OSError that names the path if the page cannot be written.
    """

    def __init__(
        self,
        scratch: Scratch,
        path: Path,
        detector: Detector,
        options: ReportOptions,
        failed: Callable[[Row, Exception], None] | None = None,
    ) -> None:
        self.sections: list[Section] = []
        self._scratch, self._path, self._options = scratch, path, options
        self._bundle, self._settings, self._caveat = detector.bundle, detector.settings(), detector.caveat
        self._rows: list[Labelled] = []
        self._page = Page()
        self._failed = failed
        maps = HeatmapOptions.of(detector.bundle, limits=options.limits)
        drawing = PictureOptions(maps, bytes_per_row(options.rows))
        self._pool = PicturePool(drawing, self._report, options.threads)
        scratch.valid = False

    def add(self, row: Row, source: Path | None, labels: Mapping[str, str] | None = None) -> None:
        """Take a row, and draw its pictures soon.

        source: the file that was scored, or None for a row without a picture.
        labels: a text for each name in the options' labels. One that is missing is "".
        """
        given = labels or {}
        texts = tuple(one_line(given.get(name, "")) for name in self._options.labels)
        # The contributions are needed for the heat map alone, and they take most of a row's memory.
        self._rows.append(Labelled(msgspec.structs.replace(row, contributions=None), texts))
        self._scratch.rows += 1
        self._pool.add(row, source)

    def revise(self, n: int, row: Row) -> None:
        """Put another verdict in place of that of row number n, from 0. Its pictures stay."""
        labels = self._rows[n].labels
        self._rows[n] = Labelled(msgspec.structs.replace(row, contributions=None), labels)

    def close(self, *, complete: bool = True) -> None:
        """Write the page.  complete: whether these are all rows of the run."""
        self._pool.close()
        drawn = [one is not None for one in self._pool.drawn]
        verdicts = Counter(labelled.row.verdict for labelled in self._rows)
        reasons = Counter(one for labelled in self._rows if (one := labelled.row.reason or labelled.row.error_code))
        with named(self._path):
            self._page.write(
                self._scratch.file,
                {
                    "title": self._options.title,
                    "warnings": [f"{self._caveat[:1].upper()}{self._caveat[1:]}."] if self._caveat else [],
                    "facts": list(self._facts()),
                    "thresholds": _thresholds(self._bundle),
                    "total": len(self._rows),
                    "verdicts": verdicts,
                    "brief": BRIEF,
                    "reasons": reasons,
                    "sections": self.sections,
                    "palette": palette(),
                    "complete": complete,
                },
                page_data(self._rows, self._options.labels, self._bundle, drawn, self._pool.missing),
                self._pool.drawn,
            )
        self._scratch.valid = True

    def __enter__(self) -> Report:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with held_back():
            self.close(complete=kind is None)

    def _report(self, row: Row, error: Exception) -> None:
        if self._failed is not None:
            self._failed(row, error)

    def _facts(self) -> Iterator[tuple[str, str]]:
        """Yield names and values of what scored the rows."""
        settings, bundle = self._settings, self._bundle
        yield "Made", datetime.now().astimezone().strftime("%d %B %Y, %H:%M %Z")
        yield "Bundle", shipped_name(bundle.path) or one_line(str(bundle.path))
        yield "bundle_id", settings.bundle_id
        yield "calibration_id", settings.calibration_id or "none"
        yield "Runtime", f"{settings.runtime}, {settings.precision}"
        yield "Tool", f"mdmf-deploy {__version__}"
        yield "Crops", f"up to {settings.crops} of an image"
        calibration = bundle.calibration
        if calibration is not None:
            yield "False alarms", f"about {share(calibration.fpr)} real photographs like the calibration's"
            yield "Review", f"p-values of up to {calibration.review:g} are borderline"


def _thresholds(bundle: Bundle) -> PageTable | None:
    """Return the table of the calibration's groups."""
    calibration = bundle.calibration
    if calibration is None:
        return None
    groups = [(group.name, group) for group in calibration.groups]
    if calibration.videos is not None:
        groups.append(("videos", calibration.videos.group))
    rows = [
        (name, f"{len(group.scores):,}", "too few" if group.decides is None else f"{group.decides:.6f}")
        for name, group in groups
    ]
    return PageTable(("Size", "Calibration images", "Threshold"), rows)
