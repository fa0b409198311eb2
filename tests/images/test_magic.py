"""Every image and video is known by its first bytes, whoever wrote it, and no text passes for one."""

from __future__ import annotations

import io
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from helpers.bad_inputs import encoded, photo
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mdmf_deploy.images.magic import holds_pictures, image_format, kind_of_file, unsupported, video_format

TIFF = b"II*\0\x08\0\0\0"
BOX = b"\0\0\0\x18ftyp"
# Images and videos that Pillow and OpenCV cannot write: name, first bytes.
HANDMADE = [
    ("a Canon CR2 camera raw", b"II*\0\x10\0\0\0CR\x02\0" + bytes(20)),
    ("a Canon CR3 camera raw", BOX + b"crx \0\0\0\x01crx isom"),
    ("a Canon CRW camera raw", b"II\x1a\0\0\0HEAPCCDR"),
    ("a Fujifilm RAF camera raw", b"FUJIFILMCCD-RAW 0201FF389501X-T3".ljust(80, b"\0")),
    ("an Olympus ORF camera raw", b"IIRO\x08\0\0\0"),
    ("an Olympus ORF camera raw", b"MMOR\0\0\0\x08"),
    ("a Panasonic RW2 camera raw", b"IIU\0\x18\0\0\0"),
    ("a Minolta MRW camera raw", b"\0MRM\0\0\x10\0"),
    ("a Sigma X3F camera raw", b"FOVb\0\0\x02\0"),
    ("a Photoshop file", b"8BPS\0\x01" + bytes(8)),
    ("a Photoshop file", b"8BPS\0\x02" + bytes(8)),
    ("an OpenEXR image", b"v/1\x01\x02\0\0\0"),
    ("a GIMP image", b"gimp xcf v011\0"),
    ("a JPEG XR", b"II\xbc\x01\x08\0\0\0"),
    ("a DICOM image", bytes(128) + b"DICM\x02\0"),
    ("an MNG animation", b"\x8aMNG\r\n\x1a\n"),
    ("a Windows metafile", b"\x01\0\0\0" + bytes(36) + b" EMF"),
    ("an MPEG video", b"\0\0\x01\xba\x44\0"),
    ("an Ogg video", b"OggS\0\x02" + bytes(22) + b"\x80theora\x03\x02"),
    ("an MXF video", b"\x06\x0e\x2b\x34\x02\x05\x01\x01\x0d\x01\x02\x01"),
    ("a QuickTime video", b"\0\0\0\x08wide\0\1\2\3mdat"),
    ("a QuickTime video", b"\x01\x02\x03\x04mdat\0\0"),
    ("a HEIF image", BOX + b"mif1\0\0\0\0mif1avci"),
    ("a HEIC image", BOX + b"msf1\0\0\0\0msf1hevc"),
]
# Files that are neither: name, first bytes.
OTHERS = [
    ("an M4A sound file", BOX + b"M4A \0\0\x02\0M4A mp42"),
    ("a sound file", b"OggS\0\x02" + bytes(22) + b"\x01vorbis"),
    ("a Windows Media file", b"\x30\x26\xb2\x75\x8e\x66\xcf\x11" + bytes(99)),
    ("a side file of macOS", b"\0\x05\x16\x07\0\x02\0\0Mac OS X"),
    ("a gzip file", b"\x1f\x8b\x08\0"),
    ("a PDF", b"%PDF-1.7\n"),
]


@pytest.mark.parametrize(("name", "data"), HANDMADE, ids=str)
def test_kinds_by_their_first_bytes(name: str, data: bytes) -> None:
    assert kind_of_file(data) == name
    assert holds_pictures(data)
    assert unsupported(data).startswith(f"this is {name}")
    assert image_format(data) == ("heif" if "HEI" in name else None)


@pytest.mark.parametrize(("name", "data"), OTHERS, ids=str)
def test_other_kinds_are_named_and_hold_no_pictures(name: str, data: bytes) -> None:
    assert kind_of_file(data) == name
    assert not holds_pictures(data)
    assert unsupported(data).startswith(f"this is {name}, not an image")


