"""A file of rows that later runs add to: after any crash, each input is in it once or not at all."""

from __future__ import annotations

import csv
import errno
import io
import json
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec
import pytest
from helpers.settings import SETTINGS
from helpers.snapshots import State, pairs, snapshots
from hypothesis import given, settings
from hypothesis import strategies as st

from mdmf_deploy.detection.outputs.done import InputKey
from mdmf_deploy.detection.outputs.resumable import journal_of
from mdmf_deploy.detection.outputs.rows_file import RowsFile
from mdmf_deploy.detection.rows import Row
from mdmf_deploy.errors import UsageError

ENDINGS = (".jsonl", ".csv")


@pytest.fixture(autouse=True)
def no_flushing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flushing takes most of the time, and no test cuts the power."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def key(n: int, mtime: int | None = 1) -> InputKey:
    return InputKey(f"{n}.jpg", 0, 10, mtime)


def rows(n: int) -> list[Row]:
    """The rows of input n: as many as n, and at least one. A cell of a CSV may hold several lines."""
    return [Row(uri=f"{n}.jpg#{at}", sha256=f"{n}" * 64, notes="two\nlines", score=n / 7) for at in range(max(1, n))]


def open_file(path: Path, **changed: object) -> RowsFile:
    return RowsFile(path, msgspec.structs.replace(SETTINGS, **changed))


def add(path: Path, *numbers: int) -> None:
    with open_file(path) as file:
        for n in numbers:
            file.write(key(n), rows(n))


def uris(path: Path) -> list[str]:
    with path.open(encoding="utf-8", newline="") as file:
        if path.suffix == ".csv":
            return [line["uri"] for line in csv.DictReader(file)]
        return [json.loads(line)["uri"] for line in file]


def wanted(*numbers: int) -> list[str]:
    return [row.uri for n in numbers for row in rows(n)]


def state(path: Path) -> State:
    return path.read_bytes(), journal_of(path).read_bytes()


def put(path: Path, state: State) -> None:
    path.write_bytes(state[0])
    journal_of(path).write_bytes(state[1])


def held(path: Path, numbers: Sequence[int]) -> list[int]:
    with open_file(path) as file:
        return [n for n in numbers if file.done.state(key(n)) == "done"]


def killed(path: Path, *numbers: int) -> tuple[State, State]:
    """Both files before and after the rows of these inputs were added by a run that did not end."""
    file = open_file(path)
    before = state(path)
    for n in numbers:
        file.write(key(n), rows(n))
    after = state(path)
    file.close()
    return before, after


