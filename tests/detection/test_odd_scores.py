"""Scores that are no verdicts: not a number, or one that no image can have."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from helpers.handmade import calibration_of
from helpers.rows import timeless

from mdmf_deploy.bundle.bank import Bank
from mdmf_deploy.bundle.bundle import Bundle
from mdmf_deploy.detection.detector import Detector
from mdmf_deploy.mmd import Scores
from mdmf_deploy.mmd.cpu import CpuReduction
from mdmf_deploy.tasks.calibrate import write_calibration


@pytest.fixture
def calibrated_copy(bundle_copy: Path) -> Path:
    opened = Bundle.open(bundle_copy)
    write_calibration(opened, calibration_of([0.1] * 20, [0.1], 0.5, opened.bundle_id, ()), bundle_copy)
    return bundle_copy


def test_a_non_finite_score_costs_only_its_own_row(
    calibrated_copy: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources = [photos / f"photo{n:02}.jpg" for n in (0, 2, 4)]
    with Detector(calibrated_copy, batch_size=1) as detector:
        whole = timeless(detector.detect(sources))
        call, calls = type(detector.engine).__call__, iter(range(3))

        def second_fails(self: object, crops: np.ndarray) -> np.ndarray:
            return call(self, crops) * (np.nan if next(calls) == 1 else 1)  # type: ignore[arg-type]

        monkeypatch.setattr(type(detector.engine), "__call__", second_fails)
        before, bad, after = timeless(detector.detect(sources))
    assert [before, after] == [whole[0], whole[2]]
    assert (bad.status, bad.verdict, bad.error_code) == ("error", "error", "not_finite")
    assert (bad.score, bad.p_value, bad.threshold, bad.contributions) == (None, None, None, None)
    assert (bad.sha256, bad.width, bad.format) == (whole[1].sha256, whole[1].width, "jpeg")
    assert bad.error is not None
    assert bad.error.startswith("its score on onnxruntime is nan; run `mdmf verify`")


@pytest.mark.parametrize("self_term", [-1.0, 9.0])
def test_a_score_that_no_image_can_have_is_no_verdict(
    calibrated_copy: Path, photos: Path, monkeypatch: pytest.MonkeyPatch, self_term: float
) -> None:
    with Detector(calibrated_copy) as detector:
        call = CpuReduction.__call__

        def wrong(self: CpuReduction, signatures: np.ndarray, bank: Bank) -> Scores:
            scores = call(self, signatures, bank)
            return Scores(scores.mmd2 + self_term, scores.contributions + self_term)

        monkeypatch.setattr(CpuReduction, "__call__", wrong)
        [row] = detector.detect(photos / "photo00.jpg")
    assert (row.status, row.verdict, row.error_code) == ("error", "error", "impossible_score")
    assert (row.score, row.p_value, row.contributions) == (None, None, None)
    assert row.error is not None
    assert "run `mdmf verify`" in row.error
