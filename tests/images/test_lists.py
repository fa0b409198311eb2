"""A list gives its paths whatever its encoding, and nothing else passes for a list."""

from __future__ import annotations

import codecs
import io
import os
import zipfile
from collections.abc import Iterator

import pytest
from helpers.bad_inputs import encoded, photo
from hypothesis import given, settings
from hypothesis import strategies as st

from mdmf_deploy.errors import UsageError
from mdmf_deploy.images import lists
from mdmf_deploy.images.lists import read_list

NAMES = ["/a/b.jpg", "C:\\photos\\é 日本.png", "🙂\t1.webp"]
MARKS = {
    "utf-8": codecs.BOM_UTF8,
    "utf-16-le": codecs.BOM_UTF16_LE,
    "utf-16-be": codecs.BOM_UTF16_BE,
    "utf-32-le": codecs.BOM_UTF32_LE,
    "utf-32-be": codecs.BOM_UTF32_BE,
}


def read(data: bytes) -> list[str]:
    return list(read_list(io.BytesIO(data), "the list"))


def refusal(data: bytes) -> str:
    with pytest.raises(UsageError) as caught:
        read(data)
    text = str(caught.value)
    assert text.startswith("the list ")
    assert "give paths, one per line in UTF-8" in text
    assert len(text.splitlines()) == 1
    return text


@pytest.mark.parametrize("encoding", MARKS)
@pytest.mark.parametrize("newline", ["\n", "\r\n", "\0"])
def test_a_byte_order_mark_says_what_the_names_are_in(encoding: str, newline: str) -> None:
    text = newline.join([NAMES[0], "", *NAMES[1:]])
    for end in ("", newline):
        assert read(MARKS[encoding] + (text + end).encode(encoding)) == NAMES


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-32-be"])
def test_characters_may_lie_across_blocks(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lists, "_BLOCK", 7)
    assert read(MARKS[encoding] + "\r\n".join(NAMES).encode(encoding)) == NAMES
    assert read(b"aaaaaa\r\nbbbbbbb\r\n") == ["aaaaaa", "bbbbbbb"]  # a block ends between \r and \n


def test_lists_with_marks_may_be_joined() -> None:
    assert read(codecs.BOM_UTF8 + b"a.jpg\n" + codecs.BOM_UTF8 + b"b.jpg\n") == ["a.jpg", "b.jpg"]


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-le"])
@pytest.mark.parametrize(
    "text", ["/\n", "/home/me/a.jpg", "照片/假期/一.jpg\n照片/假期/二.jpg\n", "C:\\a.jpg\r\nC:\\b.jpg\r\n"]
)
def test_utf_16_without_its_mark_never_becomes_short_paths(encoding: str, text: str) -> None:
    text = text * 4 if encoding == "utf-32-le" or len(text) < 4 else text
    assert "UTF-16" in refusal(text.encode(encoding)) or encoding == "utf-32-le"


@pytest.mark.parametrize("cut", [1, 3])
def test_a_damaged_list_is_refused(cut: int) -> None:
    assert "is damaged" in refusal(codecs.BOM_UTF16_LE + "a.jpg\n".encode("utf-16-le")[:-cut])
    assert "is damaged" in refusal(codecs.BOM_UTF16_LE + b"\x00\xd8a\x00")  # half of a surrogate pair


@settings(deadline=None, derandomize=True)
@given(
    st.lists(
        st.text(st.characters(codec="utf-8", exclude_categories=["Cc"]), min_size=1, max_size=12).filter(
            lambda name: bool(name.encode().strip()) and not name.startswith("\ufeff")
        ),
        min_size=1,
        max_size=6,
    ),
    st.sampled_from([*MARKS.items()]),
)
def test_every_name_survives_every_encoding(names: list[str], mark: tuple[str, bytes]) -> None:
    assert read(mark[1] + "\n".join(names).encode(mark[0])) == names


def test_names_keep_bytes_that_are_not_utf_8() -> None:
    for separator in (b"\n", b"\0"):
        names = [b"caf\xe9.jpg", b"\x93\x85.png", b"\xff\xd8 \xff.jpg"]
        assert [os.fsencode(name) for name in read(separator.join(names))] == names


