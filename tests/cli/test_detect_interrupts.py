"""`mdmf detect`, interrupted: finished rows are kept, and nothing crashes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers.child_processes import busy_child, gone, needs_proc
from helpers.rows import timeless_lines
from helpers.tiffs import slow_tiff

MODULE = ("-m", "mdmf_deploy")


def run(*arguments: object, program: tuple[str, str] = MODULE) -> subprocess.Popen[bytes]:
    command = [sys.executable, *program, "detect", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def has_finished_row(folder: Path) -> bool:
    """Return whether a row is finished for sure. A signal may come before the last one that is written counts."""
    return any(file.read_bytes().count(b"\n") > 1 for file in folder.glob(".rows.jsonl.*.mdmf-tmp"))


_SLOW_ENGINE = """
import sys, time
from mdmf_deploy.runtime import ort
call = ort.OrtEngine.__call__
ort.OrtEngine.__call__ = lambda self, images: (time.sleep(0.4), call(self, images))[1]
from mdmf_deploy.cli import main
main()
"""


@pytest.mark.skipif(os.name != "posix", reason="needs signals")
@pytest.mark.parametrize(
    ("slow", "numbers"), [(False, [signal.SIGTERM]), (True, [signal.SIGINT]), (True, [signal.SIGINT, signal.SIGINT])]
)
def test_an_interrupt_keeps_what_was_finished(
    calibrated: Path, photos: Path, tmp_path: Path, slow: bool, numbers: list[signal.Signals]
) -> None:
    """slow: whether the interrupt comes during a long call of the engine."""
    path = photos / "photo00.jpg"
    (tmp_path / "list").write_text(f"{path}\n" * 20_000)
    output, kept = tmp_path / "rows.jsonl", tmp_path / "rows.partial.jsonl"
    output.write_text("older\n")
    arguments = (f"@{tmp_path / 'list'}", "--bundle", calibrated, "--runtime", "onnxruntime", "-o", output)
    process = run(*arguments, program=("-c", _SLOW_ENGINE) if slow else MODULE)
    try:
        deadline = time.monotonic() + 60
        while not has_finished_row(tmp_path):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        for number in numbers:
            process.send_signal(number)
            time.sleep(0.2 if slow else 0)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 128 + numbers[0]
    assert output.read_text() == "older\n"
    rows = timeless_lines(kept.read_text())
    assert 0 < len(rows) < 20_000
    last = f"mdmf: interrupted; the {len(rows)} rows finished before are in {kept}; {output} is unchanged\n"
    assert errors.endswith(last.encode())
    assert all(row["uri"] == path.as_posix() and row["status"] == "ok" for row in rows)
    assert f"{len(rows)} of 20000 images".encode() in errors
    assert b"Traceback" not in errors
    assert sorted(file.name for file in tmp_path.iterdir()) == ["list", "rows.jsonl", "rows.partial.jsonl"]


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
