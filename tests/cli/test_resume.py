"""`mdmf detect --resume`: whatever stops a run, the next one does what is missing, and nothing twice."""

from __future__ import annotations

import csv
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pandas
import pytest
from helpers.mdmf import mdmf
from helpers.rows import timeless_lines
from typer.testing import Result

from mdmf_deploy.detection.rows import TIMINGS
from mdmf_deploy.files import only_writer

ENDINGS = (".jsonl", ".csv", ".parquet")


@pytest.fixture
def given(photos: Path, tmp_path: Path) -> Path:
    """A folder of 12 photographs."""
    return Path(shutil.copytree(photos, tmp_path / "given"))


def read(path: Path) -> list[dict[str, Any]]:
    """The rows of an output, as texts, without their timings."""
    if path.suffix == ".parquet":
        table = pandas.read_parquet(path).drop(columns=["input", "input_copy", "input_size", "input_mtime_ns"])
        rows = table.astype(object).where(table.notna(), None).to_dict("records")
        found = [{name: None if value is None else str(value) for name, value in row.items()} for row in rows]
    elif path.suffix == ".csv":
        with path.open(encoding="utf-8", newline="") as file:
            found = [{name: text or None for name, text in row.items()} for row in csv.DictReader(file)]
    else:
        found = timeless_lines(path.read_text(encoding="utf-8"))
    return [{**row, **dict.fromkeys(TIMINGS)} for row in found]


