"""Sources: what is taken of each no longer depends on the caller, and a bad one costs only itself."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mdmf_deploy.bundle.recipe import Preprocessing
from mdmf_deploy.detection.feed import prepare
from mdmf_deploy.detection.sources import Named, Source, Taken, is_one, take
from mdmf_deploy.errors import ImageError, UsageError
from mdmf_deploy.images.decode import ReadLimits

LIMITS = ReadLimits(max_bytes=1000)
PIXELS = np.random.default_rng(0).integers(0, 256, (40, 30, 3), np.uint8)


class Dripping(io.RawIOBase):
    """A file that cannot be sought and gives one byte a read, as a pipe may."""

    def __init__(self, data: bytes) -> None:
        self._data = io.BytesIO(data)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        part = self._data.read(1)
        buffer[: len(part)] = part
        return len(part)


def test_a_single_source_of_any_kind_is_one(tmp_path: Path) -> None:
    image = Image.fromarray(PIXELS)
    alone: list[object] = ["a.jpg", Path("a.jpg"), b"", bytearray(), memoryview(b""), PIXELS, image, io.BytesIO()]
    with (tmp_path / "a").open("w+b") as file:
        for source in [*alone, file, io.StringIO(), Named("a.jpg", "b")]:
            assert is_one(source)
    for several in (["a.jpg"], ("a.jpg",), {"a.jpg"}, iter(["a.jpg"]), (path for path in ["a.jpg"])):
        assert not is_one(several)


@pytest.mark.parametrize(
    "source", [io.BytesIO(b"abc"), Dripping(b"abc"), b"abc", bytearray(b"abc"), memoryview(b"abc")]
)
def test_bytes_are_read_whole_wherever_they_come_from(source: Source) -> None:
    taken = take(3, source, LIMITS)
    assert taken.data(LIMITS) == b"abc"
    assert taken.uri(3) in ("bytes:3", "file:3")


def test_a_file_object_is_read_from_where_it_stands_and_may_be_closed_then(tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_bytes(b"0123456789")
    with (tmp_path / "photo.jpg").open("rb") as file:
        file.seek(4)
        taken = take(0, file, LIMITS)
    assert taken.data(LIMITS) == b"456789"
    assert taken.uri(0) == (tmp_path / "photo.jpg").as_posix()


def test_a_file_object_that_gives_no_bytes_is_an_error_of_its_own(tmp_path: Path) -> None:
    closed = io.BytesIO(b"abc")
    closed.close()
    (tmp_path / "a.txt").write_text("abc")

    class Broken(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            raise OSError(5, "Input/output error")

    class Wordy:
        def read(self, size: int = -1) -> str:
            return "abc"

    with (tmp_path / "a.txt").open(encoding="utf-8") as text:
        for source, code, message in (
            (text, "unreadable", "a.txt is open as text; open it with mode 'rb'"),
            (io.StringIO("abc"), "unreadable", "file:2 is open as text"),
            (Wordy(), "unreadable", "file:2 reads str, not bytes"),
            (closed, "unreadable", "file:2 cannot be read: I/O operation on closed file"),
            (Broken(), "unreadable", "file:2 cannot be read: Input/output error"),
            (io.BytesIO(bytes(1001)), "too_many_bytes", "file:2 is larger than the 1000 bytes allowed"),
        ):
            taken = take(2, source, LIMITS)  # type: ignore[arg-type]
            with pytest.raises(ImageError, match=message) as caught:
                taken.data(LIMITS)
            assert caught.value.code == code


def test_an_endless_file_object_is_not_read_to_its_end() -> None:
    class Endless(io.RawIOBase):
        total = 0

        def read(self, size: int = -1, /) -> bytes:
            self.total += 100
            return bytes(100)

    endless = Endless()
    with pytest.raises(ImageError, match="larger than the 1000 bytes allowed"):
        take(0, endless, LIMITS).data(LIMITS)
    assert endless.total <= 1100


def test_a_lazy_image_is_loaded_when_it_is_taken(tmp_path: Path) -> None:
    Image.fromarray(PIXELS).save(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image:
        taken = take(0, image, LIMITS)
    np.testing.assert_array_equal(taken.pixels("a"), PIXELS)
    assert taken.uri(5) == "image:5"
    bad = take(1, Image.new("RGB", (30, 40)), ReadLimits(max_pixels=100))
    with pytest.raises(ImageError, match="image:1 of 30 x 40 pixels is larger than the 100 allowed"):
        bad.data(LIMITS)


@pytest.mark.parametrize("source", ["a.jpg", b"abc", PIXELS, Image.fromarray(PIXELS), io.BytesIO(b"abc")])
def test_a_name_is_the_uri(source: Source) -> None:
    assert take(0, Named(source, "frame 12"), LIMITS).uri(0) == "frame 12"
    assert take(0, Named(Named(source, "inner"), "frame 12"), LIMITS).uri(0) == "frame 12"


@pytest.mark.parametrize("name", ["", "two\nlines", "\x1b[31m"])
def test_a_name_is_one_printable_line(name: str) -> None:
    with pytest.raises(UsageError, match="must be one line of printable characters"):
        Named(b"", name)


def test_pixels_have_one_hash_whatever_holds_them() -> None:
    plan = Preprocessing(crop=28)
    sources: list[Source | Taken] = [PIXELS, Image.fromarray(PIXELS), take(0, PIXELS[..., ::-1], LIMITS, "bgr")]
    found = [prepare(0, source, plan, 1, ReadLimits()).extraction for source in sources]
    assert len({one.sha256 for one in found}) == 1
    assert [one.format for one in found] == ["array", "image", "array"]


def test_what_the_caller_does_with_a_source_later_changes_nothing(tmp_path: Path) -> None:
    """OpenCV's read(dst) writes every frame into one array, and a Pillow image of a GIF holds one frame at a time."""
    array, buffer, image = PIXELS.copy(), bytearray(b"abc"), Image.fromarray(PIXELS)
    view = memoryview(buffer)
    grey = Image.fromarray(PIXELS[..., 0].astype(np.uint16) * 16)
    grey.save(tmp_path / "a.tif", tiffinfo={258: 12, 262: 0})
    turned = Image.fromarray(PIXELS)
    turned.getexif()[274] = 6
    with Image.open(tmp_path / "a.tif") as tiff:
        sources: list[Source] = [array, array[::-1, :, ::-1], image, buffer, view, tiff, turned]
        taken = [take(n, source, LIMITS) for n, source in enumerate(sources)]
        again = [take(n, source, LIMITS) for n, source in enumerate(sources)]
        wanted = [one.data(LIMITS) or one.pixels("a").copy() for one in again]
        array[:] = 0
        buffer[:] = b"xyz"
        image.paste(0, (0, 0, *image.size))
        tiff.close()
        del tiff.tag_v2[262]
        turned.getexif()[274] = 3
        turned.close()
    for one, before in zip(taken, wanted, strict=True):
        np.testing.assert_array_equal(one.data(LIMITS) or one.pixels("a"), before)
    assert wanted[6].shape == (30, 40, 3)  # type: ignore[union-attr]
