"""An output of rows has one writer, and what earlier runs left beside it does not pile up."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mdmf_deploy.detection.outputs import WRITERS, open_output
from mdmf_deploy.detection.rows import Row
from mdmf_deploy.errors import UsageError

ROW = Row(uri="a.jpg", score=0.5, verdict="real")

# Is killed when it has written a row.
KILLED = """
import os, signal, sys
from pathlib import Path
from mdmf_deploy.detection.outputs import open_output
from mdmf_deploy.detection.rows import Row
with open_output(Path(sys.argv[1])) as writer:
    writer.write(Row(uri="a.jpg"))
    os._exit(9)
"""


def write(path: Path, rows: int, error: BaseException | None = None) -> None:
    with open_output(path) as writer:
        for _ in range(rows):
            writer.write(ROW)
        if error is not None:
            raise error


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_partial_file_takes_the_place_of_an_earlier_one(tmp_path: Path) -> None:
    path, partial = tmp_path / "rows.jsonl", tmp_path / "rows.partial.jsonl"
    for rows in (3, 2):
        with pytest.raises(KeyboardInterrupt):
            write(path, rows, KeyboardInterrupt())
        assert partial.read_bytes().count(b"\n") == rows
    with pytest.raises(KeyboardInterrupt):
        write(path, 0, KeyboardInterrupt())
    assert names(tmp_path) == ["rows.partial.jsonl"]
    write(path, 4)
    assert (path.read_bytes().count(b"\n"), partial.read_bytes().count(b"\n")) == (4, 2)


@pytest.mark.skipif(os.name != "posix", reason="no such locks on Windows")
@pytest.mark.parametrize("ending", WRITERS)
def test_a_second_writer_is_refused_and_harms_nothing(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"rows{ending}"
    write(path, 1)
    before = path.read_bytes()
    with open_output(path) as writer:
        with pytest.raises(UsageError, match=rf"rows\{ending}: another process is writing it"), open_output(path):
            pytest.fail("opened")
        assert path.read_bytes() == before
        writer.write(ROW)
        writer.write(ROW)
    assert path.read_bytes() != before
    assert names(tmp_path) == [path.name]


@pytest.mark.skipif(os.name != "posix", reason="no such locks on Windows")
def test_the_next_run_removes_what_a_killed_one_left(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    assert subprocess.run([sys.executable, "-c", KILLED, str(path)], check=False).returncode == 9
    assert len(names(tmp_path)) == 2  # the lock and the rows
    write(path, 1)
    assert names(tmp_path) == ["rows.jsonl"]


@pytest.mark.skipif(os.name != "posix", reason="folders cannot be flushed")
def test_a_failed_flush_of_the_name_does_not_call_the_rows_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, fsync = tmp_path / "rows.jsonl", os.fsync
    write(path, 1)

    def fail(descriptor: int) -> None:
        if os.path.sameopenfile(descriptor, parent):
            raise OSError(errno.EIO, "Input/output error")
        fsync(descriptor)

    parent = os.open(tmp_path, os.O_RDONLY)
    monkeypatch.setattr(os, "fsync", fail)
    try:
        with pytest.raises(OSError, match="the new one is in place, but might not survive a power failure") as failed:
            write(path, 2)
    finally:
        os.close(parent)
    assert failed.value.filename == str(path)
    assert not hasattr(failed.value, "__notes__")
    assert path.read_bytes().count(b"\n") == 2
