"""An anonymous bank or calibration scores as before, and holds no name or hash of a photograph."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from helpers.handmade import bank, calibration_of, make_bundle
from helpers.mdmf import mdmf

from mdmf_deploy.bundle.anonymous import anonymous_bank, anonymous_calibration, cannot_be_told
from mdmf_deploy.bundle.bank import Bank
from mdmf_deploy.bundle.bundle import Bundle, write_bundle
from mdmf_deploy.bundle.calibration import Calibration
from mdmf_deploy.bundle.manifest import BANK, CALIBRATION


def test_a_bank_keeps_its_points_and_loses_its_names() -> None:
    known, data = bank(), anonymous_bank(bank()).to_bytes()
    read = Bank.from_bytes(data)
    assert [source.uri for source in read.sources] == [str(n) for n in range(1, 7)]
    assert not any(source.uri.encode() in data or source.sha256.encode() in data for source in known.sources)
    assert len(read.hashes) == 6
    assert (read.anonymous, known.anonymous) == (True, False)
    assert dataclasses.replace(read, sources=known.sources).to_bytes() == known.to_bytes()


def test_a_calibration_keeps_its_scores_and_loses_its_hashes() -> None:
    known = calibration_of([0.1, 0.2, 0.3])
    read = Calibration.from_bytes(anonymous_calibration(known).to_bytes())
    assert (read.scores, read.anonymous, known.anonymous) == (known.scores, True, False)
    assert not read.image_sha256 & known.image_sha256
    assert len(read.image_sha256) == 3
    # What was replaced before stays, since its hash is gone.
    assert anonymous_calibration(read) == read


def test_the_key_is_another_one_each_time() -> None:
    assert anonymous_bank(bank()).hashes.isdisjoint(anonymous_bank(bank()).hashes)


def test_commands_say_what_they_cannot_tell(tmp_path: Path) -> None:
    ordinary = make_bundle(tmp_path / "a.mdmf")
    files = {**ordinary.files(), BANK: anonymous_bank(bank()).to_bytes()}
    hidden = write_bundle(tmp_path / "b.mdmf", ordinary.manifest, files)
    calibration = anonymous_calibration(calibration_of([0.1], bundle_id=hidden.bundle_id)).to_bytes()
    both = write_bundle(tmp_path / "c.mdmf", hidden.manifest, {**hidden.files(), CALIBRATION: calibration})
    assert cannot_be_told(Bundle.open(ordinary.path), calibration=True) is None
    assert "bank is anonymous" in (cannot_be_told(hidden, calibration=True) or "")
    assert "bank is anonymous" in (cannot_be_told(both, calibration=False) or "")
    assert "bank and calibration are anonymous" in (cannot_be_told(both, calibration=True) or "")


@pytest.mark.parametrize("command", ["bank build", "calibrate"])
def test_the_option_hides_names_and_hashes(tiny_bundle: Path, photos: Path, tmp_path: Path, command: str) -> None:
    target = tmp_path / "new.mdmf"
    options = ("--fpr", "0.1", "--size-bound", "inf") if command == "calibrate" else ()
    result = mdmf(*command.split(), tiny_bundle, photos, "-o", target, "--anonymous", *options)
    assert result.exit_code == 0, result.stderr
    made = Bundle.open(target)
    assert made.bank.anonymous is (command == "bank build")
    assert (made.calibration is not None and made.calibration.anonymous) is (command == "calibrate")
    data = (target / (BANK if command == "bank build" else CALIBRATION)).read_bytes()
    assert b"photo0" not in data
    again = mdmf("calibrate", target, photos, "-o", tmp_path / "more.mdmf", *("--fpr", "0.1", "--size-bound", "inf"))
    # In an ordinary bank they would be left out, and nothing would be left.
    assert again.exit_code == 0, again.stderr
    assert ("bank is anonymous" in again.stderr) is (command == "bank build")
