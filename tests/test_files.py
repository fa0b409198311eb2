"""Files and folders are written whole or not at all, and the cache lies where the environment says."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mdmf_deploy.errors import UsageError
from mdmf_deploy.files import atomic_folder, cache_folder, write_to_cache


def test_the_environment_variable_names_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MDMF_CACHE", str(tmp_path / "mine"))
    assert cache_folder("engines") == tmp_path / "mine" / "engines"
    assert cache_folder("engines").is_dir()


@pytest.mark.skipif(os.name != "posix", reason="another place on Windows")
def test_the_cache_defaults_to_the_system_s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MDMF_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder("kernels") == tmp_path / "mdmf-deploy" / "kernels"


def test_a_cache_that_cannot_be_created_is_an_error_with_a_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("MDMF_CACHE", str(tmp_path / "file"))
    with pytest.raises(UsageError, match="set MDMF_CACHE"):
        cache_folder("engines")


def test_a_write_replaces_the_old_file_and_leaves_no_scratch(tmp_path: Path) -> None:
    path = tmp_path / "plan"
    write_to_cache(path, b"old")
    write_to_cache(path, b"new")
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_failed_write_leaves_the_old_file_and_no_scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "plan"
    write_to_cache(path, b"old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UsageError, match=r"plan: No space left on device; free some space$"):
        write_to_cache(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(os.name != "posix", reason="no such permissions")
def test_files_and_folders_can_be_read_as_if_written_plainly(tmp_path: Path) -> None:
    (tmp_path / "plain").write_bytes(b"")
    write_to_cache(tmp_path / "plan", b"new")
    assert (tmp_path / "plan").stat().st_mode == (tmp_path / "plain").stat().st_mode
    with atomic_folder(tmp_path / "folder"):
        (tmp_path / "plainly").mkdir()
    assert (tmp_path / "folder").stat().st_mode == (tmp_path / "plainly").stat().st_mode


def test_a_user_without_a_home_is_told_to_name_a_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    for name in ("MDMF_CACHE", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", no_home)
    with pytest.raises(UsageError, match="no home folder; set MDMF_CACHE to a folder"):
        cache_folder("engines")
