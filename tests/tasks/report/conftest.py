"""A calibrated detector, and reports of its rows."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest
from helpers.handmade import calibration_of

from mdmf_deploy.bundle.bundle import Bundle
from mdmf_deploy.detection.detector import Detector
from mdmf_deploy.detection.outputs import replacing
from mdmf_deploy.detection.rows import Row
from mdmf_deploy.tasks.calibrate import write_calibration
from mdmf_deploy.tasks.report.report import Report, ReportOptions, Section

Write = Callable[..., Path]


@pytest.fixture(scope="session")
def detector(tiny_bundle: Path, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Detector]:
    """A detector that calls a third of the photographs generated."""
    path = Path(shutil.copytree(tiny_bundle, tmp_path_factory.mktemp("report") / "tiny.mdmf"))
    with Detector(path, threads=1) as uncalibrated:
        scores = sorted(row.score or 0.0 for row in uncalibrated.detect(sorted(photos.iterdir())))
    bundle = Bundle.open(path)
    calibration = calibration_of([*scores[:7], *[scores[7]] * 13], bundle_id=bundle.bundle_id)
    write_calibration(bundle, calibration, path)
    with Detector(path, threads=1) as opened:
        yield opened


@pytest.fixture(scope="session")
def scored(detector: Detector, photos: Path) -> list[tuple[Row, Path]]:
    """The rows of the photographs, with their files."""
    paths = sorted(photos.iterdir())
    return list(zip(detector.detect(paths), paths, strict=True))


@pytest.fixture(scope="session")
def write(detector: Detector) -> Write:
    """Return a function that writes a report of rows."""

    def written(
        path: Path,
        rows: Iterable[tuple[Row, Path | None]],
        *,
        labels: dict[str, Callable[[Row], str]] | None = None,
        sections: Iterable[Section] = (),
        expected: int = 20,
        title: str = "Report on photos/",
    ) -> Path:
        named = labels or {}
        options = ReportOptions(title=title, rows=expected, labels=tuple(named), threads=1)
        with replacing(path) as scratch, Report(scratch, path, detector, options) as report:
            report.sections.extend(sections)
            for row, source in rows:
                report.add(row, source, {name: of(row) for name, of in named.items()})
        return path

    return written
