"""Triton gets a plan only if it is intact, this bundle's, and built for the batches asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from helpers.handmade import calibration_of, make_bundle
from helpers.triton_plans import write_plan

from mdmf_deploy.bundle.bundle import Bundle
from mdmf_deploy.errors import UsageError
from mdmf_deploy.tasks.calibrate import write_calibration
from mdmf_deploy.tasks.triton.serving import Serving, caveat, check_plan, valid_calibration


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return make_bundle(tmp_path / "handmade.mdmf")


def test_a_calibration_that_decides_nothing_gives_no_verdicts(bundle: Bundle) -> None:
    for images, decides in ((8, False), (9, True)):
        calibration = calibration_of([n / 9 for n in range(images)], [0.1], bundle_id=bundle.bundle_id)
        calibrated = write_calibration(bundle, calibration, bundle.path)
        assert (valid_calibration(calibrated, Serving()) is not None) is decides
        why = caveat(calibrated, Serving())
        assert (why is None) is decides
        assert why is None or why.startswith("8 calibration images are too few for a false positive rate of 0.1")


def test_a_plan_that_fits_is_accepted(bundle: Bundle, tmp_path: Path) -> None:
    plan = write_plan(tmp_path / "engine.plan", bundle)
    for most in (1, 32):
        assert check_plan(plan, bundle, most).key.gpu == "NVIDIA L4"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "0" * 64}, "another model"),
        ({"library": "tensorrt_rtx"}, "which Triton does not run"),
        (
            {"profile": {"batch": {"min": 1, "opt": 4, "max": 7}}},
            "batches of 1 to 7, expected 1 to 8; give --triton-batch",
        ),
        ({"profile": {"batch": {"min": 2, "opt": 8, "max": 32}}}, "batches of 2 to 32"),
        ({"profile": {"batch": {"min": 1}}}, "does not describe a plan"),
        ({"sha256": "0" * 64}, "damaged"),
        ({"inputs": [{"name": "images", "shape": [-1, 3, 56, 56], "type": "HALF"}]}, "expected float32"),
        ({"outputs": []}, "expected float32"),
    ],
)
def test_a_plan_that_does_not_fit_is_refused(
    changes: dict[str, Any], message: str, bundle: Bundle, tmp_path: Path
) -> None:
    plan = write_plan(tmp_path / "engine.plan", bundle, **changes)
    with pytest.raises(UsageError, match=message):
        check_plan(plan, bundle, 8)


def test_a_plan_without_file_or_card_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    plan = tmp_path / "engine.plan"
    with pytest.raises(UsageError, match=r"engine\.plan: No such file"):
        check_plan(plan, bundle, 8)
    write_plan(plan, bundle).with_suffix(".json").unlink()
    with pytest.raises(UsageError, match=r"engine\.json: No such file .* with the \.json beside it"):
        check_plan(plan, bundle, 8)
    plan.with_suffix(".json").write_bytes(b"\xff{")
    with pytest.raises(UsageError, match="does not describe a plan"):
        check_plan(plan, bundle, 8)


def test_an_empty_batch_and_a_plan_on_the_cpu_are_refused(tmp_path: Path) -> None:
    plan = tmp_path / "engine"
    for device, most, path, message in (
        ("cpu", 0, None, "at least 1"),
        ("cpu", 1, plan, "GPU only"),
    ):
        with pytest.raises(UsageError, match=message):
            Serving(device, most, path)  # type: ignore[arg-type]
