"""Outputs of --resume, whatever their format: one contract."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import pandas
import pyarrow.dataset
import pytest
from helpers.settings import SETTINGS

from mdmf_deploy.detection.outputs import parquet, row_parts
from mdmf_deploy.detection.outputs.done import InputKey
from mdmf_deploy.detection.outputs.resumable import RESUMABLE, Resumable, check_resumable, open_resumable
from mdmf_deploy.detection.rows import Row
from mdmf_deploy.errors import UsageError


def key(n: int) -> InputKey:
    return InputKey(f"{n}.jpg", 0, 10, 1)


def row(n: int, frame: int = 0) -> Row:
    return Row(uri=f"{n}.jpg#{frame}", verdict="generated", size_group="1", contributions=(0.5,) * 9)


@pytest.mark.parametrize("ending", RESUMABLE)
def test_every_format_keeps_one_contract(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"rows{ending}"

    def opened() -> Resumable:
        return open_resumable(path, SETTINGS)

    with opened() as output:
        output.write(key(0), [row(0)])
        output.write(key(1), [row(1, 0), row(1, 1)])
        output.write(key(2), [row(2)])
    with opened() as output:
        assert len(output.done) == 3
        assert output.drop([("0.jpg", 0)]) == 1
        assert [row.uri for row in output.rows()] == ["1.jpg#0", "1.jpg#1", "2.jpg#0"]
        assert {(row.verdict, row.size_group, row.reason) for row in output.rows()} == {("generated", "1", None)}
        output.write(key(3), [row(3)])
    with suppress(KeyboardInterrupt), opened() as output:
        output.write(key(4), [row(4)])
        raise KeyboardInterrupt
    with opened() as output:
        assert [output.done.state(key(n)) for n in range(6)] == ["new", "done", "done", "done", "done", "new"]
        if os.name == "posix":
            with pytest.raises(UsageError, match="another process is writing it"):
                opened()


def test_a_part_is_written_after_so_many_inputs_or_so_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "rows.parquet"

    def parts() -> int:
        return len(list(path.glob("part-*.parquet")))

    monkeypatch.setattr(row_parts, "PART_INPUTS", 3)
    with open_resumable(path, SETTINGS) as output:
        for n in range(7):
            output.write(key(n), [row(n)])
        assert parts() == 2
    assert parts() == 3
    monkeypatch.setattr(row_parts, "PART_SECONDS", 0.0)
    with open_resumable(path, SETTINGS) as output:
        for n in range(7, 10):
            output.write(key(n), [row(n)])
        assert parts() == 6
    found = pandas.read_parquet(path).sort_values("uri")
    assert list(found["uri"]) == [f"{n}.jpg#0" for n in range(10)]
    assert pyarrow.dataset.dataset(path).schema.names[4:] == parquet.schema().names


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("rows.json", "nothing can be added to a JSON array; with --resume, choose .jsonl instead"),
        ("rows.xlsx", "with --resume, choose one of .jsonl, .csv, .parquet"),
        ("folder.csv", "folder.csv is a folder; with --resume, only .parquet is one"),
        ("file.parquet", "file.parquet is a file; with --resume, rows go into a folder"),
    ],
)
def test_other_outputs_are_refused(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "folder.csv").mkdir()
    (tmp_path / "file.parquet").touch()
    with pytest.raises(UsageError, match=message):
        check_resumable(tmp_path / name)
