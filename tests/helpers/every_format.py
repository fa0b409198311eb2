"""One file of every kind of image and video that can be read, as far as the libraries installed here can write it."""

from __future__ import annotations

import io
import struct
import tempfile
from collections.abc import Callable
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from helpers.bad_inputs import encoded, photo
from PIL import Image, PngImagePlugin

SIZE = (160, 120)  # width, height


def samples() -> dict[str, bytes]:
    """Return files by name. The part of a name before the first hyphen or point is the format."""
    picture, *others = (Image.fromarray(photo(*SIZE, seed=seed)) for seed in range(3))
    moving: dict[str, Any] = {"save_all": True, "append_images": others, "duration": 40}
    exif = Image.Exif()
    exif[274], exif[305] = 6, "an editor"
    text = PngImagePlugin.PngInfo()
    text.add_text("parameters", "a photograph, 30 steps", zip=True)
    found = {
        "jpeg-baseline.jpg": encoded(picture, "JPEG", quality=88, exif=exif, icc_profile=bytes(200), comment=b"why"),
        "jpeg-444.jpg": encoded(picture, "JPEG", quality=75, subsampling="4:4:4", optimize=True),
        "jpeg-progressive.jpg": encoded(picture, "JPEG", quality=88, progressive=True, exif=exif),
        "jpeg-restarts.jpg": encoded(picture, "JPEG", restart_marker_blocks=5),
        "jpeg-grey.jpg": encoded(picture.convert("L"), "JPEG"),
        "jpeg-cmyk.jpg": encoded(picture.convert("CMYK"), "JPEG"),
        "jpeg-stereo.mpo": encoded(picture, "MPO", save_all=True, append_images=others[:1]),
        "png-rgb.png": encoded(picture, "PNG", pnginfo=text, exif=exif),
        "png-palette.png": encoded(picture.quantize(16), "PNG", transparency=bytes([0, 128])),
        "png-grey16.png": encoded((photo(*SIZE).astype(np.uint16).sum(-1) * 85).astype(np.uint16), "PNG"),
        "png-animated.png": encoded(picture, "PNG", **moving),
        "webp-lossy.webp": encoded(picture, "WEBP", exif=exif),
        "webp-lossless.webp": encoded(picture, "WEBP", lossless=True),
        "webp-alpha.webp": encoded(picture.convert("RGBA"), "WEBP"),
        "webp-animated.webp": encoded(picture, "WEBP", **moving),
        "gif-still.gif": encoded(picture.quantize(64), "GIF", comment=b"a comment"),
        "gif-animated.gif": encoded(picture, "GIF", **moving),
        "bmp-rgb.bmp": encoded(picture, "BMP"),
        "bmp-rle.bmp": rle_bmp(picture.quantize(16)),
        "tiff-raw.tif": encoded(picture.copy(), "TIFF", exif=exif),
        "tiff-pages.tif": encoded(
            picture.copy(), "TIFF", save_all=True, append_images=[other.copy() for other in others]
        ),
    }
    for compression in ("tiff_lzw", "tiff_adobe_deflate", "jpeg", "packbits", "zstd", "lzma"):
        _try(found, f"tiff-{compression}.tif", lambda c=compression: encoded(picture.copy(), "TIFF", compression=c))
    for compression in ("group3", "group4"):
        _try(found, f"tiff-{compression}.tif", lambda c=compression: encoded(_black(picture), "TIFF", compression=c))
    if can_write("AVIF"):
        found["avif-8bit.avif"] = encoded(picture, "AVIF", exif=exif)
    if can_write("JPEG2000"):
        found["jpeg2000-boxes.jp2"] = encoded(picture, "JPEG2000")
        found["jpeg2000-stream.j2k"] = encoded(
            picture, "JPEG2000", no_jp2=True, tile_size=(64, 64), irreversible=True, quality_layers=[20]
        )
    if find_spec("pillow_heif"):
        found["heic-8bit.heic"] = _heic(picture)
    if find_spec("pillow_jxl"):
        import pillow_jxl  # noqa: F401 (it registers itself with Pillow)

        found["jpegxl-lossy.jxl"] = encoded(picture, "JXL")
        found["jpegxl-lossless.jxl"] = encoded(picture, "JXL", lossless=True, exif=exif.tobytes())
    if find_spec("cv2"):
        for name, code in (
            ("mp4-mpeg4.mp4", "mp4v"),
            ("mov-mpeg4.mov", "mp4v"),
            ("webm-vp8.webm", "VP80"),
            ("mkv-mjpeg.mkv", "MJPG"),
            ("avi-mjpeg.avi", "MJPG"),
            ("avi-xvid.avi", "XVID"),
        ):
            _try(found, name, lambda name=name, code=code: _clip([picture, *others] * 2, code, Path(name).suffix))
    return found


def can_write(format: str) -> bool:
    """Return whether the Pillow installed here writes a format. It knows AVIF since 11.3."""
    Image.init()
    return format in Image.SAVE


def rle_bmp(picture: Image.Image) -> bytes:
    """Return a palette image as a BMP of 8-bit run lengths, bottom row first."""
    rows = np.asarray(picture)[::-1]
    codes = bytearray()
    for row in rows:
        edges = [0, *(np.flatnonzero(np.diff(row)) + 1), len(row)]
        for start, stop in pairwise(edges):
            codes += bytes((stop - start, row[start]))
        codes += b"\0\0"
    codes += b"\0\1"
    colours = np.zeros((256, 4), np.uint8)
    palette = np.frombuffer(bytes(picture.getpalette() or ()), np.uint8).reshape(-1, 3)
    colours[: len(palette), :3] = palette[:, ::-1]
    header = struct.pack("<IiiHHIIiiII", 40, picture.width, picture.height, 1, 8, 1, len(codes), 0, 0, 256, 0)
    offset = 14 + len(header) + 1024
    return b"BM" + struct.pack("<IHHI", offset + len(codes), 0, 0, offset) + header + colours.tobytes() + codes


def _black(picture: Image.Image) -> Image.Image:
    return picture.convert("1", dither=Image.Dither.NONE)


def _heic(picture: Image.Image) -> bytes:
    from pillow_heif import from_pillow

    buffer = io.BytesIO()
    from_pillow(picture).save(buffer)
    return buffer.getvalue()


def _clip(pictures: list[Image.Image], code: str, suffix: str) -> bytes:
    import cv2

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"clip{suffix}"
        writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*code), 10, SIZE)
        for picture in pictures:
            writer.write(np.asarray(picture)[..., ::-1])
        writer.release()
        return path.read_bytes()


def _try(found: dict[str, bytes], name: str, make: Callable[[], bytes]) -> None:
    """Add a file, unless this build of a library cannot write its kind."""
    try:
        found[name] = make()
    except OSError:
        return
