"""Facts of files agree with what wrote them, and with the detector's own decoding."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.bad_inputs import encoded, oriented, photo
from helpers.every_format import samples
from helpers.labelled import AI, packet, signed_picture, with_text, with_xmp
from helpers.libraries import needed
from PIL import Image, TiffImagePlugin

from mdmf_deploy.errors import ImageError
from mdmf_deploy.images.decode import decode
from mdmf_deploy.images.magic import video_format
from mdmf_deploy.tasks.evaluate.facts import Facts, facts, facts_of

PICTURE = Image.fromarray(photo())
PROFILE = bytes(range(200))


@pytest.fixture
def of(tmp_path: Path) -> Any:
    """The facts of some bytes."""

    def read(data: bytes) -> Facts:
        path = tmp_path / "file"
        path.write_bytes(data)
        return facts(path)

    return read


def test_every_format_has_the_size_and_the_codec_that_decoding_finds(of: Any) -> None:
    for name, data in samples().items():
        found, video = of(data), video_format(data)
        if video is not None:
            assert found == Facts(codec=video)
            continue
        decoded = decode(data)
        assert (found.width, found.height) == (decoded.width, decoded.height), name
        assert found.codec.split()[0] == decoded.format
        assert found.bytes_per_pixel == len(data) / (decoded.width * decoded.height)
        assert found.megapixels == decoded.width * decoded.height / 1e6
        assert found.aspect == decoded.width / decoded.height
        if decoded.format in ("jpeg", "png", "webp", "tiff", "avif"):
            opened = Image.open(io.BytesIO(data))
            assert found.icc == bool(opened.info.get("icc_profile")), name
            # A TIFF's own tags are those of EXIF.
            assert found.exif == (bool(opened.info.get("exif")) if decoded.format != "tiff" else False), name
        if decoded.format not in ("jpeg", "png"):
            assert found.quality is found.tables is found.subsampling is found.progressive is None


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_each_block_of_metadata_is_seen_alone(format: str, of: Any) -> None:
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0x9003] = "2024:01:01 00:00:00"
    exif[315] = "somebody"
    made = {
        "exif": encoded(PICTURE, format, exif=exif),
        "icc": encoded(PICTURE, format, icc_profile=PROFILE),
        "xmp": with_xmp(format, packet()),
    }
    if format != "AVIF":
        needed("c2pa")
        made["c2pa"] = signed_picture(format, AI)
    if format == "TIFF":
        camera = TiffImagePlugin.ImageFileDirectory_v2()
        camera[0x8769] = {0x9003: "2024:01:01 00:00:00"}
        made["exif"] = encoded(PICTURE.copy(), format, tiffinfo=camera)
    for block, data in made.items():
        found = of(data)
        assert {name for name in ("exif", "xmp", "icc", "c2pa", "text") if getattr(found, name)} == {block}


def test_comments_and_settings_of_generators_are_texts(of: Any) -> None:
    assert of(encoded(PICTURE, "JPEG", comment=b"made by hand")).text
    assert of(with_text("parameters", "a house, 30 steps")).text
    assert not of(encoded(PICTURE, "PNG")).text


def test_a_profile_behind_a_thumbnail_is_found(of: Any) -> None:
    """A thumbnail is a JPEG in EXIF, with a scan of its own."""
    data, thumbnail = encoded(PICTURE, "JPEG", icc_profile=PROFILE), encoded(PICTURE.resize((8, 8)), "JPEG")
    body = b"Exif\0\0II*\0\x08\0\0\0\0\0\0\0\0\0" + thumbnail
    segment = b"\xff\xe1" + (len(body) + 2).to_bytes(2) + body
    found = of(data[:2] + segment + data[2:])
    assert (found.icc, found.exif) == (True, True)
    # Nor is a thumbnail's profile the picture's.
    body = b"Exif\0\0II*\0\x08\0\0\0\0\0\0\0\0\0" + data
    plain = encoded(PICTURE, "JPEG")
    assert not of(plain[:2] + b"\xff\xe1" + (len(body) + 2).to_bytes(2) + body + plain[2:]).icc


def test_bit_depth_and_colour_are_those_of_the_header(of: Any) -> None:
    deep = np.arange(48 * 32, dtype=np.uint16).reshape(32, 48)
    expected = {
        encoded(deep, "PNG"): (16, "grey"),
        encoded(PICTURE, "PNG"): (8, "colour"),
        encoded(PICTURE.convert("RGBA"), "PNG"): (8, "colour + alpha"),
        encoded(PICTURE.convert("LA"), "PNG"): (8, "grey + alpha"),
        encoded(PICTURE.quantize(4), "PNG"): (2, "palette"),
        encoded(PICTURE.convert("1"), "PNG"): (1, "grey"),
        encoded(PICTURE.convert("L"), "JPEG"): (8, "grey"),
        encoded(PICTURE.convert("CMYK"), "JPEG"): (8, "CMYK"),
        encoded(PICTURE.convert("RGBA"), "WEBP", lossless=True): (8, "colour"),
        encoded(Image.fromarray(np.dstack([photo(), photo()[..., :1]])), "WEBP", lossless=True): (8, "colour + alpha"),
        encoded(Image.fromarray(np.dstack([photo(), photo()[..., :1]])), "WEBP"): (8, "colour + alpha"),
        encoded(Image.fromarray(deep), "TIFF"): (16, None),
        encoded(PICTURE, "TIFF"): (8, None),
        encoded(PICTURE.convert("1"), "BMP"): (1, None),
        encoded(PICTURE, "BMP"): (8, None),
        encoded(Image.fromarray(deep), "JPEG2000"): (16, None),
    }
    for data, wanted in expected.items():
        found = of(data)
        assert (found.bit_depth, found.colour) == wanted, found


def test_heic_of_ten_bits_is_told_from_one_of_eight(of: Any) -> None:
    heif = needed("pillow_heif")
    for mode, depth, scale in (("RGB", 8, 1), ("RGB;16", 10, 257)):
        pixels = photo().astype(np.uint16 if scale > 1 else np.uint8) * scale
        buffer = io.BytesIO()
        heif.from_bytes(mode=mode, size=(48, 32), data=pixels.tobytes()).save(buffer)
        assert of(buffer.getvalue()).bit_depth == depth


def test_interlaced_and_progressive_files_come_in_passes(of: Any) -> None:
    assert of(encoded(PICTURE, "JPEG", progressive=True)).progressive is True
    assert of(encoded(PICTURE, "JPEG")).progressive is False
    data = bytearray(encoded(PICTURE, "PNG"))
    assert of(bytes(data)).progressive is False


def test_a_turned_image_has_its_upright_size(of: Any) -> None:
    for format in ("JPEG", "PNG", "WEBP", "TIFF"):
        found = of(oriented(format, 6))
        assert (found.width, found.height) == (32, 48)


def test_unreadable_files_have_no_facts_and_no_pixels_are_decoded(tmp_path: Path) -> None:
    whole = encoded(PICTURE, "PNG")
    at = whole.index(b"IDAT") + 8
    files = {
        "whole.png": whole,
        "damaged pixels.png": whole[:at] + bytes(20) + whole[at + 20 :],
        "cut.jpg": encoded(PICTURE, "JPEG")[:100],
        "text.jpg": b"a text",
        "empty.png": b"",
    }
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    found = facts_of([*(tmp_path / name for name in files), tmp_path / "missing.jpg", tmp_path])
    assert [fact is not None for fact in found] == [True, True, False, False, False, False, False]
    with pytest.raises(ImageError):
        facts(tmp_path / "text.jpg")
