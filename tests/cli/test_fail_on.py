"""`mdmf detect --fail-on generated` passes only if every image could have failed it."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.handmade import calibration_of
from helpers.mdmf import mdmf
from helpers.synthetic_photos import synthetic_photo
from PIL import Image

from mdmf_deploy.bundle.bundle import Bundle
from mdmf_deploy.tasks.calibrate import write_calibration


@pytest.fixture
def images(tmp_path: Path) -> list[Path]:
    """One of 0.01 megapixels and one of 0.03."""
    paths = []
    for side in (100, 180):
        paths.append(tmp_path / f"{side}.png")
        Image.fromarray(synthetic_photo(1, side, side)).save(paths[-1])
    return paths


def calibrated(path: Path, score: float) -> None:
    """Give the bundle thresholds at this score for images of up to 0.02 megapixels, and none for larger ones."""
    bundle = Bundle.open(path)
    write_calibration(bundle, calibration_of([score] * 20, bundle_id=bundle.bundle_id, bounds=[0.02]), path)


@pytest.mark.parametrize(
    ("score", "chosen", "verdicts", "code"),
    [
        (4.0, [0], ["generated"], 0),
        (4.0, [1], ["generated"], 2),
        (4.0, [0, 1], ["generated"], 2),
        (0.0, [0, 1], ["generated"], 1),
        (4.0, [0, 1], ["uncertain"], 1),
        (4.0, [0, 1], [], 0),
    ],
)
def test_an_image_of_a_size_without_thresholds_does_not_pass_the_gate(
    bundle_copy: Path, images: list[Path], score: float, chosen: list[int], verdicts: list[str], code: int
) -> None:
    calibrated(bundle_copy, score)
    gates = [part for verdict in verdicts for part in ("--fail-on", verdict)]
    result = mdmf("detect", *(images[n] for n in chosen), "--bundle", bundle_copy, *gates)
    assert result.exit_code == code
    assert len(result.stdout.splitlines()) == 1 + len(chosen)
    last = f"--fail-on cannot be judged for 1 of {len(chosen)} images: too few calibration images like them "
    assert (f"mdmf: {last}(above 0.02 MP); " in result.stderr) == (code == 2)
