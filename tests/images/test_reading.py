"""Reading a file's bytes: whatever is in its place is told by a stable code."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mdmf_deploy.errors import ImageError
from mdmf_deploy.images.decode import ReadLimits, read


def test_reading_gives_the_bytes_of_a_name_that_is_not_utf_8(tmp_path: Path) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.jpg"))
    path.write_bytes(b"abc")
    assert read(path) == b"abc"
    assert read(path, ReadLimits(max_bytes=3)) == b"abc"
    with pytest.raises(ImageError, match=r"caf\\xe9.jpg") as caught:
        read(path, ReadLimits(max_bytes=2))
    assert caught.value.code == "too_many_bytes"
    str(caught.value).encode("utf-8")


@pytest.mark.parametrize("name", ["none.jpg", "file/none.jpg", "dangling.jpg"])
def test_what_is_not_there_is_missing(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_bytes(b"x")
    (tmp_path / "dangling.jpg").symlink_to(tmp_path / "gone")
    with pytest.raises(ImageError) as caught:
        read(tmp_path / name)
    assert caught.value.code == "missing"


def test_folders_pipes_and_devices_are_not_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    for path in (tmp_path, tmp_path / "pipe.jpg", Path("/dev/null"), Path("/dev/zero")):
        with pytest.raises(ImageError) as caught:
            read(path)
        assert caught.value.code == "not_a_file"


def test_a_pipe_that_takes_a_file_s_place_does_not_hang(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe, plain = tmp_path / "pipe.jpg", tmp_path / "plain.jpg"
    os.mkfifo(pipe)
    plain.write_bytes(b"x")
    status = plain.stat()
    monkeypatch.setattr(Path, "stat", lambda self, **_: status)
    with pytest.raises(ImageError) as caught:
        read(pipe)
    assert caught.value.code == "not_a_file"


def test_what_the_system_refuses_is_unreadable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.jpg"
    (tmp_path / "loop.jpg").symlink_to(tmp_path / "loop.jpg")
    path.write_bytes(b"x")
    for odd in (tmp_path / "loop.jpg", tmp_path / ("n" * 300), Path("nul\0.jpg")):
        with pytest.raises(ImageError) as caught:
            read(odd)
        assert caught.value.code == "unreadable"

    def refused(*_: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refused)
    with pytest.raises(ImageError, match="Permission denied") as caught:
        read(path)
    assert caught.value.code == "unreadable"
