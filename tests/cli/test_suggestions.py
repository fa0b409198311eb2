"""Every command that writes ends with the next command to run, and that command works as it is printed."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from helpers.mdmf import mdmf
from helpers.suggested import suggested

from mdmf_deploy.bundle.bundle import Bundle, shipped, suggestion

# The tiny bundle is calibrated on a few images.
RATE = ("--fpr", 0.2)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current folder whose name a shell must be given in quotes."""
    path = tmp_path / "of 'mine'"
    path.mkdir()
    monkeypatch.chdir(path)
    return path


def test_from_a_bank_to_verdicts_by_suggestions_alone(tiny_bundle: Path, photos: Path, folder: Path) -> None:
    reals = sorted(photos.iterdir())
    for name in ("bank", "held out"):
        (folder / name).mkdir()
    for n, path in enumerate(reals):
        shutil.copy(path, folder / ("held out" if n % 2 else "bank"))
    held_out = folder / "held out"
    # The first name that comes to mind is taken.
    built = mdmf("bank", "build", tiny_bundle, folder / "bank", "-o", folder / "mine.mdmf")
    calibrated = mdmf(*suggested(built, REAL_PHOTOS=held_out), *RATE)
    assert mdmf(*suggested(calibrated, photos=photos)).exit_code == 0
    new = Path("new.mdmf")
    assert Bundle.open(new).calibration is not None
    for command in (
        ("bank", "compress", new, "--points", 8, "-o", "small one.mdmf"),
        ("verify", new, "--runtime", "onnxruntime"),
        ("verify", new, "--runtime", "onnxruntime", "-o", "copy of it.mdmf"),
    ):
        assert mdmf(*suggested(mdmf(*command), photos=photos)).exit_code == 0


def test_a_verified_bundle_without_thresholds_is_to_be_calibrated(
    bundle_copy: Path, photos: Path, folder: Path
) -> None:
    verified = mdmf("verify", bundle_copy, "--runtime", "onnxruntime")
    calibrated = mdmf(*suggested(verified, REAL_PHOTOS=photos), *RATE)
    assert suggested(calibrated)[-1] == "mine.mdmf"
    # Every free name is found in turn, and the bundle itself stays.
    taken = [suggested(mdmf("verify", bundle_copy, "--runtime", "onnxruntime"))[-1]]
    for name in ("new.mdmf", "mine2.mdmf"):
        Path(name).mkdir()
        taken.append(suggested(mdmf("verify", bundle_copy, "--runtime", "onnxruntime"))[-1])
    assert taken == ["new.mdmf", "mine2.mdmf", "mine3.mdmf"]
    assert Bundle.open(bundle_copy).calibration is None


def test_rows_of_evaluate_lead_to_rows_of_detect(tiny_bundle: Path, photos: Path, folder: Path) -> None:
    shutil.copytree(tiny_bundle, folder / "starter")
    first, *others = sorted(photos.iterdir())
    for place, paths in (("data/real", others), ("data/generated/one", [first])):
        Path(place).mkdir(parents=True)
        for path in paths:
            shutil.copy(path, place)
    # A bare name would mean the bundle in the package.
    written = mdmf("evaluate", "data", "--bundle", "./starter", "-o", "rows.csv")
    detected = mdmf(*suggested(written, photos=photos), "--json")
    assert Bundle.open(tiny_bundle).bundle_id in detected.stdout


def test_a_bundle_is_named_as_the_command_line_understands_it() -> None:
    assert suggestion("verify", shipped("starter")) == "mdmf verify starter -o mine.mdmf"
    assert suggestion("detect", shipped("starter")) == "mdmf detect photos/ --bundle starter"
    assert suggestion("verify", Path("starter")) == "mdmf verify ./starter"
    assert suggestion("verify", Path("-x.mdmf")) == "mdmf verify ./-x.mdmf"
    assert suggestion("detect", Path("a/b c.mdmf")) == "mdmf detect photos/ --bundle 'a/b c.mdmf'"
