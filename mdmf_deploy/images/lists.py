"""Lists of paths, read from standard input or a file.

Paths stand one a line, or are separated by NULs, as `find -print0` writes them. A byte order mark says that the list is
UTF-8, UTF-16 or UTF-32. Without one, names are the bytes between the separators, whatever their encoding. Anything
else is refused as early as it shows: an image or another binary file, control bytes, UTF-16 without its mark.
"""

from __future__ import annotations

import codecs
import os
import re
from collections.abc import Iterator
from itertools import chain
from typing import BinaryIO

from mdmf_deploy.errors import UsageError
from mdmf_deploy.images.magic import kind_of_file

MOST_BYTES = 2**30
"""The size of the largest list. A stream without end is refused there."""

_BLOCK = 2**16
# UTF-32 comes first, because its little-endian mark begins with the one of UTF-16.
_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
# A tab may be part of a name, and a carriage return may end a line or the list.
_CONTROL_IN_LINES = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]|\r(?=[^\n])")
# Control bytes that are no white space, and empty names.
_ODD_BETWEEN_NULS = re.compile(rb"[\x01-\x08\x0b\x0c\x0e-\x1f\x7f]|\0(?=\0)")
_HINT = "give paths, one per line in UTF-8, or separated by NUL"


def read_list(file: BinaryIO, source: str) -> Iterator[str]:
    """Read a list of paths, and return an iterator over them. Names that are not UTF-8 keep their bytes.

    The whole list has been read and checked then, and is held as the bytes that it is.
    source: names the list in errors, such as "standard input".
    Raises UsageError if it holds no path, or anything but paths. Raises OSError if it cannot be read.
    """
    blocks = _in_utf_8(file, source)
    head = next(blocks, b"")
    separator = b"\0" if b"\0" in head else b"\n"
    data, odd = bytearray(), 0
    for block in chain([head], blocks):
        data += block
        if separator == b"\n":
            # From the byte before, because a block may begin between a carriage return and its newline.
            _refuse_control_bytes(data, max(0, len(data) - len(block) - 1), source)
        odd += len(_ODD_BETWEEN_NULS.findall(block)) if separator == b"\0" else 0
        # Such names are rare, but find writes them.
        if odd > 4 + len(data) // 20:
            raise UsageError(f"{source} holds binary data, not a list of paths; {_HINT}")
        if len(data) > MOST_BYTES:
            raise UsageError(f"{source} is longer than {MOST_BYTES >> 20} MiB; {_HINT}, or split the list")
    if next(_names(data, separator), None) is None:
        raise UsageError(f"{source} holds no path; {_HINT}")
    return _names(data, separator)


def _names(data: bytearray, separator: bytes) -> Iterator[str]:
    start = 0
    while start <= len(data):
        end = data.find(separator, start)
        end = len(data) if end < 0 else end
        name = bytes(data[start:end])
        start = end + 1
        if separator == b"\n":
            # A mark inside comes from lists that were joined.
            name = name.removesuffix(b"\r").removeprefix(codecs.BOM_UTF8)
        if name.strip():
            yield os.fsdecode(name)


def _in_utf_8(file: BinaryIO, source: str) -> Iterator[bytes]:
    """Yield a list block by block, in UTF-8 if a mark says what it is in, otherwise as it is."""
    head = file.read(_BLOCK)
    mark, encoding = next(((mark, name) for mark, name in _MARKS if head.startswith(mark)), (b"", ""))
    if not encoding:
        kind = kind_of_file(head)
        if kind is not None:
            raise UsageError(f"{source} is {kind}, not a list of paths; {_HINT}")
        if _looks_like_utf_16(head):
            raise UsageError(f"{source} looks like UTF-16 without its byte order mark; {_HINT}")
        yield head.removeprefix(codecs.BOM_UTF8)
        while block := file.read(_BLOCK):
            yield block
        return
    decoder = codecs.getincrementaldecoder(encoding)()
    block = head[len(mark) :]
    try:
        while block:
            yield decoder.decode(block).encode()
            block = file.read(_BLOCK)
        decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        name = encoding.rpartition("-")[0].upper()
        raise UsageError(
            f"{source} begins with the mark of {name}, but is damaged ({error.reason}); {_HINT}"
        ) from error


def _looks_like_utf_16(head: bytes) -> bool:
    """Return whether every other byte tends to be NUL, as in UTF-16 and not between names."""
    even, odd = head[::2], head[1::2]
    for high, low in ((even, odd), (odd, even)):
        # Names of one letter between NULs look the same, except for these characters.
        latin = 0 not in low and len(head) >= 8 and any(byte in low for byte in b"./\\")
        newlines = [at for at, byte in enumerate(low[: len(high)]) if byte == 10]
        paired = bool(newlines) and 10 not in high and all(high[at] == 0 for at in newlines)
        if paired or (latin and high.count(0) >= 0.7 * len(high)):
            return True
    return False


def _refuse_control_bytes(data: bytearray, start: int, source: str) -> None:
    found = _CONTROL_IN_LINES.search(data, start)
    if found:
        line = data.count(b"\n", 0, found.start()) + 1
        raise UsageError(
            f"{source} is no list of paths: line {line} holds the control byte 0x{found[0][0]:02x}; {_HINT}"
        )
