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
    ("command", "output", "locked"),
    [
        ("detect", "rows.jsonl", "rows.jsonl"),
        ("evaluate", "rows.csv", "rows.csv"),
        ("benchmark", "report.html", "report.html"),
        ("train", "run", "run/checkpoint.safetensors"),
    ],
)
def test_the_second_is_refused_before_it_reads_a_model(
    command: str, output: str, locked: str, photos: Path, tmp_path: Path
) -> None:
    missing = tmp_path / "missing.mdmf"
    (tmp_path / "run").mkdir()
    if command == "train":
        (tmp_path / "generated").mkdir()
        (tmp_path / "generated" / "a").symlink_to(photos)
        given = (photos, tmp_path / "generated", "--backbone-weights", missing)
    elif command == "benchmark":
        given = (missing, "--images", photos)
    else:
        given = (photos, "--bundle", missing)
    with only_writer(tmp_path / locked):
        result = mdmf(command, *given, "-o", tmp_path / output)
    assert result.exit_code == 2
    why = "another process is writing it; wait for its end, or choose another output"
    assert result.stderr == f"mdmf: {tmp_path / locked}: {why}\n"


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
