"""`mdmf detect`: one row an input, in order, and the exit code that says how it went."""

from __future__ import annotations

import csv
import errno
import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
from helpers.mdmf import mdmf
from helpers.rows import timeless_lines
from helpers.tiffs import slow_tiff
from PIL import Image
from typer.testing import Result

from mdmf_deploy.detection.detector import Detector
from mdmf_deploy.detection.rows import COLUMNS, TIMINGS
from mdmf_deploy.errors import RuntimeUnavailable


def detect(*arguments: object, stdin: str | None = None) -> Result:
    return mdmf("detect", *arguments, stdin=stdin)


def run(*arguments: object, **options: Any) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "mdmf_deploy", "detect", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)


@pytest.fixture
def mixed(photos: Path, tmp_path: Path) -> Path:
    """A folder of 12 photographs, 2 broken images and 2 other files."""
    folder = Path(shutil.copytree(photos, tmp_path / "mixed"))
    (folder / "cut.jpg").write_bytes((folder / "photo00.jpg").read_bytes()[:500])
    (folder / "zero.png").touch()
    (folder / "notes.txt").touch()
    (folder / "sub").mkdir()
    (folder / "sub" / "more.md").touch()
    return folder


def test_the_table_has_one_line_an_input(calibrated: Path, photos: Path) -> None:
    result = detect(photos, "--bundle", calibrated)
    assert result.exit_code == 0
    header, *lines = result.stdout.splitlines()
    assert header.split() == ["verdict", "score", "p", "threshold", "size", "image"]
    assert [line.split()[-1] for line in lines] == [path.as_posix() for path in sorted(photos.iterdir())]
    assert sum(line.startswith("generated ") for line in lines) == 4
    assert "\x1b" not in result.stdout
    summary = result.stderr.splitlines()[-2]
    assert summary.startswith("mdmf: 12 images: ")
    assert "4 generated" in summary
    assert result.stderr.endswith(" images/s\n")


def test_unreadable_inputs_cost_their_own_rows_and_exit_3(calibrated: Path, mixed: Path) -> None:
    result = detect(mixed, mixed / "nowhere.jpg", mixed / "notes.txt", "--bundle", calibrated, "--json")
    assert result.exit_code == 3
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert len(rows) == 16
    codes = {Path(row["uri"]).name: row["error_code"] for row in rows if row["status"] == "error"}
    assert codes == {"cut.jpg": "truncated", "zero.png": "empty", "nowhere.jpg": "missing", "notes.txt": "empty"}
    assert "4 unreadable" in result.stderr
    assert result.stderr.rstrip().endswith("; 2 other files in folders skipped (.md 1, .txt 1)")
    assert "cut.jpg  (truncated: jpeg: it ends early" in detect(mixed / "cut.jpg", "--bundle", calibrated).stdout


def test_rows_are_the_same_for_every_batch_size_and_run(calibrated: Path, mixed: Path) -> None:
    outputs = [
        timeless_lines(detect(mixed, mixed, "--bundle", calibrated, "--json", "--batch-size", size).stdout)
        for size in (32, 32, 1, 7)
    ]
    assert len(outputs[0]) == 28
    assert all(output == outputs[0] for output in outputs)


def test_every_output_holds_the_same_rows(calibrated: Path, mixed: Path, tmp_path: Path) -> None:
    printed = timeless_lines(detect(mixed, "--bundle", calibrated, "--json").stdout)
    assert all(tuple(row) == COLUMNS for row in printed)
    for ending in ("jsonl", "csv", "parquet"):
        path = tmp_path / f"rows.{ending}"
        result = detect(mixed, "--bundle", calibrated, "-o", path)
        assert (result.exit_code, result.stdout) == (3, "")
        assert result.stderr.splitlines()[-1] == f"mdmf: wrote {len(printed)} rows to {path}"
        if ending == "jsonl":
            assert timeless_lines(path.read_text(encoding="utf-8")) == printed
        elif ending == "parquet":
            table = pyarrow.parquet.read_table(path).to_pylist()
            assert [{**row, **dict.fromkeys(TIMINGS)} for row in table] == printed
        else:
            with path.open(encoding="utf-8", newline="") as file:
                found = list(csv.DictReader(file))
            for row, wanted in zip(found, printed, strict=True):
                assert row["uri"] == wanted["uri"]
                assert row["score"] == ("" if wanted["score"] is None else repr(wanted["score"]))


