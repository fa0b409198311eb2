"""`mdmf detect --probe` and `--fdr`: verdicts that are taken away, in every output, refused where they cannot hold."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
from helpers.handmade import calibration_of
from helpers.mdmf import mdmf
from helpers.rows import timeless_lines

from mdmf_deploy.bundle.bundle import Bundle
from mdmf_deploy.detection.detector import Detector
from mdmf_deploy.detection.discoveries import judged_together
from mdmf_deploy.tasks.calibrate import write_calibration


@pytest.fixture
def bundle(bundle_copy: Path, photos: Path) -> Path:
    """A bundle with thresholds at 20%. Three of the 12 photographs have p-values of 1/151, five of 21/151."""
    with Detector(bundle_copy) as detector:
        scores = sorted(row.score or 0.0 for row in detector.detect(sorted(photos.iterdir())))
    opened = Bundle.open(bundle_copy)
    calibration = [0.5 * scores[0]] * 100 + [scores[3]] * 30 + [scores[8]] * 20
    write_calibration(opened, calibration_of(calibration, [0.2], 0.2, opened.bundle_id), bundle_copy)
    return bundle_copy


def detect(*arguments: object, code: int = 0, command: Sequence[str] = ("detect",)) -> tuple[str, str]:
    result = mdmf(*command, *arguments)
    assert result.exit_code == code, result.stderr
    return result.stdout, result.stderr


def read(path: Path) -> list[dict[str, Any]]:
    """Return the rows of any format: uri, verdict and the new columns, as texts."""
    if path.suffix == ".csv":
        with path.open(encoding="utf-8", newline="") as file:
            found = list(csv.DictReader(file))
    elif path.suffix == ".parquet":
        found = pyarrow.parquet.read_table(path).to_pylist()
    else:
        text = path.read_text(encoding="utf-8")
        found = json.loads(text) if path.suffix == ".json" else [json.loads(line) for line in text.splitlines()]
    columns = ("uri", "verdict", "reason", "q_value", "probes", "lowest_probe", "highest_probe")
    return [{name: None if row[name] in (None, "") else str(row[name]) for name in columns} for row in found]


def test_every_output_holds_the_rows_judged_together(bundle: Path, photos: Path, tmp_path: Path) -> None:
    with Detector(bundle, probe=True) as detector:
        wanted = judged_together(detector.detect(sorted(photos.iterdir())), 0.15)
    assert {row.reason for row in wanted} == {None, "unstable", "expected_by_chance"}
    assert {row.verdict for row in wanted} == {"real", "generated", "uncertain"}
    for ending in ("jsonl", "json", "csv", "parquet"):
        output = tmp_path / f"rows.{ending}"
        detect(photos, "--bundle", bundle, "--probe", "--fdr", "0.15", "-o", output)
        for row, expected in zip(read(output), wanted, strict=True):
            given = expected.to_dict()
            assert row == {name: None if given[name] is None else str(given[name]) for name in row}
    lines, _ = detect(photos, "--bundle", bundle, "--probe", "--fdr", "0.15", "--json")
    assert timeless_lines(lines) == timeless_lines((tmp_path / "rows.jsonl").read_text())
    table, _ = detect(photos, "--bundle", bundle, "--probe", "--fdr", "0.15")
    assert [line.split()[0] for line in table.splitlines()[1:]] == [row.verdict for row in wanted]
    assert "(unstable)" in table
    assert "(expected_by_chance)" in table


def test_counts_and_exit_codes_are_those_of_rows_judged_together(bundle: Path, photos: Path) -> None:
    _, errors = detect(photos, "--bundle", bundle, "--fail-on", "generated", code=1)
    assert "generated" in errors
    _, errors = detect(photos, "--bundle", bundle, "--fail-on", "generated", "--fdr", "0.001")
    assert "false discovery rate 0.001: 0 of " in errors
    assert "12 rows that have a threshold" in errors
    assert "note: with 150 calibration images the smallest p-value is 0.0066, so among 12 rows" in errors
    assert "with 11999 calibration images, one alone could stay" in errors
    assert "12 images: " in errors
    _, errors = detect(photos, "--bundle", bundle, "--fdr", "0.001", "--fail-on", "uncertain", code=1)
    _, errors = detect(photos, "--bundle", bundle, "--fdr", "0.9")
    assert "note: " not in errors


def test_stored_signatures_are_judged_together_in_the_same_way(bundle: Path, photos: Path, tmp_path: Path) -> None:
    full, again, kept = tmp_path / "full.jsonl", tmp_path / "again.jsonl", tmp_path / "kept"
    detect(photos, "--bundle", bundle, "--fdr", "0.15", "-o", full)
    detect(photos, "--bundle", bundle, "-o", tmp_path / "rows.jsonl", "--resume", "--keep-signatures", kept)
    _, errors = detect(kept, "--bundle", bundle, "--fdr", "0.15", "-o", again, command=["rescore"])
    assert timeless_lines(again.read_text()) == timeless_lines(full.read_text())
    assert "false discovery rate 0.15: " in errors


def test_a_run_with_probe_goes_on_and_refuses_another_setting(bundle: Path, photos: Path, tmp_path: Path) -> None:
    output, first = tmp_path / "rows.jsonl", min(photos.iterdir())
    detect(first, "--bundle", bundle, "--probe", "--resume", "-o", output)
    detect(photos, "--bundle", bundle, "--probe", "--resume", "-o", output)
    detect(photos, "--bundle", bundle, "--probe", "-o", tmp_path / "whole.jsonl")
    assert timeless_lines(output.read_text()) == timeless_lines((tmp_path / "whole.jsonl").read_text())
    _, errors = detect(photos, "--bundle", bundle, "--resume", "-o", output, code=2)
    assert "was begun with other settings (probe True there, False now)" in errors


def test_what_cannot_hold_is_refused_in_one_line(photos: Path, tmp_path: Path) -> None:
    output = tmp_path / "rows.jsonl"
    for arguments, text in (
        (["--fdr", "0.05", "--resume"], "--fdr judges all rows together at the end of one run, and --resume writes"),
        (["--fdr", "0.05", "--engine", "ray"], "and then run `mdmf rescore DIR --fdr 0.05`"),
        (["--probe", "--engine", "ray"], "--probe is for runs on this machine"),
        (["--fdr", "5"], "false discovery rate 5.0: must be between 0 and 1"),
    ):
        _, errors = detect(photos, "-o", output, *arguments, code=2)
        assert text in errors
        assert errors.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
