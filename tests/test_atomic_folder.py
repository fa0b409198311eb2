"""A folder is replaced in one step: at every moment its name means the whole old one or the whole new one."""

from __future__ import annotations

import ctypes
import errno
import json
import os
import random
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mdmf_deploy.files import atomic_folder

SCRIPT = Path(__file__).parent / "helpers" / "killed_writers.py"
KILLS = int(os.environ.get("MDMF_KILLS", "30"))


def without_exchange(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name, **options: object())


def with_exchange(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave everything as it is."""


both = pytest.mark.parametrize("how", [with_exchange, without_exchange])
How = Callable[[pytest.MonkeyPatch], None]


def contents(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def write(destination: Path, text: str) -> None:
    with atomic_folder(destination) as scratch:
        (scratch / "a/b").mkdir(parents=True)
        (scratch / "a/b/file").write_text(text)
        (scratch / "top").write_text(text)


@both
def test_a_new_folder_replaces_the_old_one(tmp_path: Path, how: How, monkeypatch: pytest.MonkeyPatch) -> None:
    how(monkeypatch)
    destination = tmp_path / "deep" / "folder"
    for text in ("old", "new"):
        write(destination, text)
        assert contents(destination) == {"a/b/file": text, "top": text}
        assert list(destination.parent.iterdir()) == [destination]


def test_an_unfinished_folder_changes_nothing(tmp_path: Path) -> None:
    write(tmp_path / "folder", "old")

    def write_half() -> None:
        with atomic_folder(tmp_path / "folder") as scratch:
            (scratch / "top").write_text("half")
            assert contents(tmp_path / "folder")["top"] == "old"
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_half()
    assert contents(tmp_path / "folder") == {"a/b/file": "old", "top": "old"}
    assert list(tmp_path.iterdir()) == [tmp_path / "folder"]


@pytest.mark.skipif(os.name != "posix", reason="folders cannot be flushed")
def test_a_folder_is_on_disk_before_it_takes_its_place_and_its_name_is_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed: list[int] = []
    before: list[set[int]] = []
    rename = Path.rename

    def note(self: Path, target: Path) -> Path:
        before.append(set(flushed))
        flushed.clear()
        return rename(self, target)

    monkeypatch.setattr(os, "fsync", lambda descriptor: flushed.append(os.fstat(descriptor).st_ino))
    monkeypatch.setattr(Path, "rename", note)
    write(tmp_path / "folder", "new")
    parts = [tmp_path / "folder", *(tmp_path / "folder").rglob("*")]
    assert before == [{path.stat().st_ino for path in parts}]
    assert flushed == [tmp_path.stat().st_ino]


def test_a_link_to_a_folder_stays_a_link(tmp_path: Path) -> None:
    write(tmp_path / "real", "old")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    write(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert contents(tmp_path / "real")["top"] == "new"


def test_the_old_folder_comes_back_if_the_new_one_cannot_be_renamed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_exchange(monkeypatch)
    write(tmp_path / "folder", "old")
    rename = Path.rename

    def refuse(self: Path, target: Path) -> Path:
        if target == tmp_path / "folder" and "new" in contents(self).values():
            raise PermissionError(13, "Permission denied")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(PermissionError):
        write(tmp_path / "folder", "new")
    assert contents(tmp_path / "folder") == {"a/b/file": "old", "top": "old"}
    assert list(tmp_path.iterdir()) == [tmp_path / "folder"]


def test_an_old_folder_that_a_killed_run_left_without_its_name_gets_it_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_exchange(monkeypatch)
    write(tmp_path / "folder", "old")
    rename = Path.rename

    def stop_at_the_second(self: Path, target: Path) -> Path:
        if target == tmp_path / "folder":
            raise PermissionError(13, "Permission denied")
        return rename(self, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", stop_at_the_second)
        with pytest.raises(PermissionError):
            write(tmp_path / "folder", "new")
    assert not (tmp_path / "folder").exists()
    with pytest.raises(KeyboardInterrupt), atomic_folder(tmp_path / "folder"):
        raise KeyboardInterrupt
    assert contents(tmp_path / "folder")["top"] == "old"
    assert list(tmp_path.iterdir()) == [tmp_path / "folder"]


@pytest.mark.skipif(sys.platform != "linux", reason="needs renameat2")
def test_the_old_folder_keeps_its_name_until_the_new_one_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "folder", "old")
    monkeypatch.setattr(Path, "rename", lambda self, target: pytest.fail("two renames"))
    write(tmp_path / "folder", "new")
    assert contents(tmp_path / "folder")["top"] == "new"


@pytest.mark.skipif(sys.platform != "linux", reason="needs fork and renameat2")
@pytest.mark.parametrize("how", ["exchange", "renames"])
def test_a_killed_writer_leaves_a_whole_folder(tmp_path: Path, how: str) -> None:
    seed = random.randrange(10**6)
    print(f"seed {seed}")
    command = [sys.executable, SCRIPT, tmp_path / "bundle.mdmf", how, KILLS, seed]
    answer = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=True)
    seen = json.loads(answer.stdout)
    assert seen["whole after the next run"] == KILLS
    assert seen["left behind"] == 0
    # With two renames, the folder may have no name for a moment. It never has half of its files.
    assert seen["whole"] + (seen.get("absent", 0) if how == "renames" else 0) == KILLS
    assert how == "renames" or seen["missing"] == 0


@pytest.mark.skipif(os.name != "posix", reason="folders cannot be flushed")
@both
def test_a_failed_flush_of_the_names_says_which_folder_is_there(
    tmp_path: Path, how: How, monkeypatch: pytest.MonkeyPatch
) -> None:
    how(monkeypatch)
    destination = tmp_path / "bundle.mdmf"
    write(destination, "old")

    def fail(descriptor: int) -> None:
        if os.path.sameopenfile(descriptor, parent):
            raise OSError(errno.EIO, "Input/output error")

    parent = os.open(tmp_path, os.O_RDONLY)
    try:
        with monkeypatch.context() as patched:
            patched.setattr(os, "fsync", fail)
            with pytest.raises(OSError, match="error; the new one is in place, but might not survive") as failed:
                write(destination, "new")
    finally:
        os.close(parent)
    assert failed.value.filename == str(destination)
    assert contents(destination)["top"] == "new"
    write(destination, "newer")
    assert list(tmp_path.iterdir()) == [destination]


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP])
def test_a_file_system_that_flushes_no_folders_is_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    fsync = os.fsync

    def refuse(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(number, os.strerror(number))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", refuse)
    write(tmp_path / "folder", "new")
    assert contents(tmp_path / "folder")["top"] == "new"


def test_an_error_of_the_system_names_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left") as failed:
        write(tmp_path / "folder", "new")
    assert failed.value.filename == str(tmp_path / "folder")
    with pytest.raises(OSError, match="No such file") as failed, atomic_folder(tmp_path / "folder") as scratch:
        (scratch / "missing" / "file").write_bytes(b"")
    assert failed.value.filename == str(tmp_path / "folder" / "missing" / "file")
    assert not list(tmp_path.iterdir())