@pytest.mark.parametrize("ending", ENDINGS)
def test_runs_add_to_one_file(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"rows{ending}"
    add(path, 0, 2)
    add(path)
    add(path, 1)
    assert uris(path) == wanted(0, 2, 1)
    with open_file(path) as file:
        assert [file.done.state(key(n)) for n in range(4)] == ["done", "done", "done", "new"]
        assert file.done.state(key(2, 7)) == "changed"
        assert file.done.state(key(2, 7), "2" * 64) == "done"
        assert [row.uri for row in file.rows()] == wanted(0, 2, 1)


@pytest.mark.parametrize("ending", ENDINGS)
def test_rows_are_seen_as_they_come(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"rows{ending}"
    with open_file(path) as file:
        for n in range(3):
            file.write(key(n), rows(n))
            assert uris(path) == wanted(*range(n + 1))


@pytest.mark.parametrize("ending", ENDINGS)
def test_exit_codes_can_be_told_from_the_rows(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"rows{ending}"
    judged = [
        Row(uri="=1.jpg", verdict="generated", size_group="0.5 to 2 MP"),
        Row(uri="a", verdict="uncertain", reason="one_frame", frame_time=1.5),
        Row(uri="a", status="error", verdict="error"),
    ]
    with open_file(path) as file:
        for n, row in enumerate(judged):
            file.write(key(n), [row])
        assert list(file.rows()) == judged


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_cut_costs_only_what_was_not_finished(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"rows{ending}"
    add(path, 3)
    before, after = killed(path, 0, 2)
    for at, name in ((0, "rows"), (1, "journal")):
        ends = [n for n in range(len(after[at]) + 1) if after[at][max(0, n - 3) : n + 2].count(b"\n")]
        sizes = range(len(before[at]), len(after[at]) + 1)
        # Every byte would take half a minute.
        for size in sorted({*sizes[::16], *(n for n in ends if n in sizes), sizes[-1]}):
            cut = [*after]
            cut[at] = cut[at][:size]
            put(path, (cut[0], cut[1]))
            found = held(path, [3, 0, 2])
            assert found in ([3], [3, 0], [3, 0, 2]), (name, size)
            assert uris(path) == wanted(*found)
            if size in (len(before[at]), len(after[at])):
                assert len(found) == 1 + 2 * (size == len(after[at]))


TAILS = st.binary(max_size=40) | st.integers(0, 5000).map(bytes)


@pytest.mark.parametrize("ending", ENDINGS)
@settings(deadline=None, max_examples=30)
@given(st.data())
def test_after_any_crash_the_next_run_completes_the_rows(
    tmp_path_factory: pytest.TempPathFactory, ending: str, data: st.DataObject
) -> None:
    """After a power failure, either file may be cut anywhere, and what follows may be zeros or anything else."""
    path = tmp_path_factory.mktemp("crash") / f"rows{ending}"
    first = data.draw(st.lists(st.integers(0, 3), unique=True))
    add(path, *first)
    more = [n for n in range(4) if n not in first]
    before, after = killed(path, *more)
    torn = [
        whole[: data.draw(st.integers(len(start), len(whole)))] + data.draw(TAILS)
        for start, whole in zip(before, after, strict=True)
    ]
    put(path, (torn[0], torn[1]))
    found = held(path, [*first, *more])
    assert found[: len(first)] == first
    assert uris(path) == wanted(*found)
    add(path, *(n for n in more if n not in found))
    add(path)
    assert uris(path) == wanted(*first, *more)
    assert path.read_bytes() == after[0]


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_run_killed_as_it_begins_leaves_what_the_next_can_use(
    tmp_path: Path, ending: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / f"rows{ending}"
    states = snapshots(path, monkeypatch, lambda: add(path, 1))
    assert {rows is None for rows, _ in states} | {journal is None for _, journal in states} == {True, False}
    for rows, journal in states:
        for file, content in ((path, rows), (journal_of(path), journal)):
            file.unlink(missing_ok=True)
            if content is not None:
                file.write_bytes(content)
        add(path, *(n for n in (1,) if n not in held(path, [1])))
        assert uris(path) == wanted(1)


@pytest.mark.parametrize("ending", ENDINGS)
def test_dropped_inputs_are_gone_in_one_step(tmp_path: Path, ending: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / f"rows{ending}"
    add(path, 0, 1, 2, 3)
    path.chmod(0o640)

    def drop() -> None:
        with open_file(path) as file:
            assert file.drop([("1.jpg", 0), ("2.jpg", 1), ("9.jpg", 0)]) == 1
            assert [file.done.state(key(n)) for n in range(4)] == ["done", "new", "done", "done"]
            file.write(key(4), rows(4))

    states = snapshots(path, monkeypatch, drop)
    assert uris(path) == wanted(0, 2, 3, 4)
    # Between the two files, an editor changes a byte of the new one.
    edited = [(rows.replace(b"3.jpg", b"7.jpg"), journal) for rows, journal in pairs(states) if b"1.jpg" in journal]
    for rows_then, journal in edited:
        put(path, (rows_then, journal))
        with pytest.raises(UsageError, match="was changed after mdmf wrote it"):
            open_file(path)
    assert {b"1.jpg" in rows_then for rows_then, _ in edited} == {True, False}
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert len(states) > 5
    for both in pairs(states):
        put(path, both)
        found = held(path, range(5))
        assert found in ([0, 1, 2, 3], [0, 2, 3], [0, 2, 3, 4])
        assert uris(path) == wanted(*found)
        add(path, *(n for n in (1, 4) if n not in found))
        assert sorted(uris(path)) == sorted(wanted(0, 1, 2, 3, 4))


def test_a_link_to_a_file_stays_a_link(tmp_path: Path) -> None:
    link, path = tmp_path / "link.jsonl", tmp_path / "folder" / "rows.jsonl"
    path.parent.mkdir()
    link.symlink_to(path)
    add(link, 1, 2)
    with open_file(link) as file:
        file.drop([("1.jpg", 0)])
    assert link.is_symlink()
    assert held(path, [1, 2]) == [2]
    assert journal_of(link) == journal_of(path)


def test_the_same_rows_twice_are_two_inputs(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    twice = [key(1), key(1)._replace(copy=1)]
    with open_file(path) as file:
        for one in twice:
            file.write(one, rows(1))
    with open_file(path) as file:
        assert file.drop([("1.jpg", 0)]) == 1
        assert [file.done.state(one) for one in twice] == ["new", "done"]
    assert uris(path) == wanted(1)


@pytest.mark.parametrize("ending", ENDINGS)
def test_what_somebody_else_changed_is_refused_and_kept(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"rows{ending}"
    add(path, 1, 2)
    whole, journal = state(path)
    middle = len(whole) // 2
    changed = [
        whole + b"\n",
        whole + whole[-100:],
        whole[:-1],
        whole[:middle] + b"x" + whole[middle + 1 :],
        whole[:middle] + whole[middle + 10 :],
        whole.replace(b"\n", b"\r\n"),
        b"x" + whole,
        b"",
    ]
    for content in changed:
        put(path, (content, journal))
        with pytest.raises(UsageError, match="was changed after mdmf wrote it"):
            open_file(path)
        assert state(path) == (content, journal)
    lines = journal.splitlines(keepends=True)
    for damaged in (lines[0], b"".join(lines[:3] + lines[4:]), journal.replace(b'"2.jpg"', b'"2.jp')):
        put(path, (whole, damaged))
        with pytest.raises(UsageError, match=r"was changed|is not a journal"):
            open_file(path)
        assert state(path) == (whole, damaged)


def test_rows_that_a_killed_run_had_flushed_are_not_cut_off(tmp_path: Path) -> None:
    """An editor changes a byte of rows that were finished long before the run was killed."""
    path = tmp_path / "rows.jsonl"
    add(path, 1, 2)
    _, (whole, journal) = killed(path, 3)
    put(path, (whole.replace(b"1.jpg", b"7.jpg"), journal))
    with pytest.raises(UsageError, match=r"changed after mdmf wrote it, at byte 0"):
        open_file(path)
    damaged = journal.replace(b'"2.jpg"', b'"2.jp')
    put(path, (whole, damaged))
    with pytest.raises(UsageError, match=r"resume was changed after mdmf wrote it"):
        open_file(path)
    assert state(path) == (whole, damaged)


def test_a_full_disk_costs_one_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "rows.jsonl"
    limit = 2000

    def open_small(self: Path, mode: str = "r", buffering: int = -1, **options: str) -> object:
        return Full(self, mode) if buffering == 0 else opened(self, mode, buffering, **options)

    class Full(io.FileIO):
        def write(self, data: object, /) -> int:
            room = limit - self.tell()
            if room <= 0:
                raise OSError(errno.ENOSPC, "No space left on device")
            return super().write(bytes(data)[:room])  # type: ignore[call-overload]

    opened = Path.open
    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", open_small)
        with pytest.raises(OSError, match="No space left") as caught:
            add(path, *range(9))
    assert caught.value.filename == str(path)
    found = held(path, range(9))
    assert 0 < len(found) < 9
    assert uris(path) == wanted(*found)
    add(path, *range(len(found), 9))
    assert uris(path) == wanted(*range(9))


def test_another_run_may_not_add(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    add(path, 1)
    with pytest.raises(
        UsageError, match=r"rows.jsonl was begun with other settings \(crops 1 there, 4 now\); give the"
    ):
        open_file(path, crops=4)
    if os.name == "posix":
        with open_file(path), pytest.raises(UsageError, match="another process is writing it"):
            open_file(path)
    assert held(path, [1]) == [1]


def test_a_file_without_a_journal_is_refused(tmp_path: Path, messages: Callable[[], str]) -> None:
    path = tmp_path / "rows.jsonl"
    path.touch()
    add(path, 1)  # an empty file is as good as none
    journal_of(path).unlink()
    with pytest.raises(UsageError, match=r"has no journal \(rows.jsonl.resume\) to go on from; choose another -o, or"):
        open_file(path)
    assert uris(path) == wanted(1)
    path.unlink()
    add(path, 2)
    path.unlink()
    assert not messages()
    add(path, 3)
    assert messages() == f"{path} is gone, so this run begins anew"
    assert uris(path) == wanted(3)


def test_a_place_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="choose a place you can read and write"):
        open_file(tmp_path / "nowhere" / "rows.jsonl")


def test_rows_are_flushed_before_the_journal_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "rows.jsonl"
    flushed: dict[str, bytes] = {}

    def flush(descriptor: int) -> None:
        for file in (path, journal_of(path)):
            if file.exists() and os.path.samestat(os.fstat(descriptor), file.stat()):
                flushed[file.name] = file.read_bytes()

    def marks() -> Iterator[int]:
        for line in journal_of(path).read_bytes().splitlines():
            found = json.loads(line)
            if "state" in found:
                yield found["size"]

    monkeypatch.setattr(os, "fsync", flush)
    with RowsFile(path, SETTINGS, every_row=True) as file:
        # Otherwise the journal might say after a power failure that no row follows, where one does.
        assert flushed[f"{path.name}.resume"] == journal_of(path).read_bytes()
        for n in range(3):
            file.write(key(n), rows(n))
            assert flushed[path.name] == path.read_bytes()
            assert max(marks()) == len(flushed[path.name])
            assert flushed[f"{path.name}.resume"].endswith(journal_of(path).read_bytes().splitlines()[-2] + b"\n")
    with open_file(path) as file:
        file.write(key(3), rows(3))
        assert flushed[path.name] != path.read_bytes()  # every few seconds, and at the end
    assert flushed[path.name] == path.read_bytes()
    assert flushed[f"{path.name}.resume"] == journal_of(path).read_bytes()
