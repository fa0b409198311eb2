"""Cached files are whole or absent, and lie where the environment says."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mdmf_deploy.errors import UsageError
from mdmf_deploy.files import cache_folder, write_to_cache


def test_the_variable_names_the_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MDMF_CACHE", str(tmp_path / "mine"))
    assert cache_folder("engines") == tmp_path / "mine" / "engines"
    assert cache_folder("engines").is_dir()


@pytest.mark.skipif(os.name != "posix", reason="another place on Windows")
def test_else_it_lies_among_the_system_s_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MDMF_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder("kernels") == tmp_path / "mdmf-deploy" / "kernels"


def test_a_place_that_cannot_be_made_is_told_with_a_way_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("MDMF_CACHE", str(tmp_path / "file"))
    with pytest.raises(UsageError, match="set MDMF_CACHE"):
        cache_folder("engines")


def test_what_was_there_is_replaced_and_nothing_else_is_left(tmp_path: Path) -> None:
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
    with pytest.raises(UsageError, match="No space left"):
        write_to_cache(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
