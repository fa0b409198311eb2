"""The settings of a run: whatever changes rows changes them, and nothing else does."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import msgspec
import pytest

from mdmf_deploy import __version__
from mdmf_deploy.detection.detector import Detector
from mdmf_deploy.detection.settings import RunSettings
from mdmf_deploy.errors import UsageError
from mdmf_deploy.images.decode import ReadLimits


def settings_of(bundle: Path, each_frame: bool = False, **options: Any) -> RunSettings:
    with Detector(bundle, "onnxruntime", **options) as detector:
        return detector.settings(each_frame)


def test_options_that_change_rows_are_settings(tiny_bundle: Path) -> None:
    plain = settings_of(tiny_bundle)
    assert (plain.tool, plain.runtime, plain.crops) == (__version__, "onnxruntime", 1)
    assert settings_of(tiny_bundle, threads=1, batch_size=3) == plain
    assert settings_of(tiny_bundle, crops=1, frames=10, limits=ReadLimits()) == plain
    limits = ReadLimits(max_pixels=5, max_memory=6, max_seconds=7.0)
    for changed, clauses in (
        ({"crops": 4}, ["crops 1 there, 4 now"]),
        ({"frames": None}, ["frames 10 there, none now"]),
        ({"each_frame": True}, ["each_frame False there, True now"]),
        ({"probe": True}, ["probe False there, True now"]),
        (
            {"limits": limits},
            [
                "max_pixels 128000000 there, 5 now",
                "max_memory 1073741824 there, 6 now",
                "max_seconds 10.0 there, 7.0 now",
            ],
        ),
    ):
        assert plain.differences(settings_of(tiny_bundle, **changed)) == clauses


def test_thresholds_that_no_longer_hold_are_another_setting(tiny_bundle: Path) -> None:
    held = msgspec.structs.replace(settings_of(tiny_bundle), verdicts=True)
    assert held.differences(settings_of(tiny_bundle)) == ["verdicts True there, False now"]


def test_other_settings_are_refused_with_what_differs(tiny_bundle: Path) -> None:
    there = settings_of(tiny_bundle)
    there.check_same(there, "rows.csv")
    now = msgspec.structs.replace(there, bundle_id="0" * 64, calibration_id="1" * 64)
    text = f"rows.csv was begun with other settings (bundle_id {there.bundle_id[:12]} there, 000000000000 now; "
    with pytest.raises(UsageError, match=re.escape(text + "calibration_id none there, 111111111111 now); give the")):
        there.check_same(now, "rows.csv")
