"""The root of a file system, the home and what holds it are known by every name."""

from __future__ import annotations

import os
from pathlib import Path, PurePath, PurePosixPath, PureWindowsPath

import pytest

from mdmf_deploy.images.places import Guard, homes, whole_disk


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "users" / "me"
    (folder / "photos").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.setenv("USERPROFILE", str(folder))
    return folder


@pytest.mark.parametrize(
    ("folder", "home", "what"),
    [
        (PurePosixPath("/"), PurePosixPath("/home/me"), "the root of a file system"),
        (PurePosixPath("/home"), PurePosixPath("/home/me"), "a folder that holds your home folder"),
        (PurePosixPath("/home/me"), PurePosixPath("/home/me"), "your home folder"),
        (PurePosixPath("/home/me/photos"), PurePosixPath("/home/me"), None),
        (PurePosixPath("/home/you"), PurePosixPath("/home/me"), None),
        (PureWindowsPath("C:\\"), PureWindowsPath("C:\\Users\\me"), "the root of a file system"),
        (PureWindowsPath("d:/"), PureWindowsPath("C:\\Users\\me"), "the root of a file system"),
        (PureWindowsPath("\\\\nas\\share\\"), PureWindowsPath("C:\\Users\\me"), "the root of a file system"),
        (PureWindowsPath("c:/users/ME"), PureWindowsPath("C:\\Users\\me"), "your home folder"),
        (PureWindowsPath("C:\\Users"), PureWindowsPath("C:\\Users\\me"), "a folder that holds your home folder"),
        (PureWindowsPath("D:\\photos"), PureWindowsPath("C:\\Users\\me"), None),
    ],
)
def test_roots_homes_and_their_parents_are_whole_disks(folder: PurePath, home: PurePath, what: str | None) -> None:
    assert whole_disk(folder, [home]) == what


def test_no_other_name_hides_them(home: Path, tmp_path: Path) -> None:
    guard = Guard()
    (tmp_path / "link").symlink_to(home)
    (tmp_path / "root").symlink_to("/")
    for name in (
        home,
        f"{home}/.",
        f"{home}//",
        f"{home}/photos/..",
        tmp_path / "link",
        tmp_path / "link" / "photos/..",
    ):
        assert guard.why(name) == "your home folder", name
    for name in ("/", "//", "/..", tmp_path / "root", f"{tmp_path}/root/."):
        assert guard.why(name) == "the root of a file system", name
    assert guard.why(home.parent) == "a folder that holds your home folder"
    for name in (home / "photos", tmp_path / "missing", "a\0b"):
        assert guard.why(name) is None, name


def test_a_second_mount_is_known_by_its_identity(home: Path, tmp_path: Path) -> None:
    guard = Guard()
    assert guard.why_status(home.stat()) == "your home folder"
    assert guard.why_status(os.stat("/")) == "the root of a file system"  # noqa: PTH116
    assert guard.why_status((home / "photos").stat()) is None


@pytest.mark.parametrize("value", [None, "", "missing", "/"])
def test_an_odd_home_is_no_obstacle(value: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HOME") if value is None else monkeypatch.setenv("HOME", value)
    assert all(found.is_dir() and found.is_absolute() for found in homes())
    assert Guard().why("/") == "the root of a file system"
    assert Guard().why(tmp_path) is None


def test_the_system_s_home_counts_if_the_environment_names_another(home: Path) -> None:
    pwd = pytest.importorskip("pwd")
    own = pwd.getpwuid(os.getuid()).pw_dir
    assert Guard().why(own) is not None
    assert Guard().why(home) == "your home folder"