def test_a_list_on_stdin(calibrated: Path, photos: Path) -> None:
    names = [photos / "photo02.jpg", photos / "photo01.png"]
    result = detect("-", "--bundle", calibrated, "--json", stdin="\n".join(map(str, names)))
    assert [row["uri"] for row in timeless_lines(result.stdout)] == [name.as_posix() for name in names]


def test_odd_names_are_written_printably(calibrated: Path, photos: Path, tmp_path: Path) -> None:
    name = os.fsencode(tmp_path) + b"/caf\xe9\n.jpg"
    try:
        shutil.copy(photos / "photo00.jpg", name)
    except (OSError, UnicodeDecodeError):
        pytest.skip("this file system takes no such name")
    result = detect(tmp_path, "--bundle", calibrated)
    assert result.exit_code == 0
    assert result.stdout.splitlines()[1].endswith(r"/caf\xe9\x0a.jpg")


@pytest.mark.parametrize(
    ("verdicts", "code"), [(["generated"], 1), (["uncertain"], 0), (["uncertain", "generated"], 1)]
)
def test_fail_on_is_a_gate(calibrated: Path, photos: Path, tmp_path: Path, verdicts: list[str], code: int) -> None:
    asked = [part for verdict in verdicts for part in ("--fail-on", verdict)]
    result = detect(photos, "--bundle", calibrated, "-o", tmp_path / "rows.jsonl", *asked)
    assert result.exit_code == code
    # The gate fails only after every row is written.
    rows = timeless_lines((tmp_path / "rows.jsonl").read_text())
    assert len(rows) == 12
    assert not any(row["verdict"] == "uncertain" for row in rows)
    assert ("mdmf: --fail-on: 4 generated of 12 images" in result.stderr) == (code == 1)


def test_a_refused_verdict_comes_before_unreadable_inputs(calibrated: Path, mixed: Path) -> None:
    assert detect(mixed, "--bundle", calibrated, "--fail-on", "generated").exit_code == 1


def test_a_gate_without_verdicts_does_not_pass(tiny_bundle: Path, calibrated: Path, photos: Path) -> None:
    result = detect(photos, "--bundle", tiny_bundle, "--fail-on", "generated")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "--fail-on cannot be judged" in result.stderr
    assert "run `mdmf calibrate" in result.stderr
    assert detect(photos, "--bundle", calibrated, "--fail-on", "generated", "--crops", 2).exit_code == 2


def test_withheld_verdicts_give_one_warning(tiny_bundle: Path, photos: Path) -> None:
    result = detect(photos, "--bundle", tiny_bundle)
    assert result.exit_code == 0
    assert result.stderr.count("warning") == 1
    assert "run `mdmf calibrate" in result.stderr
    assert result.stdout.count("uncalibrated ") == 12


def test_heat_maps(calibrated: Path, mixed: Path, tmp_path: Path) -> None:
    given = [mixed / name for name in ("photo00.jpg", "cut.jpg", "photo01.png")]
    result = detect(*given, "--bundle", calibrated, "--heatmaps", tmp_path / "maps")
    assert result.exit_code == 3
    assert result.stderr.splitlines()[-1] == f"mdmf: wrote heat maps to {tmp_path / 'maps'}"
    assert sorted(path.name for path in (tmp_path / "maps").iterdir()) == [
        "photo00.heatmap.jpg",
        "photo01.heatmap.jpg",
    ]
    again = detect(
        *given, "--bundle", calibrated, "--heatmaps", tmp_path / "several", "--crops", 4, "--heatmap-format", "png"
    )
    assert again.exit_code == 3
    assert sorted(path.suffix for path in (tmp_path / "several").iterdir()) == [".png", ".png"]
    own = detect(*given, "--bundle", calibrated, "--heatmaps", tmp_path / "own", "--heatmap-scale", "image")
    assert own.stdout == result.stdout
    name = "photo00.heatmap.jpg"
    assert (tmp_path / "own" / name).read_bytes() != (tmp_path / "maps" / name).read_bytes()


