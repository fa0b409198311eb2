"""`mdmf detect` on bad bundles, bad places and misleading names: one line, or the row."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.mdmf import mdmf
from helpers.small_graphs import with_note
from typer.testing import Result

from mdmf_deploy.bundle.bundle import Bundle, write_bundle


def rows(result: Result) -> list[dict[str, Any]]:
    return [json.loads(line) for line in result.stdout.splitlines()]


def newer_schema(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> list[object]:
    manifest = json.loads((bundle / "manifest.json").read_text())
    (bundle / "manifest.json").write_text(json.dumps(manifest | {"schema_version": 99}))
    return []


def flipped_bit(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> list[object]:
    bank = bytearray((bundle / "bank.safetensors").read_bytes())
    bank[-1] ^= 1
    (bundle / "bank.safetensors").write_bytes(bank)
    return []


def foreign_bank(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> list[object]:
    opened = Bundle.open(bundle)
    files = {**opened.files(), "model.onnx": with_note(opened.model_path.read_bytes())}
    files.pop("calibration.json", None)
    write_bundle(bundle, opened.manifest, files)
    return []


def read_only_output(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> list[object]:
    opened = Path.open

    def refuse(self: Path, mode: str = "r", *rest: Any, **named: Any) -> Any:
        if "w" in mode:
            raise OSError(errno.EROFS, "Read-only file system", str(self))
        return opened(self, mode, *rest, **named)

    monkeypatch.setattr(Path, "open", refuse)
    return ["-o", bundle.parent / "rows.csv"]


def read_only_heatmaps(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> list[object]:
    def refuse(self: Path, *rest: Any, **named: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(self))

    monkeypatch.setattr(Path, "mkdir", refuse)
    return ["--heatmaps", bundle.parent / "maps"]


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (newer_schema, "schema 99 is newer than"),
        (flipped_bit, "bank.safetensors: hash"),
        (foreign_bank, "its signatures come from another model"),
        (read_only_output, "rows.csv: Read-only file system; choose a place you can write to"),
        (read_only_heatmaps, "maps: Permission denied; choose a folder you can write to"),
    ],
)
def test_bad_bundles_and_places_are_one_line(
    bundle_copy: Path,
    photos: Path,
    monkeypatch: pytest.MonkeyPatch,
    break_it: Callable[[Path, pytest.MonkeyPatch], list[object]],
    message: str,
) -> None:
    arguments = break_it(bundle_copy, monkeypatch)
    before = sorted(bundle_copy.parent.iterdir())
    result = mdmf("detect", photos, "--bundle", bundle_copy, "--runtime", "onnxruntime", *arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    errors = [line for line in result.stderr.splitlines() if "warning:" not in line]
    assert len(errors) == 1
    assert errors[0].startswith("mdmf: ")
    assert message in errors[0]
    assert sorted(bundle_copy.parent.iterdir()) == before


def test_content_decides_the_format_and_a_folder_is_a_folder(tiny_bundle: Path, photos: Path, tmp_path: Path) -> None:
    shutil.copy(photos / "photo01.png", tmp_path / "really-a-png.jpg")
    result = mdmf("detect", tmp_path / "really-a-png.jpg", "--bundle", tiny_bundle, "--json")
    assert result.exit_code == 0
    assert [(row["status"], row["format"]) for row in rows(result)] == [("ok", "png")]
    (tmp_path / "folder.jpg").mkdir()
    shutil.copy(photos / "photo00.jpg", tmp_path / "folder.jpg/in.jpg")
    result = mdmf("detect", tmp_path / "folder.jpg", photos / "photo02.jpg", "--bundle", tiny_bundle, "--json")
    assert result.exit_code == 0
    assert [Path(row["uri"]).name for row in rows(result)] == ["in.jpg", "photo02.jpg"]
