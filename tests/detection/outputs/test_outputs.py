"""Outputs: every format reads back as the same rows, and a file is complete or absent."""

from __future__ import annotations

import csv
import errno
import importlib
import json
import os
import signal
import string
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mdmf_deploy.detection.outputs import WRITERS, open_output, open_report, parquet, rows_to_arrow
from mdmf_deploy.detection.rows import COLUMNS, Row
from mdmf_deploy.errors import MdmfError, RuntimeUnavailable, UsageError
from mdmf_deploy.interrupts import SIGNALS, Interrupted, raised
from mdmf_deploy.text import from_cell

NUMBERS = ("score", "p_value", "threshold", "ms_decode", "ms_engine", "ms_mmd")
ROW = Row(
    uri='odd, "quoted" name.jpg', sha256="ab", score=0.1, verdict="real", width=7, height=9, contributions=(0.1, 0.1)
)

texts = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs", "Zl", "Zp"]), min_size=1, max_size=12)
floats = st.none() | st.floats(allow_nan=False, allow_infinity=False)
rows = st.builds(
    Row,
    uri=texts,
    sha256=st.none() | st.text(string.hexdigits, min_size=1, max_size=64),
    status=st.sampled_from(["ok", "error"]),
    error_code=st.none() | st.just("truncated"),
    error=st.none() | texts,
    verdict=st.sampled_from(["real", "generated", "uncertain", "uncalibrated", "error"]),
    width=st.none() | st.integers(1, 2**31 - 1),
    height=st.none() | st.integers(1, 2**31 - 1),
    format=st.none() | st.just("jpeg"),
    crop=st.none() | st.just("center+2"),
    contributions=st.none() | st.just((1.0, 2.0)),
    **dict.fromkeys(NUMBERS, floats),
)


def then_raise(error: BaseException) -> Iterator[Row]:
    yield ROW
    yield ROW
    raise error


def write(path: Path, rows: Iterable[Row]) -> None:
    with open_output(path) as writer:
        for row in rows:
            writer.write(row)


