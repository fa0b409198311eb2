"""The JSON Schema of a row holds for every row that detect makes, and for nothing else."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import msgspec
import numpy as np
import pytest
from fakes.failing_engines import NanEngine
from helpers.bad_inputs import broken
from helpers.handmade import calibration_of
from helpers.mdmf import mdmf
from helpers.synthetic_photos import synthetic_photo
from jsonschema import Draft202012Validator

from mdmf_deploy.bundle.bundle import Bundle, write_bundle
from mdmf_deploy.bundle.calibration import Reason, Verdict
from mdmf_deploy.detection.detector import Detector
from mdmf_deploy.detection.feed import ImageScore
from mdmf_deploy.detection.rows import COLUMNS, Row, json_line
from mdmf_deploy.detection.schema import DESCRIPTIONS, row_schema
from mdmf_deploy.images.decode import ReadLimits
from mdmf_deploy.images.limits import Code, Note
from mdmf_deploy.images.provenance import Claim
from mdmf_deploy.tasks.calibrate import write_calibration

VALIDATOR = Draft202012Validator(row_schema())


def calibrate(bundle: Path, scores: list[float], fpr: float = 0.1) -> None:
    opened = Bundle.open(bundle)
    write_calibration(opened, calibration_of(scores, [fpr], 0.5, opened.bundle_id), bundle)


def judged(bundle: Path, photos: list[Path]) -> Iterator[Row]:
    """Rows of every verdict and reason."""
    with Detector(bundle) as detector:
        rows = detector.detect(photos)
    yield from rows
    scores = [row.score or 0.0 for row in rows]
    for factor, shift in ((1.0, 0.0), (0.0, 0.0), (1.0, 1.0)):
        calibrate(bundle, [factor * score + shift for score in scores])
        with Detector(bundle) as detector:
            yield from detector.detect([*photos, np.full((64, 64, 3), 200, np.uint8)])
    with Detector(bundle, crops=4) as detector:
        yield from detector.detect(synthetic_photo(1, 200, 200))
    calibrate(bundle, [0.0] * 5, 0.01)
    with Detector(bundle) as detector:
        yield from detector.detect(photos[0])
    opened = Bundle.open(bundle)
    write_bundle(bundle, msgspec.structs.replace(opened.manifest, verification=()), opened.files())
    with Detector(bundle) as detector:
        yield from detector.detect(photos[0])


def failed(bundle: Path, photo: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Row]:
    """Rows of errors: reading, decoding, and the runtime."""
    large = folder / "large"
    large.write_bytes(bytes(200_000))
    limits = ReadLimits(max_pixels=4000, max_bytes=150_000)
    with Detector(bundle, limits=limits) as detector:
        yield from detector.detect([folder / "none.jpg", folder, large, photo])
    with Detector(bundle) as detector:
        yield from detector.detect([data for data, _ in broken().values()])
    monkeypatch.setattr("mdmf_deploy.detection.detector.open_engine", lambda *_: NanEngine())
    monkeypatch.setattr("mdmf_deploy.detection.detector.check_probes", lambda *_: None)
    with Detector(bundle, "onnxruntime") as detector:
        yield from detector.detect(photo)
        monkeypatch.setattr(detector, "_scores", lambda batch: {0: ImageScore(-1.0, [-1.0], None, 0.0)})
        yield from detector.detect(photo)


def test_every_row_is_valid(bundle_copy: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = sorted(photos.iterdir())
    good = list(judged(bundle_copy, paths))
    rows = good + list(failed(bundle_copy, paths[0], tmp_path, monkeypatch))
    for row in rows:
        VALIDATOR.validate(json.loads(json_line(row)))
    assert {row.verdict for row in rows} == set(get_args(Verdict))
    # Those of videos are tested in test_videos.py, since not everyone has OpenCV.
    elsewhere = {"no_video_thresholds", "other_frames", "one_frame", "unstable", "expected_by_chance"}
    assert {row.reason for row in rows} >= set(get_args(Reason)) - elsewhere
    # Those of a file that cannot be opened, and of costly ones, are tested where they arise.
    assert {row.error_code for row in rows} >= set(get_args(Code)) - {"unreadable", "too_much_memory", "too_slow"}
    video = msgspec.structs.replace(
        good[0], frames=10, lowest_score=-0.1, lowest_time=0.0, highest_score=1.5, highest_time=9.5
    )
    noted = msgspec.structs.replace(
        good[0], notes=" ".join(get_args(Note)), provenance=get_args(Claim)[1], provenance_source="EXIF Software"
    )
    probed = msgspec.structs.replace(
        good[0], verdict="uncertain", reason="unstable", probes=5, lowest_probe=-0.1, highest_probe=1.5
    )
    by_chance = msgspec.structs.replace(good[0], verdict="uncertain", reason="expected_by_chance", q_value=1.0)
    for row in (video, noted, probed, by_chance, msgspec.structs.replace(good[0], frame_time=1.5)):
        VALIDATOR.validate(json.loads(json_line(row)))


OK: dict[str, Any] = Row(uri="a.jpg", verdict="real", score=-0.5).to_dict()
ERROR: dict[str, Any] = Row(uri="a.jpg", status="error", error_code="empty", error="no bytes").to_dict()


@pytest.mark.parametrize(
    "change",
    [
        {"verdict": "fake"},
        {"verdict": "error"},
        {"verdict": "uncertain"},
        {"status": "fine"},
        {"status": "error"},
        {"reason": "borderline"},
        {"error_code": "empty"},
        {"error": "no bytes"},
        {"score": None},
        {"score": "0.5"},
        {"p_value": 1.5},
        {"q_value": -0.1},
        {"probes": -1},
        {"probes": 1.5},
        {"evidence": -0.1},
        {"width": 1.5},
        {"width": 0},
        {"sha256": "ab"},
        {"notes": "nonsense"},
        {"notes": ""},
        {"notes": "no_end_marker,scans_missing"},
        {"provenance": "signed"},
        {"uri": None},
        {"frames": 0},
        {"contributions": [0.5]},
        {"confidence": 0.5},
    ],
    ids=str,
)
def test_a_wrong_row_is_not_valid(change: dict[str, Any]) -> None:
    assert VALIDATOR.is_valid(OK)
    assert not VALIDATOR.is_valid(OK | change)


@pytest.mark.parametrize(
    "change",
    [{"error_code": None}, {"error_code": "oops"}, {"error": None}, {"verdict": "real"}, {"score": 0.5}],
    ids=str,
)
def test_a_wrong_error_is_not_valid(change: dict[str, Any]) -> None:
    assert VALIDATOR.is_valid(ERROR)
    assert not VALIDATOR.is_valid(ERROR | change)


@pytest.mark.parametrize("name", COLUMNS)
def test_no_column_may_be_missing(name: str) -> None:
    assert not VALIDATOR.is_valid({key: value for key, value in OK.items() if key != name})


def test_the_command_prints_it() -> None:
    printed = json.loads(mdmf("rows", "--schema").stdout)
    assert printed == row_schema()
    Draft202012Validator.check_schema(printed)
    assert list(printed["properties"]) == list(DESCRIPTIONS) == list(COLUMNS)


def test_the_command_explains_every_column_within_80_characters() -> None:
    lines = mdmf("rows").stdout.splitlines()
    assert [line.split()[0] for line in lines if not line.startswith(" ")] == list(COLUMNS)
    assert max(map(len, lines)) <= 80