@pytest.mark.parametrize(
    ("format", "name"),
    [
        ("ICO", "an icon"),
        ("ICNS", "an icon"),
        ("PPM", "a PNM image"),
        ("SGI", "an SGI image"),
        ("PCX", "a PCX image"),
        ("DDS", "a DDS texture"),
        ("EPS", "an EPS drawing"),
        ("XBM", "an XBM image"),
        ("TGA", "a TGA image"),
    ],
)
def test_what_pillow_writes_is_named(format: str, name: str) -> None:
    image = Image.fromarray(photo(32, 32))
    data = encoded(image.convert("1") if format == "XBM" else image, format)
    assert unsupported(data).startswith(f"this is {name}, which ")
    assert holds_pictures(data)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "MPO", "JPEG2000"])
def test_what_is_decoded_is_known(format: str) -> None:
    data = encoded(photo(), format)
    assert image_format(data) == {"MPO": "jpeg"}.get(format, format.lower())
    assert video_format(data) is None
    assert holds_pictures(data[:64])


def test_formats_that_an_extra_reads_name_it() -> None:
    assert unsupported(BOX + b"heic\0\0\0\0mif1heic") == (
        "this is a HEIC image; to read it, run: pip install 'mdmf-deploy[heif]'"
    )
    assert unsupported(b"\xff\x0a\x7a\x07") == "this is a JPEG XL; to read it, run: pip install 'mdmf-deploy[jxl]'"
    assert unsupported(BOX + b"avif\0\0\0\0mif1avif").startswith("this is an AVIF image; to read it, run: ")
    assert unsupported(BOX + b"isom\0\0\0\0isomiso2") == (
        "this is an MP4 video; to score videos, run: pip install 'mdmf-deploy[video]'"
    )


@pytest.mark.parametrize(
    ("ending", "codec", "format", "name"),
    [
        ("mp4", "mp4v", "mp4", "an MP4 video"),
        ("3gp", "mp4v", "mp4", "a 3GP video"),
        ("mov", "mp4v", "mov", "a QuickTime video"),
        ("mkv", "mp4v", "mkv", "a Matroska video"),
        ("webm", "VP80", "webm", "a WebM video"),
        ("avi", "MJPG", "avi", "an AVI video"),
        ("m2ts", "mp4v", None, "an MPEG transport stream"),
        ("mts", "mp4v", None, "an MPEG transport stream"),
        ("flv", "FLV1", None, "a Flash video"),
        ("wmv", "WMV2", None, "a Windows Media video"),
    ],
)
def test_what_opencv_writes_is_named(ending: str, codec: str, format: str | None, name: str, tmp_path: Path) -> None:
    cv2 = pytest.importorskip("cv2")
    path = tmp_path / f"clip.{ending}"
    clip = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*codec), 10, (64, 48))
    for shade in range(5):
        clip.write(np.full((48, 64, 3), 40 * shade, np.uint8))
    clip.release()
    data = path.read_bytes()[:4096]
    if not data:
        pytest.skip("this OpenCV has no such codec")
    assert (video_format(data), kind_of_file(data)) == (format, name)
    assert holds_pictures(data)
    assert image_format(data) is None