def by_uri(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(rows, key=lambda row: row["uri"])


def names(path: Path) -> list[str]:
    return [Path(row["uri"]).name for row in read(path)]


@pytest.fixture
def detect(calibrated: Path, given: Path) -> Any:
    """Run detect over the folder, with these arguments, on one runtime."""

    def run(*arguments: object, bundle: Path = calibrated) -> Result:
        return mdmf("detect", given, "--bundle", bundle, "--runtime", "onnxruntime", *arguments)

    return run


@pytest.mark.parametrize("ending", ENDINGS)
def test_only_what_is_missing_is_done(detect: Any, given: Path, tmp_path: Path, ending: str) -> None:
    whole, rows = tmp_path / f"whole{ending}", tmp_path / f"rows{ending}"
    assert detect("-o", whole, "--resume").exit_code == 0
    held_back = [path.rename(tmp_path / path.name) for path in sorted(given.iterdir())[3:7]]
    first = detect("-o", rows, "--resume")
    assert first.exit_code == 0
    assert first.stderr.splitlines()[-1].startswith(f"mdmf: wrote 8 rows to {rows}")
    for path in held_back:
        path.rename(given / path.name)
    second = detect("-o", rows, "--resume")
    assert f"mdmf: {rows} has 8 of 12 inputs; 4 are new" in second.stderr
    assert f"mdmf: wrote 4 rows to {rows}" in second.stderr
    assert by_uri(read(rows)) == by_uri(read(whole))
    if ending == ".jsonl":
        assert detect("-o", tmp_path / "plain.jsonl").exit_code == 0
        assert read(whole) == read(tmp_path / "plain.jsonl")
    files = [path for path in (rows, *rows.glob("*")) if path.is_file()]
    before = [(path, path.stat().st_mtime_ns) for path in files]
    third = detect("-o", rows, "--resume")
    assert third.exit_code == 0
    assert third.stderr.splitlines()[-1] == f"mdmf: nothing to do: 12 inputs are in {rows}"
    assert before == [(path, path.stat().st_mtime_ns) for path in files]


@pytest.mark.parametrize("ending", ENDINGS)
def test_changed_files_are_done_again_and_lost_ones_stay(detect: Any, given: Path, tmp_path: Path, ending: str) -> None:
    rows = tmp_path / f"rows{ending}"
    lost, changed, *_, last = sorted(given.iterdir())
    changed.write_bytes(b"no image")
    first = detect("-o", rows, "--resume")
    assert first.exit_code == 3
    lost.unlink()
    shutil.copy(last, changed)
    again = detect("-o", rows, "--resume")
    assert again.exit_code == 0
    lines = again.stderr.splitlines()
    assert f"mdmf: {rows} has 10 of 11 inputs, 1 changed or could not be read and are done again; 0 are new" in lines
    assert f"mdmf: {rows} keeps the rows of 1 input that are not given now" in lines
    found = {Path(row["uri"]).name: row for row in read(rows)}
    assert len(found) == len(read(rows)) == 12
    assert found[changed.name]["sha256"] == found[last.name]["sha256"]


def test_hashes_are_compared_if_asked(detect: Any, given: Path, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    assert detect("-o", rows, "--resume").exit_code == 0
    touched, changed, *_ = sorted(given.iterdir())
    os.utime(touched, ns=(0, 0))
    status = changed.stat()
    changed.write_bytes(changed.read_bytes()[::-1])
    os.utime(changed, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert "has 11 of 12 inputs, 1 changed" in detect("-o", rows, "--resume", "--verify").stderr
    assert names(rows)[-1] == changed.name


def test_what_could_not_be_read_is_tried_again(detect: Any, given: Path, tmp_path: Path) -> None:
    rows, late = tmp_path / "rows.jsonl", tmp_path / "late.jpg"
    first = detect(late, "-o", rows, "--resume")
    assert (first.exit_code, read(rows)[-1]["error_code"]) == (3, "missing")
    shutil.copy(next(given.iterdir()), late)
    assert detect(late, "-o", rows, "--resume").exit_code == 0
    assert len(read(rows)) == 13


def test_a_path_given_twice_has_two_rows(detect: Any, given: Path, tmp_path: Path) -> None:
    rows = tmp_path / "rows.csv"
    twice = min(given.iterdir())
    for count in (1, 3, 3):
        assert detect(*[twice] * count, "-o", rows, "--resume").exit_code == 0
        assert len(read(rows)) == 12 + count
    assert names(rows).count(twice.name) == 4


@pytest.mark.parametrize("ending", ENDINGS)
def test_other_settings_are_refused(detect: Any, tiny_bundle: Path, tmp_path: Path, ending: str) -> None:
    rows = tmp_path / f"rows{ending}"
    assert detect("-o", rows, "--resume").exit_code == 0
    before = read(rows)
    for arguments, differs in (
        ({"bundle": tiny_bundle}, "calibration_id "),
        ({}, "verdicts True there, False now; crops 1 there, 2 now)"),
    ):
        result = detect("-o", rows, "--resume", *([] if arguments else ["--crops", 2]), **arguments)
        assert result.exit_code == 2
        last = result.stderr.splitlines()[-1]
        assert f"{rows} was begun with other settings (" in last
        assert differs in last
    assert detect("-o", rows, "--resume", "--batch-size", 3, "--threads", 1).exit_code == 0
    assert read(rows) == before


@pytest.mark.skipif(os.name != "posix", reason="needs locks")
def test_a_second_run_into_one_output_is_refused(detect: Any, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    with only_writer(rows):
        result = detect("-o", rows, "--resume")
    assert result.exit_code == 2
    assert "another process is writing it" in result.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--resume"], "--resume goes on with an output; name it, such as -o rows.jsonl"),
        (["--resume", "-o", "rows.json"], "nothing can be added to a JSON array"),
        (["--verify"], "--verify is for runs that add to an output; give --resume as well, or leave it out"),
        (["--fsync", "-o", "rows.csv"], "--fsync is for runs that add to an output; give --resume as well"),
        (["--fsync", "--resume", "-o", "rows.parquet"], "--fsync is for .jsonl and .csv; parts are flushed"),
        (["--resume", "-o", "old.jsonl"], "has no journal (old.jsonl.resume) to go on from; choose another -o"),
        (["--resume", "-o", "given"], "choose one of .jsonl, .csv, .parquet"),
    ],
)
def test_wrong_options_are_refused(
    detect: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "old.jsonl").write_text("{}\n")
    result = detect(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert message in result.stderr.splitlines()[-1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["given", "old.jsonl"]


@pytest.mark.parametrize("ending", ENDINGS)
def test_exit_codes_judge_all_rows(detect: Any, given: Path, tmp_path: Path, ending: str) -> None:
    rows = tmp_path / f"rows{ending}"
    gate = ("-o", rows, "--resume", "--fail-on", "generated")
    results = [detect(*gate), detect(*gate)]
    assert [result.exit_code for result in results] == [1, 1]
    assert results[1].stderr.splitlines()[-1] == "mdmf: --fail-on: 4 generated of 12 images"
    (given / "new.jpg").write_bytes(b"no image")
    for _ in range(2):
        assert detect("-o", rows, "--resume").exit_code == 3


def test_without_resume_the_file_is_replaced(detect: Any, given: Path, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    detect("-o", rows, "--resume")
    next(given.iterdir()).unlink()
    result = detect("-o", rows)
    assert f"note: without --resume, all inputs are done anew, and {rows} is replaced at the end" in result.stderr
    assert len(read(rows)) == 11
    assert sorted(path.name for path in tmp_path.iterdir()) == ["given", "rows.jsonl"]


def test_heat_maps_of_earlier_runs_stay(detect: Any, given: Path, tmp_path: Path) -> None:
    rows, maps, sub = tmp_path / "rows.jsonl", tmp_path / "maps", tmp_path / "given" / "sub"
    assert detect("-o", rows, "--resume", "--heatmaps", maps).exit_code == 0
    before = {path.name: path.stat().st_mtime_ns for path in maps.iterdir()}
    sub.mkdir()
    shutil.copy(given / "photo00.jpg", sub)
    assert detect("-o", rows, "--resume", "--heatmaps", maps).exit_code == 0
    after = {path.name: path.stat().st_mtime_ns for path in maps.iterdir()}
    assert after.keys() - before.keys() == {"photo00-2.heatmap.jpg"}
    assert before.items() <= after.items()


def command(inputs: Path, bundle: Path, output: Path) -> list[str]:
    arguments = ["detect", f"@{inputs}", "--bundle", bundle, "--runtime", "onnxruntime", "-o", output, "--resume"]
    return [sys.executable, "-m", "mdmf_deploy", *map(str, arguments)]


def wait_for_rows(process: subprocess.Popen[bytes], path: Path, count: int) -> None:
    deadline = time.monotonic() + 60
    while process.poll() is None and (not path.exists() or path.read_bytes().count(b"\n") < count):
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.fixture
def many(given: Path, tmp_path: Path) -> Path:
    """A list of the photographs, each many times."""
    path = tmp_path / "list"
    path.write_text("".join(f"{path}\n" for path in sorted(given.iterdir())) * 20)
    return path


@pytest.mark.skipif(os.name != "posix", reason="needs signals")
def test_an_interrupt_says_how_to_go_on(calibrated: Path, many: Path, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    process = subprocess.Popen(command(many, calibrated, rows), stderr=subprocess.PIPE)
    try:
        wait_for_rows(process, rows, 5)
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 128 + signal.SIGTERM
    last = errors.decode().splitlines()[-1]
    assert last == f"mdmf: interrupted; finished rows are in {rows}; the same command goes on there"
    found = len(read(rows))
    assert 0 < found < 240
    (tmp_path / "list").write_text("".join(f"{row['uri']}\n" for row in read(rows)[:found]))
    done = mdmf(*command(tmp_path / "list", calibrated, rows)[3:])
    assert done.exit_code == 0
    assert f"nothing to do: {found} inputs are in {rows}" in done.stderr


@pytest.mark.skipif(os.name != "posix", reason="needs SIGKILL")
def test_kill_9_loses_and_doubles_nothing(calibrated: Path, many: Path, tmp_path: Path) -> None:
    seed = random.randrange(10**9)
    print(f"seed {seed}")
    rows, chosen = tmp_path / "rows.csv", random.Random(seed)
    rows_before = 0
    for _ in range(2):
        process = subprocess.Popen(command(many, calibrated, rows), stderr=subprocess.DEVNULL)
        try:
            wait_for_rows(process, rows, rows_before + 2)
            time.sleep(chosen.uniform(0, 0.2))
        finally:
            process.kill()
            process.wait()
        rows_before = rows.read_bytes().count(b"\n")
    result = mdmf(*command(many, calibrated, rows)[3:])
    assert result.exit_code == 0, result.stderr
    assert "".join(f"{row['uri']}\n" for row in read(rows)) == many.read_text()
