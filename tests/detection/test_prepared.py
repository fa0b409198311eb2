"""Sources that are read and cropped in one place and scored in another: the rows are those of one process."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.rows import timeless

from mdmf_deploy import Detector
from mdmf_deploy.detection.feed import Prepared, prepare
from mdmf_deploy.errors import UsageError
from mdmf_deploy.images.decode import ReadLimits


def prepared(detector: Detector, paths: list[Path]) -> list[Prepared]:
    plan = detector.bundle.manifest.preprocessing
    crops = detector.settings().crops
    return [prepare(n, path, plan, crops, ReadLimits(), keep_pixels=True) for n, path in enumerate(paths)]


@pytest.mark.parametrize(("crops", "batch_size"), [(1, 1), (1, 5), (4, 3), (4, 8)])
def test_rows_are_those_of_a_stream(tiny_bundle: Path, photos: Path, crops: int, batch_size: int) -> None:
    paths = [*sorted(photos.iterdir()), photos / "nowhere.jpg", min(photos.iterdir())]
    with Detector(tiny_bundle, threads=1, crops=crops, batch_size=batch_size) as detector:
        ready = prepared(detector, paths)
        assert all(one.tensor is None for one in ready)
        rows = [row for [row] in detector.rows_of(ready)]
        assert timeless(rows) == timeless(detector.detect(paths))
        assert [row.contributions for row in rows] == [row.contributions for row in detector.detect(paths)]


def test_no_sources_give_no_rows(tiny_bundle: Path) -> None:
    with Detector(tiny_bundle, threads=1) as detector:
        assert list(detector.rows_of([])) == []


def test_a_closed_detector_says_so(tiny_bundle: Path, photos: Path) -> None:
    with Detector(tiny_bundle, threads=1) as detector:
        ready = prepared(detector, [min(photos.iterdir())])
    with pytest.raises(UsageError, match="is closed"):
        next(detector.rows_of(ready))
