"""`mdmf detect --keep-signatures` and `mdmf rescore`: the rows of a full run, from a folder that runs can add to."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from helpers.mdmf import mdmf
from helpers.rows import timeless_lines

from mdmf_deploy.detection.outputs import signatures as signatures_module
from mdmf_deploy.detection.outputs.stored import StoredSignatures


@pytest.fixture(scope="module")
def inputs(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of seven photographs, and a file that is none."""
    folder = tmp_path_factory.mktemp("inputs")
    for path in sorted(photos.iterdir())[:7]:
        shutil.copy(path, folder)
    (folder / "photo03b.jpg").write_bytes(b"not an image")
    return folder


def rows_of(path: Path) -> list[dict[str, Any]]:
    return timeless_lines(path.read_text(encoding="utf-8"))


def detect(*arguments: object, code: int = 3) -> str:
    result = mdmf("detect", *arguments, "--runtime", "onnxruntime")
    assert result.exit_code == code, result.stderr
    return result.stderr


@pytest.mark.parametrize("type", ["fp32", "fp16"])
def test_a_folder_is_detected_once_and_judged_with_two_bundles(
    type: str, inputs: Path, tiny_bundle: Path, calibrated: Path, tmp_path: Path
) -> None:
    kept, rows = tmp_path / "kept", tmp_path / "rows.jsonl"
    detect(inputs, "--bundle", tiny_bundle, "-o", rows, "--keep-signatures", kept, "--signature-type", type)
    detect(inputs, "--bundle", calibrated, "-o", tmp_path / "full.jsonl")
    result = mdmf("rescore", kept, "--bundle", calibrated, "--json")
    assert result.exit_code == 3
    assert "8 images: " in result.stderr
    assert "1 unreadable" in result.stderr
    found, full = timeless_lines(result.stdout), rows_of(tmp_path / "full.jsonl")
    if type == "fp16":
        assert [row.pop("score") for row in found] == pytest.approx([row.pop("score") for row in full], abs=2e-3)
        p_values = [(a.pop("p_value"), b.pop("p_value")) for a, b in zip(found, full, strict=True)]
        assert [a is None for a, _ in p_values] == [b is None for _, b in p_values]
    assert found == full
    assert {row["verdict"] for row in found} >= {"error", "generated"}
    for ending in ("csv", "parquet", "jsonl"):
        output = tmp_path / f"rows.{ending}"
        result = mdmf("rescore", kept, "--bundle", tiny_bundle, "-o", output)
        assert (result.exit_code, output.exists()) == (3, True)
        assert f"wrote 8 rows to {output}" in result.stderr


def test_exit_codes_are_those_of_detect(inputs: Path, tiny_bundle: Path, calibrated: Path, tmp_path: Path) -> None:
    detect(inputs, "--bundle", calibrated, "--keep-signatures", tmp_path / "kept")
    table = mdmf("rescore", tmp_path / "kept", "--bundle", calibrated, "--fail-on", "generated")
    assert table.exit_code == 1
    assert "--fail-on: " in table.stderr
    assert table.stdout.splitlines()[0].startswith("verdict")
    assert len(table.stdout.splitlines()) == 9
    withheld = mdmf("rescore", tmp_path / "kept", "--bundle", tiny_bundle, "--fail-on", "generated")
    assert withheld.exit_code == 2
    assert "--fail-on cannot be judged" in withheld.stderr
    other = mdmf("rescore", tmp_path / "kept", "--bundle", "starter")
    assert other.exit_code == 2
    assert "these signatures are not those of" in other.stderr
    assert len(other.stderr.splitlines()) == 1
    nowhere = mdmf("rescore", tmp_path / "nowhere", "--bundle", calibrated, "-o", tmp_path / "rows.csv")
    assert (nowhere.exit_code, (tmp_path / "rows.csv").exists()) == (2, False)


