"""The journal of a file of rows that later runs add to: which inputs it holds, and where.

    rows.jsonl          rows, in the order in which they came
    rows.jsonl.resume   the journal: a line with the settings, and then a line for each input and each mark

An input's line follows its rows and gives their length and checksum. So after a crash, the rows that the journal
describes are whole, and whatever follows them is cut off. A mark says what is on the disk for sure. Up to the last mark
everything must be as it was written. If it is not, somebody else changed the file, and it is refused.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal, NamedTuple

import msgspec

from mdmf_deploy.detection.outputs.done import Held, InputKey
from mdmf_deploy.detection.settings import RunSettings
from mdmf_deploy.errors import UsageError
from mdmf_deploy.files import atomic_file


class Entry(msgspec.Struct, frozen=True, array_like=True):
    """The line of one input.  bytes, crc: length and CRC-32 of its rows."""

    uri: str
    copy: int
    size: int | None
    mtime_ns: int | None
    bytes: int
    crc: int
    error_code: str | None = None
    sha256: str | None = None

    @property
    def held(self) -> Held:
        """The input, as Done takes it."""
        return Held(InputKey(self.uri, self.copy, self.size, self.mtime_ns), self.sha256, self.error_code)


class Mark(msgspec.Struct, frozen=True):
    """What is on the disk for sure: the journal up to here, and the rows of all inputs in it.

    state: "synced" if more rows may follow, "closed" if none do, "replacing" if a file with only some of these rows is
        about to take their place.
    size: bytes of the rows; of the new file, if one takes their place. 0 where not even the file is there for sure.
    """

    state: Literal["synced", "closed", "replacing"]
    size: int


class _Header(msgspec.Struct, frozen=True):
    settings: RunSettings


class Recovered(NamedTuple):
    """How many bytes of the journal and of the rows are whole."""

    journal: int
    rows: int


_ENCODE = msgspec.json.Encoder().encode
_ENTRY, _MARK = msgspec.json.Decoder(Entry).decode, msgspec.json.Decoder(Mark).decode


def line(value: Entry | Mark) -> bytes:
    """Return a line of the journal."""
    return _ENCODE(value) + b"\n"


@dataclass(frozen=True, slots=True)
class Journal:
    """A journal as it lies on the disk.  rows: the file that it belongs to."""

    path: Path
    rows: Path

    def write(self, settings: RunSettings, entries: Iterable[Entry], size: int) -> None:
        """Write it anew, in one step.  size: bytes of the rows, which are on the disk."""
        with atomic_file(self.path) as scratch, scratch.open("wb") as file:
            file.write(_ENCODE(_Header(settings)) + b"\n")
            file.writelines(map(line, entries))
            file.write(line(Mark("synced", size)))

    def settings(self) -> RunSettings:
        """Return the settings of the run that began it. Raises UsageError if it is no journal of this version."""
        with self.path.open("rb") as file:
            first = file.readline()
        try:
            return msgspec.json.decode(first, type=_Header).settings
        except msgspec.MsgspecError as error:
            raise UsageError(
                f"{self.path} is not a journal of this version of mdmf-deploy ({error}); choose another -o"
            ) from error

    def entries(self) -> Iterator[Entry]:
        """Yield the entries, after `recover` and until something else is appended."""
        return (found for found, _ in self._lines() if isinstance(found, Entry))

    def recover(self, header: bytes) -> Recovered:
        """Find what is whole after any crash. The caller cuts off the rest.

        A journal whose rows were replaced just before the crash is written anew.
        header: what comes before the first row.
        Raises UsageError if something else than a crash changed the rows or the journal.
        """
        mark, marked = self._last_mark()
        there = self.rows.stat().st_size
        with self.rows.open("rb") as file:
            if file.read(len(header)) != header:
                self._refuse_if(mark.size > 0, 0)
                return Recovered(marked, 0)
            before = sum(found.bytes for found, end in self._lines() if isinstance(found, Entry) and end <= marked)
            if mark.state == "replacing" and there == mark.size != len(header) + before:
                return self._replaced(file, there)
            rows, journal = len(header), marked
            for found, end in self._lines():
                if isinstance(found, Entry):
                    if not _matches(file, rows, found):
                        self._refuse_if(end <= marked, rows)
                        break
                    rows, journal = rows + found.bytes, max(marked, end)
        self._refuse_if(mark.state != "synced" and there != rows, rows)
        return Recovered(journal, rows)

    def _replaced(self, file: BinaryIO, size: int) -> Recovered:
        """Write the journal without the inputs whose rows are gone from the new file of rows."""

        def kept(offset: int) -> Iterator[Entry]:
            for entry in self.entries():
                if _matches(file, offset, entry):
                    offset += entry.bytes
                    yield entry
            self._refuse_if(offset != size, offset)

        self.write(self.settings(), kept(file.tell()), size)
        return Recovered(self.path.stat().st_size, size)

    def _last_mark(self) -> tuple[Mark, int]:
        """Return the last mark and where its line ends. No line before it can be damaged by a crash."""
        last: tuple[Mark, int] | None = None
        whole = True
        with self.path.open("rb") as file:
            end = len(file.readline())
            for text in file:
                end += len(text)
                value = _decoded(text)
                whole = whole and value is not None
                if isinstance(value, Mark):
                    last = (value, end) if whole else None
        if last is None:
            raise UsageError(f"{self.path} was changed after mdmf wrote it; undo that, or choose another -o")
        return last

    def _lines(self) -> Iterator[tuple[Entry | Mark, int]]:
        """Yield the lines after the first, and where each ends, until one that is cut or damaged."""
        with self.path.open("rb") as file:
            end = len(file.readline())
            for text in file:
                value = _decoded(text)
                if value is None:
                    return
                end += len(text)
                yield value, end

    def _refuse_if(self, changed: bool, offset: int) -> None:
        if changed:
            raise UsageError(
                f"{self.rows} was changed after mdmf wrote it, at byte {offset}; undo that, choose another -o, "
                "or remove the file to begin anew"
            )


def _decoded(text: bytes) -> Entry | Mark | None:
    if not text.endswith(b"\n"):
        return None
    try:
        return _ENTRY(text) if text.startswith(b"[") else _MARK(text)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None


def _matches(file: BinaryIO, offset: int, entry: Entry) -> bool:
    """Return whether the rows of an input stand at this place."""
    file.seek(offset)
    data = file.read(entry.bytes)
    return len(data) == entry.bytes and zlib.crc32(data) == entry.crc
