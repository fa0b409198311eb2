"""Inputs that vanish, shrink, grow or fail while they are read cost their own row, never the run."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.faulty import Action, Calls, Rule, Server
from helpers.jobs import read_rows


@pytest.fixture
def inputs(photos: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(photos, tmp_path / "inputs"))


@pytest.mark.parametrize(
    ("calls", "action", "value", "codes"),
    [
        # Files are opened once when the folder is listed, if their names do not say enough, and once to be read.
        (Calls.READ_OPEN, Action.vanish, 0, {"missing"}),
        (Calls.READ_OPEN, Action.shrink, 0, {"truncated", "corrupt"}),
        (Calls.READ_OPEN, Action.grow, 0, {None}),
        (Calls.READ_OPEN, Action.fail, errno.EACCES, {"unreadable"}),
        (Calls.READ_OPEN, Action.fail, errno.EIO, {"unreadable"}),
        (Calls.READ, Action.fail, errno.EIO, {"unreadable"}),
    ],
)
def test_a_file_that_changes_while_it_is_read_costs_its_own_row(
    calls: Calls,
    action: Action,
    value: int,
    codes: set[str | None],
    inputs: Path,
    tiny_bundle: Path,
    expected: Callable[[str], Path],
    server: Server,
    tmp_path: Path,
) -> None:
    output = tmp_path / "rows.jsonl"
    rule = Rule(inputs, calls, action, 5, value)
    ending = server.run("detect", inputs, "-o", output, "--bundle", tiny_bundle, rules=[rule])
    rows, undisturbed = read_rows(output), read_rows(expected("jsonl"))
    assert "Traceback" not in ending.err, str(ending)
    assert [Path(row["uri"]).name for row in rows] == [Path(row["uri"]).name for row in undisturbed]
    changed = [(a, b) for a, b in zip(rows, undisturbed, strict=True) if {**a, "uri": ""} != {**b, "uri": ""}]
    assert len(changed) == 1, str(ending)
    row = changed[0][0]
    assert Path(row["uri"]).name == Path(ending.struck[0]).name
    assert row["error_code"] in codes, str(ending)
    assert ending.code == (0 if codes == {None} else 3), str(ending)


def test_a_pipe_without_a_writer_is_no_input(inputs: Path, tiny_bundle: Path, server: Server, tmp_path: Path) -> None:
    pipe = inputs / "pipe.jpg"
    os.mkfifo(pipe)
    output = tmp_path / "rows.jsonl"
    ending = server.run("detect", inputs, pipe, "-o", output, "--bundle", tiny_bundle, kill_after=60)
    assert ending.code == 3, str(ending)
    found = [row for row in read_rows(output) if row["uri"].endswith("pipe.jpg")]
    assert {row["error_code"] for row in found} == {"not_a_file"}
    assert len(read_rows(output)) == 12 + len(found)