def test_a_folder_with_signatures_is_added_to_with_resume_alone(
    inputs: Path, tiny_bundle: Path, tmp_path: Path
) -> None:
    kept = tmp_path / "kept"
    options = ("--bundle", tiny_bundle, "--keep-signatures", kept)
    detect(inputs / "photo00.jpg", *options, "-o", tmp_path / "rows.jsonl", code=0)
    said = detect(inputs, *options, "-o", tmp_path / "other.jsonl", code=2)
    assert f"{kept} holds results already; give --resume" in said
    assert not (tmp_path / "other.jsonl").exists()
    # Inputs that only one of the two outputs holds are done again.
    detect(inputs, *options, "-o", tmp_path / "other.jsonl", "--resume")
    said = detect(inputs, *options, "-o", tmp_path / "other.jsonl", "--resume")
    assert "nothing to do: 8 inputs are in" in said
    found = mdmf("rescore", kept, "--bundle", tiny_bundle, "--json")
    in_order = sorted(timeless_lines(found.stdout), key=lambda row: row["uri"])
    assert in_order == sorted(rows_of(tmp_path / "other.jsonl"), key=lambda row: row["uri"])
    assert len(in_order) == 8


def test_what_one_output_lacks_is_done_again_in_both(
    inputs: Path, tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a kill between the rows of an input and the part with its signatures."""
    monkeypatch.setattr(signatures_module, "PART_BYTES", 1)  # a part for each input with signatures
    kept, rows = tmp_path / "kept", tmp_path / "rows.jsonl"
    options = ("--bundle", tiny_bundle, "--keep-signatures", kept, "-o", rows, "--resume")
    detect(inputs, *options)
    before = rows_of(rows)
    parts = StoredSignatures.open(str(kept)).parts
    assert len(parts) == 7
    Path(parts[2].path).unlink()
    said = detect(inputs, *options)
    assert f"{rows} has 7 of 8 inputs, 1 changed or could not be read and are done again; 0 are new" in said
    found = json.loads(f"[{','.join(mdmf('rescore', kept, '--bundle', tiny_bundle, '--json').stdout.splitlines())}]")
    assert sorted(row["uri"] for row in found) == sorted(row["uri"] for row in before)
    assert sorted(rows_of(rows), key=lambda row: row["uri"]) == sorted(before, key=lambda row: row["uri"])
    os.utime(min(inputs.iterdir()), ns=(1, 1))  # changed, so that its old signatures are superseded
    detect(inputs, *options)
    assert len(StoredSignatures.open(str(kept))) == 8


def test_an_interrupt_keeps_the_signatures_of_finished_rows(
    inputs: Path, tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add = signatures_module.SignatureKeeper.add
    done = []

    def interrupted(self: signatures_module.SignatureKeeper, key: Any) -> None:
        add(self, key)
        done.append(key)
        if len(done) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(signatures_module.SignatureKeeper, "add", interrupted)
    kept, rows = tmp_path / "kept", tmp_path / "rows.jsonl"
    options = ("--bundle", tiny_bundle, "--keep-signatures", kept, "-o", rows, "--resume")
    detect(inputs, *options, code=130)
    assert len(StoredSignatures.open(str(kept))) == len(rows_of(rows)) == 3
    monkeypatch.undo()
    assert "has 3 of 8 inputs; 5 are new" in detect(inputs, *options)
    found = timeless_lines(mdmf("rescore", kept, "--bundle", tiny_bundle, "--json").stdout)
    assert found == rows_of(rows)


def test_signatures_can_be_kept_where_a_url_says(tiny_bundle: Path, photos: Path, tmp_path: Path) -> None:
    rows, kept = tmp_path / "rows.csv", tmp_path / "kept"
    done = mdmf("detect", photos, "--bundle", tiny_bundle, "-o", rows, "--keep-signatures", kept.as_uri())
    assert done.exit_code == 0, done.output
    again = mdmf("rescore", kept, "--bundle", tiny_bundle, "--json")
    assert len(again.stdout.splitlines()) == len(list(photos.iterdir()))
    away = "s3://IDENTITY:hushhush@bucket/kept?no_such_option=1"
    refused = mdmf("detect", photos, "--bundle", tiny_bundle, "--keep-signatures", away)
    assert refused.exit_code == 2
    assert "hushhush" not in refused.output
    assert "s3://bucket" in refused.stderr