def read(path: Path) -> list[dict[str, Any]]:
    """The rows of a file, each value in its column's type."""
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_bytes().decode().split("\n")[:-1]]
    if path.suffix == ".json":
        array: list[dict[str, Any]] = json.loads(path.read_bytes())
        return array
    if path.suffix == ".parquet":
        table = pyarrow.parquet.read_table(path)
        labels = table.column_names[: -len(COLUMNS)]
        assert table.schema.equals(parquet.schema(labels))
        found: list[dict[str, Any]] = table.to_pylist()
        return found
    with path.open(encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    types = dict.fromkeys(NUMBERS, float) | {"width": int, "height": int}
    return [
        {name: None if text == "" else types.get(name, from_cell)(text) for name, text in line.items()}
        for line in lines
    ]


def writer_class(ending: str) -> type:
    module, name, _ = WRITERS[ending]
    found: type = getattr(importlib.import_module(module), name)
    return found


def as_columns(row: Row) -> dict[str, Any]:
    return {name: getattr(row, name) for name in COLUMNS}


@pytest.mark.parametrize("ending", WRITERS)
@settings(deadline=None, max_examples=25)
@given(written=st.lists(rows, max_size=5))
def test_rows_read_back_as_they_were(tmp_path_factory: pytest.TempPathFactory, ending: str, written: list[Row]) -> None:
    path = tmp_path_factory.getbasetemp() / f"rows{ending}"
    write(path, written)
    found = read(path)
    assert found == [as_columns(row) for row in written]
    assert all(tuple(row) == COLUMNS for row in found)


def test_no_text_of_a_csv_is_a_formula_and_numbers_stay(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    evil = [f"{sign}cmd|' /C calc'!A0" for sign in ("=", "+", "-", "@", "\t=", "'", " =", "a;=")]
    with open_output(path, ("condition",)) as writer:
        for text in evil:
            writer.write(Row(uri=text, error=text, notes=text, score=-0.5, ms_mmd=-1e-9), text)
    with path.open(encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    for line, text in zip(lines, evil, strict=True):
        for name in ("uri", "error", "notes", "condition"):
            assert not any(part.lstrip(" ")[:1] in "=+-@\t" for part in line[name].split(";"))
            assert from_cell(line[name]) == text
        assert (line["score"], line["ms_mmd"]) == ("-0.5", "-1e-09")


@pytest.mark.parametrize("ending", WRITERS)
def test_labels_are_columns_before_those_of_a_row(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"rows{ending}"
    with open_output(path, ("condition", "generator")) as writer:
        for generator in ('a "b", c', None):
            writer.write(ROW, "as is", generator)
    found = read(path)
    assert [(row["condition"], row["generator"]) for row in found] == [("as is", 'a "b", c'), ("as is", None)]
    assert [{name: row[name] for name in COLUMNS} for row in found] == [as_columns(ROW)] * 2
    assert all(tuple(row) == ("condition", "generator", *COLUMNS) for row in found)


def test_an_array_has_a_row_on_each_line(tmp_path: Path) -> None:
    write(tmp_path / "rows.json", [ROW, ROW])
    first, *lines, last = (tmp_path / "rows.json").read_text().splitlines()
    assert (first, last) == ("[", "]")
    assert [json.loads(line.removesuffix(",")) for line in lines] == [as_columns(ROW)] * 2


@pytest.mark.parametrize("ending", WRITERS)
@pytest.mark.parametrize("step", ["close", "fsync", "replace"])
@pytest.mark.parametrize("number", SIGNALS)
def test_a_second_interrupt_waits_for_the_file(
    tmp_path: Path, ending: str, step: str, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any) -> Any:
            signal.raise_signal(number)
            return call(*arguments)

        return wrapped

    owner: Any = {"close": writer_class(ending), "fsync": os, "replace": Path}[step]
    monkeypatch.setattr(owner, step, interrupted(getattr(owner, step)))
    path = tmp_path / f"rows{ending}"
    before = signal.getsignal(signal.SIGINT)
    partial = tmp_path / f"rows.partial{ending}"
    for first, kept in ((KeyboardInterrupt(), partial), (None, partial if step == "close" else path)):
        with pytest.raises(KeyboardInterrupt), raised(lambda interrupt: os._exit(1)):
            write(path, then_raise(first) if first else [ROW, ROW])
        assert read(kept) == [as_columns(ROW)] * 2
        assert list(tmp_path.iterdir()) == [kept]
        kept.unlink()
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize("ending", WRITERS)
def test_an_interrupt_before_the_last_bytes_leaves_no_unreadable_file(
    tmp_path: Path, ending: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(self: object) -> None:
        raise KeyboardInterrupt

    path = tmp_path / f"rows{ending}"
    owner = writer_class(ending) if ending != ".parquet" else pyarrow.parquet.ParquetWriter
    monkeypatch.setattr(owner, "close", refused)
    with pytest.raises(KeyboardInterrupt) as caught:
        write(path, [ROW])
    if writer_class(ending).by_row:
        assert read(tmp_path / f"rows.partial{ending}") == [as_columns(ROW)]
    else:
        assert caught.value.__notes__ == ["the 1 rows finished before are lost"]
        assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("ending", WRITERS)
def test_an_interrupt_before_the_first_row_keeps_the_older_file(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"rows{ending}"
    write(path, [ROW])
    with pytest.raises(KeyboardInterrupt) as caught, open_output(path):
        raise KeyboardInterrupt
    assert caught.value.__notes__ == [f"{path} is unchanged"]
    assert read(path) == [as_columns(ROW)]


@pytest.mark.skipif(os.name != "posix", reason="no limit on the size of a file")
@pytest.mark.parametrize("ending", WRITERS)
def test_a_full_disk_costs_no_finished_row(tmp_path: Path, ending: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import resource

    monkeypatch.setattr(parquet, "ROW_GROUP", 1)
    path, partial = tmp_path / f"rows{ending}", tmp_path / f"rows.partial{ending}"
    write(path, [ROW])
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # so that the write fails, half-way, as on a full disk
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (5 * path.stat().st_size // 2, limits[1]))
        with pytest.raises(OSError) as caught:
            write(path, [ROW] * 1000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    assert caught.value.filename == str(path)
    assert read(path) == [as_columns(ROW)]
    note, unchanged = caught.value.__notes__
    assert unchanged == f"{path} is unchanged"
    if writer_class(ending).by_row:
        kept = read(partial)
        assert note == f"the {len(kept)} rows finished before are in {partial}"
        assert kept == [as_columns(ROW)] * len(kept)
        assert len(kept) >= 2
    else:
        assert note.endswith("rows finished before are lost")
        assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("ending", WRITERS)
@pytest.mark.parametrize("error", [RuntimeError(), MemoryError(), KeyboardInterrupt(), Interrupted(15)])
def test_the_older_file_stays_and_the_finished_rows_are_kept_beside_it(
    tmp_path: Path, ending: str, error: BaseException
) -> None:
    path, partial = tmp_path / f"rows{ending}", tmp_path / f"rows.partial{ending}"
    for there in (False, True):
        if there:
            write(path, [ROW])
        vars(error).clear()  # of its notes
        with pytest.raises(type(error)) as caught:
            write(path, then_raise(error))
        unchanged = [f"{path} is unchanged"] if there else []
        assert caught.value.__notes__ == [f"the 2 rows finished before are in {partial}", *unchanged]
        assert read(partial) == [as_columns(ROW)] * 2
        assert set(tmp_path.iterdir()) == ({path, partial} if there else {partial})
    assert len(read(path)) == 1


@pytest.mark.parametrize("ending", WRITERS)
def test_a_crash_before_the_first_row_leaves_nothing(tmp_path: Path, ending: str) -> None:
    with pytest.raises(RuntimeError), open_output(tmp_path / f"rows{ending}"):
        raise RuntimeError
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("ending", WRITERS)
def test_rows_that_did_not_reach_the_disk_are_not_kept(
    tmp_path: Path, ending: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write(tmp_path / f"rows{ending}", then_raise(RuntimeError()))
    assert not list(tmp_path.iterdir())


def test_no_file_has_the_name_until_the_end(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    with open_output(path) as writer:
        writer.write(ROW)
        assert not path.exists()
    assert path.exists()


def test_a_link_stays_one(tmp_path: Path) -> None:
    (tmp_path / "link.csv").symlink_to(tmp_path / "real.csv")
    write(tmp_path / "link.csv", [ROW])
    assert (tmp_path / "link.csv").is_symlink()
    assert len(read(tmp_path / "real.csv")) == 1


def test_parquet_holds_one_row_group_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "ROW_GROUP", 3)
    write(tmp_path / "rows.parquet", [ROW] * 7)
    file = pyarrow.parquet.ParquetFile(tmp_path / "rows.parquet")
    assert [file.metadata.row_group(n).num_rows for n in range(file.num_row_groups)] == [3, 3, 1]


@pytest.mark.parametrize("name", ["rows.txt", "rows", "rows.jsonl.gz"])
def test_an_unknown_ending_lists_the_known_ones(tmp_path: Path, name: str) -> None:
    with (
        pytest.raises(UsageError, match=r"choose one of \.jsonl, \.json, \.csv, \.parquet$"),
        open_output(tmp_path / name),
    ):
        pass
    assert not list(tmp_path.iterdir())


def test_an_ending_may_be_in_capitals(tmp_path: Path) -> None:
    write(tmp_path / "ROWS.JSONL", [ROW])
    assert (tmp_path / "ROWS.JSONL").read_bytes().count(b"\n") == 1


def test_a_missing_library_names_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "mdmf_deploy.detection.outputs.parquet")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(RuntimeUnavailable, match=r"pip install 'mdmf-deploy\[parquet\]'"):
        write(tmp_path / "rows.parquet", [])
    assert not list(tmp_path.iterdir())


def test_a_place_that_cannot_be_written_is_an_error_at_once(tmp_path: Path) -> None:
    (tmp_path / "folder.csv").mkdir()
    (tmp_path / "file").touch()
    for path, why in (
        (tmp_path / "folder.csv", "is a folder"),
        (tmp_path / "missing" / "rows.csv", "No such file"),
        (tmp_path / "file" / "rows.csv", "Not a directory"),
    ):
        with pytest.raises(MdmfError, match=why), open_output(path):
            pytest.fail("opened")


def test_a_read_only_file_system_is_an_error_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(UsageError, match=r"rows\.csv: Read-only file system; choose a place"):
        write(tmp_path / "rows.csv", [ROW])


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root writes everywhere")
def test_a_read_only_folder_is_an_error_at_once(tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    try:
        with pytest.raises(UsageError, match="Permission denied; choose a place"), open_output(tmp_path / "rows.csv"):
            pytest.fail("opened")
    finally:
        tmp_path.chmod(0o755)


def test_parquet_is_imported_only_for_parquet(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from mdmf_deploy.detection.outputs import open_output\n"
        f"with open_output(Path({str(tmp_path / 'rows.jsonl')!r})): pass\n"
        "sys.exit('pyarrow' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_an_arrow_table_is_what_parquet_holds(tmp_path: Path) -> None:
    rows = [Row(uri="a.jpg", score=0.5, width=3), Row(uri="b.jpg", status="error", error_code="empty")]
    write(tmp_path / "rows.parquet", rows)
    table = rows_to_arrow(row for row in rows)
    assert table.equals(pyarrow.parquet.read_table(tmp_path / "rows.parquet"))
    assert rows_to_arrow([]).schema.equals(table.schema)


def test_an_arrow_table_without_pyarrow_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "mdmf_deploy.detection.outputs.parquet")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(RuntimeUnavailable, match="rows_to_arrow needs pyarrow; run: pip install"):
        rows_to_arrow([])


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_file_for_which_the_disk_is_full_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However much of it is written before the disk is full."""
    opened = Path.open
    monkeypatch.setattr(Path, "open", lambda self, mode: opened(Path("/dev/full"), mode))
    for size in (10, 10**6):
        with (
            pytest.raises(OSError, match="No space left on device") as failed,
            open_report(tmp_path / "report.html") as write_report,
        ):
            write_report(bytes(size))
        assert failed.value.filename == str(tmp_path / "report.html")
        assert list(tmp_path.iterdir()) == []
