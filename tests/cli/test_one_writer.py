"""Of two commands that write one output, the second is refused at once, and a note about an output is true."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from helpers.mdmf import mdmf

from mdmf_deploy.cli.kept import kept, watch, watch_nothing
from mdmf_deploy.files import only_writer


@pytest.mark.skipif(os.name != "posix", reason="no such locks on Windows")
@pytest.mark.parametrize(
    ("command", "output"),
    [
        ("detect", "rows.jsonl"),
        ("evaluate", "rows.csv"),
        ("benchmark", "report.html"),
    ],
)
def test_the_second_is_refused_before_it_reads_a_model(command: str, output: str, photos: Path, tmp_path: Path) -> None:
    missing = tmp_path / "missing.mdmf"
    given = (missing, "--images", photos) if command == "benchmark" else (photos, "--bundle", missing)
    with only_writer(tmp_path / output):
        result = mdmf(command, *given, "-o", tmp_path / output)
    assert result.exit_code == 2
    why = "another process is writing it; wait for its end, or choose another output"
    assert result.stderr == f"mdmf: {tmp_path / output}: {why}\n"


def test_a_folder_that_was_changed_was_written(tmp_path: Path) -> None:
    """Even if its inode is that of the folder before, which file systems give again."""
    os.utime(tmp_path, ns=(0, 0))
    watch(tmp_path)
    try:
        assert kept() == [f"{tmp_path} is unchanged"]
        (tmp_path / "manifest.json").touch()
        assert kept() == [f"{tmp_path} was written"]
    finally:
        watch_nothing()
