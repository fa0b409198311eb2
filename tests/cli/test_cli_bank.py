"""`mdmf bank build` and `mdmf bank inspect`, on a real if tiny model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from mdmf_deploy.bundle import Bundle
from mdmf_deploy.cli import app


def mdmf(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_build_swaps_the_bank_and_says_what_it_dropped(bundle_copy: Path, photos: Path) -> None:
    before = Bundle.open(bundle_copy)
    result = mdmf("bank", "build", bundle_copy, photos, "--json")
    assert result.exit_code == 0
    after = Bundle.open(bundle_copy)
    told = json.loads(result.stdout)
    assert told["bundle_id"] == after.bundle_id != before.bundle_id
    assert (told["images"], told["signatures"]) == (12, 48) == (len(after.bank.sources), len(after.bank.signatures))
    assert told["dropped"] == ["verification"]
    assert "run `mdmf verify` and `mdmf calibrate`" in result.stderr
    assert after.manifest.files["model.onnx"] == before.manifest.files["model.onnx"]
    assert {source.uri for source in after.bank.sources} == {f"{photos.name}/{path.name}" for path in photos.iterdir()}


def test_build_elsewhere_leaves_the_original(tiny_bundle: Path, photos: Path, tmp_path: Path) -> None:
    before = Bundle.open(tiny_bundle).bundle_id
    ids = []
    for name, order in (("a", sorted(photos.iterdir())), ("b", sorted(photos.iterdir(), reverse=True))):
        result = mdmf("bank", "build", tiny_bundle, *order, "-o", tmp_path / name, "--max-signatures", 30)
        assert result.exit_code == 0
        ids.append(Bundle.open(tmp_path / name).bundle_id)
        assert len(Bundle.open(tmp_path / name).bank.signatures) == 30
    assert ids[0] == ids[1]
    assert Bundle.open(tiny_bundle).bundle_id == before


def test_build_counts_copies_and_broken_files(bundle_copy: Path, photos: Path, tmp_path: Path) -> None:
    folder = tmp_path / "reals"
    shutil.copytree(photos, folder)
    shutil.copy(folder / "photo00.jpg", folder / "copy.jpg")
    (folder / "cut.jpg").write_bytes((folder / "photo02.jpg").read_bytes()[:300])
    (folder / "notes.txt").write_text("not an image")
    result = mdmf("bank", "build", bundle_copy, folder)
    assert result.exit_code == 3
    assert "cut.jpg (truncated)" in result.stderr
    assert "photo00.jpg is" in result.stderr
    assert len(Bundle.open(bundle_copy).bank.sources) == 12
    lines = dict(line.split(maxsplit=1) for line in result.stdout.splitlines())
    assert (lines["duplicates"], lines["unreadable"], lines["skipped"]) == ("1", "1", "1")


def test_nothing_readable_changes_nothing(bundle_copy: Path, tmp_path: Path) -> None:
    before = Bundle.open(bundle_copy).bundle_id
    (tmp_path / "empty.jpg").write_bytes(b"")
    result = mdmf("bank", "build", bundle_copy, tmp_path / "empty.jpg")
    assert result.exit_code == 2
    assert result.stderr.splitlines()[-1].startswith("mdmf: bank: none of the 1 inputs is a readable image")
    assert Bundle.open(bundle_copy).bundle_id == before


def test_a_bundle_of_the_package_is_not_written_in_place(
    bundle_copy: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shipped = bundle_copy.rename(tmp_path / "starter.mdmf")
    for module in ("bundle", "rooms"):
        monkeypatch.setattr(f"mdmf_deploy.{module}.bundled", lambda name: tmp_path / f"{name}.mdmf")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/link").symlink_to(shipped)
    before = (shipped / "manifest.json").read_bytes()
    for given in ("starter", shipped, tmp_path / "elsewhere/link"):
        for command in (("bank", "build"), ("calibrate",)):
            result = mdmf(*command, given, photos)
            assert result.exit_code == 2
            assert "'starter' is part of the installed package; give -o" in result.stderr
        result = mdmf("verify", given)
        assert result.exit_code == 0
        assert "mdmf: not recorded: 'starter' is part of the installed package; give -o" in result.stderr
    own = tmp_path / "elsewhere/mine.mdmf"
    assert mdmf("verify", "starter", "-o", own).exit_code == 0
    assert len(Bundle.open(own).manifest.verification) == len(Bundle.open(shipped).manifest.verification) + 1
    assert Bundle.open(own).bundle_id == Bundle.open(shipped).bundle_id
    assert mdmf("verify", own, "-o", shipped).exit_code == 2
    assert mdmf("verify", "starter", "-o", own, "--no-record").exit_code == 2
    assert (shipped / "manifest.json").read_bytes() == before
    told = mdmf("detect", "--bundle", shipped, photos).stderr
    assert "run `mdmf calibrate starter REAL_PHOTOS -o mine.mdmf`" in told


def test_inspect_shows_the_bank(tiny_bundle: Path) -> None:
    bank = Bundle.open(tiny_bundle).bank
    told = json.loads(mdmf("bank", "inspect", tiny_bundle, "--json").stdout)
    assert (told["signatures"], told["width"]) == bank.signatures.shape
    assert told["images"] == len(bank.sources) == sum(told["folders"].values())
    assert told["bytes"] == (tiny_bundle / "bank.safetensors").stat().st_size
    assert list(told["quantiles"]) == ["0", "0.05", "0.25", "0.5", "0.75", "0.95", "1"]
    shown = mdmf("bank", "inspect", tiny_bundle)
    assert shown.exit_code == 0
    assert "leave-one-image-out scores" in shown.stdout
    assert f"{len(bank.signatures)} of width 8" in shown.stdout


def test_help_has_an_example() -> None:
    for command in ("build", "inspect"):
        assert "Example: mdmf bank" in " ".join(mdmf("bank", command, "--help").stdout.split())