def test_what_find_writes_between_nuls_is_taken_as_it_is() -> None:
    names = [".", "./a", "./b", "./new\nline.jpg", "./bell\x07.jpg", "./tab\t.jpg", "1", "2", "x" * 4096]
    assert read(b"".join(name.encode() + b"\0" for name in names)) == names
    assert read(b"1\x002\x003\0") == ["1", "2", "3"]
    assert read(b".\0./a\0./b\0") == [".", "./a", "./b"]


def files() -> Iterator[tuple[str, bytes]]:
    for format, name in (
        ("JPEG", "a JPEG"),
        ("PNG", "a PNG"),
        ("WEBP", "a WebP"),
        ("TIFF", "a TIFF"),
        ("GIF", "a GIF"),
    ):
        yield name, encoded(photo(), format)
    yield "a BMP", encoded(photo(), "BMP")
    yield "a PDF", encoded(photo(), "PDF")
    yield "a PDF", b"%PDF-1.7\n1 0 obj\n"
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a.jpg", b"x")
    yield "a ZIP archive", buffer.getvalue()
    yield "a HEIC image", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"
    yield "an AVIF image", b"\0\0\0\x1cftypavif\0\0\0\0avifmif1"
    yield "an MP4 video", b"\0\0\0\x18ftypisom\0\0\x02\0isomiso2"
    yield "a gzip file", b"\x1f\x8b\x08\0\0\0\0\0\0\x03"
    yield "a program", b"\x7fELF\x02\x01\x01\0"
    yield "a program", b"MZ\x90\0\x03\0\0\0"
    yield "a tar archive", b"a.jpg".ljust(257, b"\0") + b"ustar\x0000"
    yield "a SQLite database", b"SQLite format 3\0\x10\0"
    yield "a sound file", b"RIFF\x24\0\0\0WAVEfmt "


@pytest.mark.parametrize(("name", "data"), list(files()), ids=lambda value: value if isinstance(value, str) else "")
def test_a_file_of_another_kind_is_named(name: str, data: bytes) -> None:
    assert f"is {name}, not a list of paths" in refusal(data)


@pytest.mark.parametrize(
    "first", ["BMW/a.jpg", "GIF89a/é.jpg", "II/MM.tif", "%PDF-1.4/a.jpg", "RIFF/x.WEBP", "PK/a.jpg"]
)
def test_a_folder_may_be_named_like_a_file_begins(first: str) -> None:
    assert read(f"{first}\nb.jpg\n".encode()) == [first, "b.jpg"]


@pytest.mark.parametrize("byte", [1, 7, 8, 11, 12, 13, 27, 31, 127])
def test_control_bytes_in_lines_are_refused_with_their_line(byte: int) -> None:
    assert f"line 3 holds the control byte 0x{byte:02x}" in refusal(b"a.jpg\r\nb.jpg\nc" + bytes([byte]) + b".jpg\nd\n")


def test_a_nul_after_lines_is_a_control_byte(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lists, "_BLOCK", 16)
    assert "line 5 holds the control byte 0x00" in refusal(b"a.jpg\n" * 4 + b"b\0c")


class Endless(io.RawIOBase):
    """A stream without end that counts what is read."""

    def __init__(self, pattern: bytes) -> None:
        super().__init__()
        self.pattern, self.count = pattern, 0

    def read(self, size: int = -1) -> bytes:
        assert size > 0, "the whole stream was asked for"
        self.count += size
        return (self.pattern * (size // len(self.pattern) + 1))[:size]


@pytest.mark.parametrize(
    "pattern", [b"\0", bytes(range(256)), b"\x01\x00\x00\x00\x02\x00\x00\x00", b"\xff\xd8\xff\0\x10JFIF"]
)
def test_binary_streams_are_refused_at_their_beginning(pattern: bytes) -> None:
    stream = Endless(pattern)
    with pytest.raises(UsageError, match=r"(not a|no) list of paths"):
        read_list(stream, "the list")  # type: ignore[arg-type]
    assert stream.count <= 2**17


def test_an_endless_list_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lists, "MOST_BYTES", 2**20)
    stream = Endless(b"a.jpg\n")
    with pytest.raises(UsageError, match="longer than 1 MiB"):
        read_list(stream, "the list")  # type: ignore[arg-type]
    assert stream.count <= 2**21


@pytest.mark.parametrize("data", [b"", b"\n \r\n", codecs.BOM_UTF8, codecs.BOM_UTF16_LE, b"\0"])
def test_a_list_without_paths_is_refused(data: bytes) -> None:
    assert "holds no path" in refusal(data)