def test_a_full_disk_costs_heat_maps_not_rows(
    calibrated: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = Path.write_bytes

    def full(self: Path, data: bytes) -> int:
        written(self, data[:100])
        raise OSError(errno.ENOSPC, "No space left on device", str(self))

    monkeypatch.setattr(Path, "write_bytes", full)
    rows = tmp_path / "rows.jsonl"
    given = sorted(photos.iterdir())[:3]
    result = detect(*given, "--bundle", calibrated, "--heatmaps", tmp_path / "maps", "-o", rows, "-q")
    assert result.exit_code == 0
    assert len(timeless_lines(rows.read_text())) == 3
    lost = "mdmf: warning: no heat map of {}: No space left on device"
    assert result.stderr.splitlines() == [lost.format(path) for path in given]
    assert list((tmp_path / "maps").iterdir()) == []


@pytest.mark.parametrize("inside", [True, False])
def test_heat_maps_among_the_inputs_are_announced(inside: bool, calibrated: Path, photos: Path, tmp_path: Path) -> None:
    folder = tmp_path / "given"
    folder.mkdir()
    shutil.copy(next(photos.iterdir()), folder)
    maps = (folder if inside else tmp_path) / "maps"
    result = detect(folder, "--bundle", calibrated, "--heatmaps", maps)
    assert ("the next run would judge its heat maps as well" in result.stderr) is inside


def test_quiet_prints_only_rows(calibrated: Path, photos: Path) -> None:
    result = detect(photos, "--bundle", calibrated, "--runtime", "onnxruntime", "-q")
    assert (result.exit_code, result.stderr) == (0, "")


def test_options_reach_the_detector(calibrated: Path, photos: Path) -> None:
    small = detect(photos, "--bundle", calibrated, "--json", "--max-pixels", 100)
    assert small.exit_code == 3
    assert {row["error_code"] for row in timeless_lines(small.stdout)} == {"too_many_pixels"}
    several = detect(photos, "--bundle", calibrated, "--json", "--crops", 4, "--threads", 1)
    assert {row["crop"] for row in timeless_lines(several.stdout)} == {"grid 2x2"}
    assert "thresholds hold for the bundle's crop plan (up to 1 an image), not for 4" in several.stderr
    assert "warning" not in detect(photos, "--bundle", calibrated, "--json", "--crops", 1).stderr
    assert detect(photos, "--bundle", calibrated, "--runtime", "quantum").exit_code == 2


def test_the_limits_on_memory_and_time_are_options(calibrated: Path, tmp_path: Path) -> None:
    Image.effect_noise((1000, 800), 50).convert("RGB").save(tmp_path / "a.tif")
    (tmp_path / "b.tif").write_bytes(slow_tiff())
    result = detect(tmp_path, "--bundle", calibrated, "--json", "--max-memory", 1, "--max-seconds", 0.2)
    assert [row["error_code"] for row in timeless_lines(result.stdout)] == ["too_much_memory", "too_much_memory"]
    result = detect(tmp_path, "--bundle", calibrated, "--json", "--max-memory", 1000, "--max-seconds", 0.2)
    assert [row["error_code"] for row in timeless_lines(result.stdout)] == [None, "too_slow"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-o", "rows.xlsx"], "choose one of .jsonl, .json, .csv, .parquet"),
        (["-o", "empty"], "-o empty is a folder; give the name of a file that ends in one of .jsonl, .json, .csv"),
        (["-o", "missing/rows.csv"], "choose a place you can write to"),
        (["-o", "rows.csv", "--json"], "give one of the two"),
        (["--heatmaps", "file"], "choose a folder you can write to"),
        (["--bundle", "file"], "give a .mdmf folder"),
        (["empty"], "no images in empty (0 other files skipped)"),
        (["no*.jpg"], "matches nothing"),
    ],
)
def test_wrong_options_are_errors_before_scoring(
    calibrated: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    result = detect("--bundle", calibrated, photos, *arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert message in result.stderr.splitlines()[-1]
    assert "Traceback" not in result.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "file"]


def test_a_damaged_bundle_leaves_no_output(calibrated: Path, photos: Path, tmp_path: Path) -> None:
    damaged = Path(shutil.copytree(calibrated, tmp_path / "damaged.mdmf"))
    model = bytearray((damaged / "model.onnx").read_bytes())
    model[len(model) // 2] ^= 1
    (damaged / "model.onnx").write_bytes(model)
    result = detect(photos, "--bundle", damaged, "-o", tmp_path / "rows.csv")
    assert result.exit_code == 2
    assert "model.onnx: hash" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["damaged.mdmf"]


def test_finished_rows_are_kept_if_the_runtime_fails(
    calibrated: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Detector(calibrated) as detector:
        kind = type(detector.engine)
    # The first call is for the bundle's own probes.
    call, calls = kind.__call__, iter(range(-1, 12))

    def third_fails(self: object, crops: object) -> object:
        if next(calls) == 2:
            raise RuntimeUnavailable("the runtime is gone")
        return call(self, crops)  # type: ignore[arg-type]

    monkeypatch.setattr(kind, "__call__", third_fails)
    result = detect(photos, "--bundle", calibrated, "--batch-size", 5, "-o", tmp_path / "rows.jsonl")
    assert result.exit_code == 2
    kept = tmp_path / "rows.partial.jsonl"
    message = f"mdmf: the runtime is gone; the 10 rows finished before are in {kept}"
    assert result.stderr.splitlines()[-1] == message
    assert len(timeless_lines(kept.read_text())) == 10
    assert list(tmp_path.iterdir()) == [kept]


def test_a_row_that_cannot_be_written_ends_the_stream_before_its_engine_is_closed(
    calibrated: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    running: list[str] = []
    close = Detector.close

    def closed(self: Detector) -> None:
        running.extend(thread.name for thread in threading.enumerate())
        close(self)

    monkeypatch.setattr(Detector, "close", closed)
    monkeypatch.setattr("mdmf_deploy.detection.rows.json_line", lambda row: 1 / 0)
    result = detect(photos, "--bundle", calibrated, "--batch-size", 1, "--json")
    assert isinstance(result.exception, ZeroDivisionError)
    assert {"MainThread", "mdmf-engine"} & set(running) == {"MainThread"}


def test_a_reader_that_leaves_early_is_no_crash(calibrated: Path, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "list").write_text(f"{photos / 'photo00.jpg'}\n" * 20_000)
    process = run(f"@{tmp_path / 'list'}", "--bundle", calibrated, "--json")
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    errors = process.stderr.read()
    process.stderr.close()
    assert process.wait(60) == 141
    assert b"Traceback" not in errors


def test_no_encoding_of_a_terminal_is_a_crash(calibrated: Path, photos: Path, tmp_path: Path) -> None:
    shutil.copy(photos / "photo00.jpg", tmp_path / "caf\u00e9.jpg")
    # Both formats in one process.
    code = (
        "import sys\n"
        "from mdmf_deploy.__main__ import main\n"
        "for words in ([], ['--json']):\n"
        f"    sys.argv = ['mdmf', 'detect', {str(tmp_path)!r}, '--bundle', {str(calibrated)!r}, *words]\n"
        "    try:\n"
        "        main()\n"
        "    except SystemExit as end:\n"
        "        assert not end.code\n"
    )
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    table, _, rows = done.stdout.partition(b"{")
    assert rb"caf\xe9.jpg" in table
    assert "caf\u00e9.jpg".encode() in rows


def test_nothing_unneeded_is_imported(calibrated: Path, photos: Path) -> None:
    code = (
        "import sys\n"
        "from mdmf_deploy.cli import app\n"
        f"app(['detect', {str(photos / 'photo00.jpg')!r}, '--bundle', {str(calibrated)!r}], standalone_mode=False)\n"
        "heavy = {'torch', 'onnx', 'pyarrow', 'rich.progress', 'sklearn', 'matplotlib', 'PIL.ImageDraw'}\n"
        "sys.exit(', '.join(heavy & set(sys.modules)) or 0)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr.splitlines()[-2][:14]) == (0, "mdmf: 1 image:")
