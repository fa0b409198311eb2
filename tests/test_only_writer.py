"""An output has one writer at a time, and a dead writer stops nobody."""

from __future__ import annotations

import errno
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from mdmf_deploy.errors import UsageError
from mdmf_deploy.files import only_writer

fcntl = pytest.importorskip("fcntl", reason="no such locks on Windows")

HOLD = """
import os, sys
from pathlib import Path
from mdmf_deploy.files import only_writer
os.getpid = lambda: 1  # as in a container
with only_writer(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def holder(path: Path) -> subprocess.Popen[str]:
    """Start a process that holds the output until its stdin is closed."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_a_second_process_is_refused_and_one_after_it_is_not(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    with holder(path) as process:
        with pytest.raises(UsageError, match=r"rows\.jsonl: another process is writing it"), only_writer(path):
            pass
        process.communicate()
    assert process.returncode == 0
    with only_writer(path):
        assert [file.name for file in tmp_path.iterdir()] == [".rows.jsonl.lock"]
    assert not list(tmp_path.iterdir())


def test_a_killed_writer_stops_nobody(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    with holder(path) as process:
        process.send_signal(signal.SIGKILL)
    with only_writer(path):
        pass
    assert not list(tmp_path.iterdir())


def test_a_link_and_its_file_are_one_output(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").touch()
    (tmp_path / "latest").symlink_to("rows.jsonl")
    with only_writer(tmp_path / "rows.jsonl"), pytest.raises(UsageError), only_writer(tmp_path / "latest"):
        pass


def test_a_lock_on_a_file_that_its_last_holder_removed_does_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, flock = tmp_path / ".rows.jsonl.lock", fcntl.flock
    calls: list[int] = []

    def late(descriptor: int, operation: int) -> None:
        if not calls:
            name.unlink()
        calls.append(operation)
        flock(descriptor, operation)

    monkeypatch.setattr("fcntl.flock", late)
    with only_writer(tmp_path / "rows.jsonl"):
        assert len(calls) == 2
        with pytest.raises(UsageError), only_writer(tmp_path / "rows.jsonl"):
            pass


def test_writers_that_wait_come_one_by_one(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    at_once, most, turns = 0, 0, 0
    guard = threading.Lock()

    def write() -> None:
        nonlocal at_once, most, turns
        for _ in range(50):
            with only_writer(tmp_path / "bundle", wait=True):
                with guard:
                    at_once, turns = at_once + 1, turns + 1
                    most = max(most, at_once)
                with guard:
                    at_once -= 1

    threads = [threading.Thread(target=write) for _ in range(4)]
    with caplog.at_level(logging.INFO, "mdmf_deploy"):
        with only_writer(tmp_path / "bundle"):
            for thread in threads:
                thread.start()
            while not caplog.messages:
                time.sleep(0.001)
        for thread in threads:
            thread.join()
    assert caplog.messages[0] == f"{tmp_path / 'bundle'}: waiting for another process that is writing it"
    assert (most, turns) == (1, 200)
    assert not list(tmp_path.iterdir())


def test_other_outputs_are_free(tmp_path: Path) -> None:
    with only_writer(tmp_path / "a"), only_writer(tmp_path / "b"), only_writer(tmp_path / "a.b"):
        pass


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOTSUP, errno.EINVAL, errno.ENOSYS])
def test_a_file_system_without_locks_is_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", refuse)
    with only_writer(tmp_path / "rows.jsonl"), only_writer(tmp_path / "rows.jsonl"):
        pass
    assert not list(tmp_path.iterdir())


def test_a_planted_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / ".rows.jsonl.lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="symbolic links"), only_writer(tmp_path / "rows.jsonl"):
        pass
    assert not (tmp_path / "elsewhere").exists()


def test_a_folder_that_takes_no_file_is_an_error_of_the_system(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), only_writer(tmp_path / "missing" / "rows.jsonl"):
        pass


def test_names_that_leave_no_room_for_an_ending(tmp_path: Path) -> None:
    long = tmp_path / ("x" * 255)
    with only_writer(long), pytest.raises(UsageError), only_writer(long):
        pass
    with only_writer(long), only_writer(tmp_path / ("x" * 254)):
        pass