@pytest.mark.parametrize("ending", ["hdr", "pfm", "ras", "pam", "pgm", "pbm"])
def test_what_opencv_writes_is_an_image(ending: str) -> None:
    cv2 = pytest.importorskip("cv2")
    pixels = photo(32, 32)[..., 0] if ending in ("pgm", "pbm") else photo(32, 32)
    _, data = cv2.imencode(f".{ending}", pixels.astype(np.float32) if ending in ("hdr", "pfm") else pixels)
    assert holds_pictures(data.tobytes())
    assert "not read here" in unsupported(data.tobytes())


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
SVG = b'<?xml version="1.0"?>\n<!-- a --><!-- b -->\n<svg xmlns="http://www.w3.org/2000/svg"/>'


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"<!DOCTYPE html>\n<html><body>Sign in</body></html>", "a web page, not an image: the download failed"),
        (b"\n <!-- saved --> <HTML>", "a web page"),
        ("\ufeff<html>".encode("utf-16"), "a web page"),
        ("<html>caf\xe9 au lait".encode("latin-1"), "a web page"),
        (b"BMW is a car", "plain text"),
        (LFS, "a Git LFS pointer, not the image itself; run `git lfs pull`"),
        (b"../../.git/annex/objects/Xk/9f/SHA256E-s1--2.jpg\n", "a git-annex pointer"),
        (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "XML, such as a server's message"),
        (b'<x:xmpmeta xmlns:x="adobe:ns:meta/">', "XML"),
        (b'{"error": "not found"}', "JSON, such as a server's message"),
        (b"[]", "JSON"),
        (SVG, "an SVG drawing, which has no pixels"),
        (b"\xef\xbb\xbf<!DOCTYPE svg PUBLIC '' [<!ENTITY a 'b'>]><svg>", "an SVG drawing"),
        (b"P2\n# c\n2 1\n255\n0 9\n", "a PNM image"),
        (b"data:image/png;base64,iVBORw0KGgo", "an image written as text"),
        (b"not an image at all\n", "plain text, not an image"),
        ("Größe".encode(), "plain text"),
        (bytes(4096), "its bytes are zero"),
        (b"\x9c\x01\x02", "in no image format that is known here"),
    ],
    ids=str,
)
def test_what_stands_in_place_of_an_image_is_said(data: bytes, words: str) -> None:
    line = unsupported(data)
    assert words in line
    assert image_format(data) is None
    assert len(line.splitlines()) == 1
    assert holds_pictures(data) == ("SVG" in words or "PNM" in words)


def test_matroska_with_sound_alone_is_no_video() -> None:
    head = b"\x1a\x45\xdf\xa3\x01\0\0\0\0\0\0\x1fB\x82\x88matroska"
    assert holds_pictures(head + b"\x86\x88A_VORBIS\x86\x85V_VP9")
    assert holds_pictures(head)
    assert not holds_pictures(head + b"\x86\x88A_VORBIS")


def test_archives_are_named() -> None:
    for name, data in (("a ZIP archive", zipped("a.jpg")), ("a tar archive", tarred())):
        assert unsupported(data) == f"this is {name}, not an image; unpack it and give the images in it"


def zipped(name: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(name, b"x")
    return buffer.getvalue()


def tarred() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("a.jpg"))
    return buffer.getvalue()


TEXT = st.text(st.characters(codec="utf-8", exclude_categories=["Cc"]), max_size=300).map(str.encode)
BEGINNINGS = [data[:16] for _, data in HANDMADE] + [
    b"BM",
    b"GIF89a",
    b"RIFF1234WEBP",
    b"RIFF1234AVI ",
    b"RIFF1234WAVE",
    b"P6 4 4 255 ",
    b"FUJIFILMCCD-RAW ",
    b"FOVb",
    b"qoif",
    b"8BPS",
    b"AT&TFORM",
    b"1234mdat",
    b"1234moov",
    b"1234ftypisom",
    b"G" * 400,
    b"x" * 128 + b"DICM",
    b"x" * 257 + b"ustar ",
]


@settings(deadline=None, derandomize=True)
@given(st.sampled_from([data for data in BEGINNINGS if min(data) >= 32]), TEXT)
def test_no_text_is_a_kind_of_file(beginning: bytes, rest: bytes) -> None:
    assert kind_of_file(beginning + rest) is None
    assert kind_of_file(beginning + b"\n\t\r" + rest) is None


@settings(deadline=None, derandomize=True, max_examples=300)
@given(st.sampled_from(BEGINNINGS), st.binary(max_size=400))
def test_any_bytes_get_one_line(beginning: bytes, rest: bytes) -> None:
    for data in (beginning + rest, rest):
        assert len(unsupported(data).splitlines()) == 1
        assert unsupported(data).isprintable()


def test_many_comments_cost_no_time() -> None:
    """A pattern that tries every way to divide them would never end."""
    for text in (b"<!--a-->" * 500, b"<!--" * 1000, b"P2" + b"#\n" * 2000, b"<?" * 2000, b" " * 4000):
        assert not holds_pictures(text)
        assert unsupported(text)
