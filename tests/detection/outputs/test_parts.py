"""A folder of parts: each whole or absent, every input in one of them, readable as one data set."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import pickle
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import pandas
import pyarrow
import pyarrow.dataset
import pyarrow.fs
import pyarrow.parquet
import pytest
from helpers.settings import SETTINGS

from mdmf_deploy.detection.outputs import parquet
from mdmf_deploy.detection.outputs.done import InputKey
from mdmf_deploy.detection.outputs.parts import RUN, PartFolder, key_columns, with_keys
from mdmf_deploy.detection.rows import Row
from mdmf_deploy.errors import UsageError


def key(n: int, mtime: int | None = 1) -> InputKey:
    return InputKey(f"{n}.jpg", 0, 10, mtime)


def table(keys: Sequence[InputKey], rows: int = 1, error_code: str | None = None) -> pyarrow.Table:
    """Some rows for each input."""
    each = [one for one in keys for _ in range(rows)]
    made = [Row(uri=f"{one.uri}#{n}", sha256="ab" * 32, error_code=error_code) for n, one in enumerate(each)]
    return with_keys(parquet.table_of(made), key_columns(each))


def open_parts(folder: Path | str, resume: bool = True, kind: str = "rows", **changed: object) -> PartFolder:
    settings = msgspec.structs.replace(SETTINGS, **changed)
    return PartFolder.open(str(folder), settings, kind, parquet.schema(), resume=resume)


def fill(folder: Path, *numbers: Sequence[int]) -> list[str]:
    with open_parts(folder) as parts:
        return [parts.write(table([key(n) for n in some])) for some in numbers]


def inputs(folder: Path | str) -> list[str]:
    return sorted(pyarrow.dataset.dataset(str(folder)).to_table()["input"].to_pylist())


def states(folder: Path | str, *keys: InputKey) -> list[str]:
    with open_parts(folder) as parts:
        return [parts.done.state(one) for one in keys]


def test_inputs_in_parts_are_done(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "rows.parquet"
    with open_parts(folder, resume=False) as parts:
        parts.write(table([key(0), key(1)], rows=3))
        parts.write(table([key(2, None)], error_code="missing"))
    with open_parts(folder) as parts:
        assert len(parts.done) == 3
        found = [parts.done.state(one) for one in (key(0), key(1), key(2, None), key(1, 2), key(3))]
        assert found == ["done", "done", "changed", "changed", "new"]
        assert parts.done.state(key(1, 2), "ab" * 32) == "done"
        assert sum(len(rows) for rows in parts.tables(["uri"])) == 7


def test_parts_are_one_data_set_that_says_where_it_comes_from(tmp_path: Path) -> None:
    names = fill(tmp_path, [0, 1], [2])
    found = pandas.read_parquet(tmp_path)
    assert list(found["input"]) == list(pyarrow.dataset.dataset(tmp_path).to_table()["input"].to_pylist())
    assert sorted(found["uri"]) == ["0.jpg#0", "1.jpg#1", "2.jpg#0"]
    metadata = pyarrow.parquet.read_schema(tmp_path / names[0]).metadata
    assert metadata[b"bundle_id"] == b"b" * 64
    assert metadata[b"calibration_id"] == b"c" * 64
    assert json.loads(metadata[b"mdmf_run"])["settings"]["crops"] == 1
    assert json.loads((tmp_path / RUN).read_bytes()) == json.loads(metadata[b"mdmf_run"])
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([RUN, *names])


def test_a_part_that_is_written_twice_is_one_file(tmp_path: Path) -> None:
    first, again, other = fill(tmp_path, [0, 1], [1, 0], [2])
    assert first == again != other
    assert inputs(tmp_path) == ["0.jpg", "1.jpg", "2.jpg"]
    with open_parts(tmp_path / "elsewhere", crops=2) as parts:
        assert parts.write(table([key(0), key(1)])) != first


def test_another_process_can_write(tmp_path: Path) -> None:
    with open_parts(tmp_path) as parts, multiprocessing.get_context("spawn").Pool(1) as pool:
        name = pool.apply(parts.write, (table([key(0)]),))
        assert pickle.loads(pickle.dumps(parts)).write(table([key(0)])) == name
    assert states(tmp_path, key(0)) == ["done"]


def test_dropped_inputs_are_new(tmp_path: Path) -> None:
    fill(tmp_path, [0, 1, 2], [3], [4, 5])
    with open_parts(tmp_path) as parts:
        assert parts.drop([("1.jpg", 0), ("3.jpg", 0), ("4.jpg", 1), ("9.jpg", 0)]) == 2
        assert [parts.done.state(key(n)) for n in range(6)] == ["done", "new", "done", "new", "done", "done"]
    assert inputs(tmp_path) == ["0.jpg", "2.jpg", "4.jpg", "5.jpg"]


def test_a_run_killed_while_it_drops_leaves_each_input_once(tmp_path: Path) -> None:
    [name] = fill(tmp_path, [0, 1, 2])
    old = (tmp_path / name).read_bytes()
    with open_parts(tmp_path) as parts:
        parts.drop([("1.jpg", 0)])
    (tmp_path / name).write_bytes(old)  # as if it had not been removed
    assert inputs(tmp_path) == ["0.jpg", "0.jpg", "1.jpg", "2.jpg", "2.jpg"]
    assert states(tmp_path, key(0), key(1), key(2)) == ["done", "new", "done"]
    assert inputs(tmp_path) == ["0.jpg", "2.jpg"]


def test_an_input_in_two_parts_loses_its_older_rows(tmp_path: Path) -> None:
    fill(tmp_path, [0, 1, 2], [2, 3], [0, 4])
    assert inputs(tmp_path) == ["0.jpg", "0.jpg", "1.jpg", "2.jpg", "2.jpg", "3.jpg", "4.jpg"]
    assert states(tmp_path, *map(key, range(5))) == ["done"] * 5
    assert inputs(tmp_path) == [f"{n}.jpg" for n in range(5)]


@pytest.mark.parametrize("share", [0, 0.5, 0.99])
def test_a_cut_part_is_removed_and_its_inputs_are_new(
    tmp_path: Path, share: float, messages: Callable[[], str]
) -> None:
    cut, _ = fill(tmp_path, [0, 1], [2])
    os.truncate(tmp_path / cut, int(share * (tmp_path / cut).stat().st_size))
    assert states(tmp_path, key(0), key(1), key(2)) == ["new", "new", "done"]
    assert messages().startswith(f"warning: {tmp_path.as_posix()}/{cut} was cut short; it is removed, and its")
    assert inputs(tmp_path) == ["2.jpg"]


def test_a_part_that_cannot_be_reached_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    [name] = fill(tmp_path, [0])

    def unreachable(*arguments: object) -> None:
        raise OSError("network is gone")

    monkeypatch.setattr(pyarrow.parquet, "read_schema", unreachable)
    with open_parts(tmp_path) as parts, pytest.raises(OSError) as caught:
        parts.done  # noqa: B018
    assert str(caught.value).endswith(f"network is gone: '{tmp_path.as_posix()}/{name}'")
    assert (tmp_path / name).exists()


def test_a_full_disk_leaves_no_part_and_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path, [0])

    def full(self: Path, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with open_parts(tmp_path) as parts, pytest.raises(OSError, match="No space left") as caught:
        parts.write(table([key(1)]))
    assert "part-" in str(caught.value.filename)
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"resume": False}, "holds results already; give --resume to add to them, or a new folder"),
        ({"kind": "signatures"}, "holds rows, not signatures; name a new folder"),
        (
            {"crops": 4, "frames": None, "bundle_id": "d" * 64},
            "bundle_id bbbbbbbbbbbb there, dddddddddddd now; crops 1 there, 4 now; frames 10 there, none now",
        ),
    ],
)
def test_another_run_may_not_add(tmp_path: Path, changed: dict[str, object], message: str) -> None:
    fill(tmp_path, [0])
    with pytest.raises(UsageError, match=message):
        open_parts(tmp_path, **changed)  # type: ignore[arg-type]
    assert states(tmp_path, key(0)) == ["done"]


def test_a_folder_without_parts_takes_any_run(tmp_path: Path) -> None:
    open_parts(tmp_path).close()
    open_parts(tmp_path, resume=False, crops=2).close()
    with open_parts(tmp_path, crops=2) as parts:
        assert len(parts.done) == 0


@pytest.mark.parametrize("name", ["photo.jpg", "part-0.parquet"])
def test_a_folder_of_something_else_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    with pytest.raises(UsageError, match="name a new folder"):
        open_parts(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_part_of_another_run_is_refused(tmp_path: Path) -> None:
    fill(tmp_path / "one", [0])
    with open_parts(tmp_path / "two", crops=2) as parts:
        name = parts.write(table([key(1)]))
    shutil.copy(tmp_path / "two" / name, tmp_path / "one")
    with open_parts(tmp_path / "one") as parts, pytest.raises(UsageError, match="crops 2 there, 1 now"):
        parts.done  # noqa: B018
    pyarrow.parquet.write_table(pyarrow.table({"a": [1]}), tmp_path / "one" / name)
    with open_parts(tmp_path / "one") as parts, pytest.raises(UsageError, match=name):
        parts.done  # noqa: B018


@pytest.mark.skipif(os.name != "posix", reason="needs locks")
def test_one_run_at_a_time(tmp_path: Path) -> None:
    with open_parts(tmp_path), pytest.raises(UsageError, match="another process is writing it"):
        open_parts(tmp_path)
    open_parts(tmp_path).close()


def test_a_place_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="choose a place"):
        open_parts(tmp_path / "file" / "rows.parquet")
    with pytest.raises(UsageError, match="give a folder, or a URI"):
        open_parts("nothing://bucket/rows")
