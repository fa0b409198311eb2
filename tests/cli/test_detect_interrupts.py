"""`mdmf detect`, interrupted: finished rows are kept, and nothing crashes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from helpers.child_processes import busy_child, gone, needs_proc
from helpers.rows import timeless_lines
from helpers.tiffs import slow_tiff


def run(*arguments: object, **options: Any) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "mdmf_deploy", "detect", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)


def has_finished_row(folder: Path) -> bool:
    """Return whether a row is finished for sure. A signal may come before the last one that is written counts."""
    return any(file.read_bytes().count(b"\n") > 1 for file in folder.glob(".rows.jsonl.*.mdmf-tmp"))


@pytest.mark.skipif(os.name != "posix", reason="needs signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_keeps_what_was_finished(calibrated: Path, photos: Path, tmp_path: Path, number: int) -> None:
    path = photos / "photo00.jpg"
    (tmp_path / "list").write_text(f"{path}\n" * 20_000)
    output, kept = tmp_path / "rows.jsonl", tmp_path / "rows.partial.jsonl"
    output.write_text("older\n")
    process = run(f"@{tmp_path / 'list'}", "--bundle", calibrated, "-o", output)
    try:
        deadline = time.monotonic() + 60
        while not has_finished_row(tmp_path):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 128 + number
    assert output.read_text() == "older\n"
    rows = timeless_lines(kept.read_text())
    assert 0 < len(rows) < 20_000
    last = f"mdmf: interrupted; the {len(rows)} rows finished before are in {kept}; {output} is unchanged\n"
    assert errors.endswith(last.encode())
    assert all(row["uri"] == path.as_posix() and row["status"] == "ok" for row in rows)
    assert f"{len(rows)} of 20000 images".encode() in errors
    assert b"Traceback" not in errors
    assert sorted(file.name for file in tmp_path.iterdir()) == ["list", "rows.jsonl", "rows.partial.jsonl"]


_SLOW_ENGINE = """
import sys, time
from mdmf_deploy.runtime import ort
call = ort.OrtEngine.__call__
ort.OrtEngine.__call__ = lambda self, images: (time.sleep(0.4), call(self, images))[1]
from mdmf_deploy.cli import main
main()
"""


@pytest.mark.skipif(os.name != "posix", reason="needs SIGINT")
@pytest.mark.parametrize("interrupts", [1, 2])
def test_an_interrupt_during_a_long_call_of_the_engine(
    calibrated: Path, photos: Path, tmp_path: Path, interrupts: int
) -> None:
    (tmp_path / "list").write_text(f"{photos / 'photo00.jpg'}\n" * 2000)
    output = tmp_path / "rows.jsonl"
    arguments = ("detect", f"@{tmp_path / 'list'}", "--bundle", calibrated, "--runtime", "onnxruntime", "-o", output)
    process = subprocess.Popen([sys.executable, "-c", _SLOW_ENGINE, *map(str, arguments)], stderr=subprocess.PIPE)
    try:
        deadline = time.monotonic() + 60
        while not has_finished_row(tmp_path):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        for _ in range(interrupts):
            process.send_signal(signal.SIGINT)
            time.sleep(0.2)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130
    rows = timeless_lines((tmp_path / "rows.partial.jsonl").read_text())
    assert 0 < len(rows) < 2000
    assert f"{len(rows)} of 2000 images".encode() in errors
    assert b"Traceback" not in errors
    assert sorted(file.name for file in tmp_path.iterdir()) == ["list", "rows.partial.jsonl"]


@needs_proc
def test_an_interrupt_does_not_wait_for_an_image_that_takes_minutes(calibrated: Path, tmp_path: Path) -> None:
    (tmp_path / "slow.tif").write_bytes(slow_tiff())
    process = run(tmp_path / "slow.tif", "--bundle", calibrated, "--max-seconds", 600)
    try:
        child = busy_child(process.pid)
        process.send_signal(signal.SIGINT)
        rows, errors = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130
    assert gone(child)
    assert not rows
    assert b"0 of 1 images" in errors
    assert b"Traceback" not in errors
