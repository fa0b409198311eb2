"""Image files made in memory: whole ones of every kind (`valid`), and ones that must fail (`broken`).

Everything is seeded and small. `python tests/helpers/bad_inputs.py` remakes export/golden/decoding. Run it only when
the decode policy changes on purpose, or when a lossy codec's new version changes pixels and you have looked at it.
"""

from __future__ import annotations

import binascii
import io
import json
import struct
import zlib
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mdmf_deploy.bundle.recipe import Preprocessing
from mdmf_deploy.images.crops import center_crop, normalise
from mdmf_deploy.images.decode import decode, decoder_version

GOLDEN = Path(__file__).parents[2] / "export" / "golden"
SIZE = (48, 32)  # width, height


def photo(width: int = SIZE[0], height: int = SIZE[1], seed: int = 0) -> NDArray[np.uint8]:
    """Return (H, W, 3): smooth colours under a little noise, different in every corner, so that a turn shows."""
    y, x = np.mgrid[0:height, 0:width]
    noise = np.random.default_rng(seed).normal(0, 6, (height, width, 3))
    ramps = np.stack([255 * x / max(1, width - 1), 255 * y / max(1, height - 1), 127 + 100 * np.sin(x / 5 + y / 9)], -1)
    return np.clip(ramps + noise, 0, 255).astype(np.uint8)


def encoded(image: Image.Image | NDArray[Any], format: str, **options: Any) -> bytes:
    """Return an image as the bytes of a file."""
    buffer = io.BytesIO()
    picture = image if isinstance(image, Image.Image) else Image.fromarray(image)
    picture.save(buffer, format, **options)
    return buffer.getvalue()


def jpeg(**options: Any) -> bytes:
    return encoded(photo(), "JPEG", **({"quality": 90} | options))


def oriented(format: str, orientation: int) -> bytes:
    """Return the photo with an EXIF orientation tag of 1 to 8."""
    exif = Image.Exif()
    exif[274] = orientation
    options = {"lossless": True} if format == "WEBP" else {}
    return encoded(photo(), format, exif=exif, **options)


def png(
    width: int, height: int, depth: int, colour: int, rows: bytes | None, extra: list[tuple[bytes, bytes]] | None = None
) -> bytes:
    """Build a PNG chunk by chunk. rows: raw scan lines, each after its filter byte, or None to leave IDAT out."""
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)), *(extra or [])]
    if rows is not None:
        chunks.append((b"IDAT", zlib.compress(rows)))
    chunks.append((b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", binascii.crc32(name + body))
        for name, body in chunks
    )


def filtered(rows: NDArray[Any]) -> bytes:
    """Return PNG scan lines: a zero filter byte before each row's bytes."""
    return b"".join(b"\0" + row.tobytes() for row in rows)


def tiff(tags: dict[int, tuple[int, int, int]], pixels: bytes) -> bytes:
    """Build a little-endian TIFF whose only strip lies at byte 8. tags: tag -> (type, count, value or offset)."""
    body = b"II*\0" + struct.pack("<I", 8 + len(pixels) + len(pixels) % 2) + pixels + b"\0" * (len(pixels) % 2)
    body += struct.pack("<H", len(tags))
    for tag, (kind, count, value) in sorted(tags.items()):
        body += struct.pack("<HHI", tag, kind, count) + struct.pack("<I", value)
    return body + struct.pack("<I", 0)


def grey_tiff(values: NDArray[Any], bits: int, photometric: int = 1, sample_format: int = 1) -> bytes:
    """Build an uncompressed, little-endian grey TIFF of (H, W) values. 12-bit values are packed."""
    height, width = values.shape
    if bits == 12:
        pairs = values.reshape(height, -1, 2).astype(np.uint32)
        joined = pairs[..., 0] << 12 | pairs[..., 1]
        data = np.stack([joined >> 16, joined >> 8 & 255, joined & 255], -1).astype(np.uint8).tobytes()
    else:
        data = values.tobytes()
    return tiff(
        {
            256: (3, 1, width),
            257: (3, 1, height),
            258: (3, 1, bits),
            259: (3, 1, 1),
            262: (3, 1, photometric),
            273: (4, 1, 8),
            277: (3, 1, 1),
            278: (3, 1, height),
            279: (4, 1, len(data)),
            339: (3, 1, sample_format),
        },
        data,
    )


def apng() -> bytes:
    frames = [Image.fromarray(photo(seed=seed)) for seed in range(3)]
    return encoded(frames[0], "PNG", save_all=True, append_images=frames[1:], duration=50)


def gif(frames: int = 3) -> bytes:
    pictures = [Image.fromarray(photo(seed=seed)) for seed in range(frames)]
    return encoded(pictures[0], "GIF", save_all=True, append_images=pictures[1:], duration=50)


def palette_png(alphas: bytes | None = bytes([0, 128, 255])) -> bytes:
    """Return a PNG with a palette of 8 colours, the first three with the given alphas."""
    picture = Image.fromarray(photo()).quantize(8, dither=Image.Dither.NONE)
    return encoded(picture, "PNG", **({"transparency": alphas} if alphas else {}))


def rgba(seed: int = 1) -> NDArray[np.uint8]:
    alpha = np.random.default_rng(seed).integers(0, 256, (SIZE[1], SIZE[0], 1), np.uint8)
    return np.concatenate([photo(), alpha], -1)


def adobe_cmyk() -> bytes:
    return encoded(Image.fromarray(photo()).convert("CMYK"), "JPEG", quality=92)


def valid() -> dict[str, bytes]:
    """Return one whole file of every kind that can be read, by name."""
    grey16 = (photo().astype(np.uint16).sum(-1) * 85).astype(np.uint16)
    picture = Image.fromarray(photo())
    return {
        "jpeg-420.jpg": jpeg(subsampling="4:2:0"),
        "jpeg-444.jpg": jpeg(subsampling="4:4:4"),
        "jpeg-progressive.jpg": jpeg(progressive=True),
        "jpeg-grey.jpg": encoded(picture.convert("L"), "JPEG", quality=90),
        "jpeg-cmyk.jpg": adobe_cmyk(),
        "jpeg-rotated.jpg": oriented("JPEG", 6),
        "png-rgb.png": encoded(photo(), "PNG"),
        "png-rotated.png": oriented("PNG", 8),
        "png-palette-transparent.png": palette_png(),
        "png-alpha.png": encoded(rgba(), "PNG"),
        "png-grey-alpha.png": encoded(Image.fromarray(rgba()).convert("LA"), "PNG"),
        "png-grey16.png": encoded(grey16, "PNG"),
        "png-1bit.png": encoded(picture.convert("1", dither=Image.Dither.NONE), "PNG"),
        "apng.png": apng(),
        "gif-animated.gif": gif(),
        "webp-lossy.webp": encoded(photo(), "WEBP", quality=80),
        "webp-lossless.webp": encoded(photo(), "WEBP", lossless=True),
        "webp-alpha.webp": encoded(rgba(), "WEBP", lossless=True, exact=True),
        "tiff-raw.tif": encoded(photo(), "TIFF"),
        "tiff-lzw.tif": encoded(photo(), "TIFF", compression="tiff_lzw"),
        "tiff-jpeg.tif": encoded(photo(), "TIFF", compression="jpeg", quality=90),
        "tiff-cmyk.tif": encoded(picture.convert("CMYK"), "TIFF"),
        "tiff-grey16.tif": encoded(grey16, "TIFF"),
        "tiff-rotated.tif": oriented("TIFF", 5),
        "bmp.bmp": encoded(photo(), "BMP"),
        "bmp-palette.bmp": encoded(picture.quantize(16), "BMP"),
        "one-pixel.png": encoded(photo(1, 1), "PNG"),
        "one-row.jpg": encoded(photo(40, 1), "JPEG"),
    }


def broken() -> dict[str, tuple[bytes, str]]:
    """Return broken files and their error codes: name -> (bytes, code)."""
    floats = np.linspace(0, 1, SIZE[0] * SIZE[1], dtype=np.float32).reshape(SIZE[1], SIZE[0])
    lab = Image.frombytes("LAB", SIZE, photo().tobytes())
    whole = jpeg()
    table = whole.index(b"\xff\xdb")
    return {
        "empty.jpg": (b"", "empty"),
        "text.jpg": (b"not an image at all\n" * 20, "unsupported_format"),
        "zeros.png": (bytes(4096), "unsupported_format"),
        "postscript.png": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "unsupported_format"),
        "icon.png": (encoded(photo(16, 16), "ICO"), "unsupported_format"),
        "pdf.jpg": (encoded(photo(), "PDF"), "unsupported_format"),
        "pnm.jpg": (encoded(photo(), "PPM"), "unsupported_format"),
        "avi.webp": (b"RIFF\x10\0\0\0AVI LIST" + bytes(32), "unsupported_format"),
        "half.jpg": (whole[:-200], "truncated"),
        "half-progressive.jpg": (jpeg(progressive=True)[:-300], "truncated"),
        "half-header.jpg": (whole[:300], "truncated"),
        "header-only.jpg": (whole[:4], "truncated"),
        "half.png": (_half(encoded(photo(), "PNG")), "truncated"),
        "half.webp": (_half(encoded(photo(), "WEBP")), "truncated"),
        "half-lossless.webp": (_half(encoded(photo(), "WEBP", lossless=True)), "truncated"),
        "half.gif": (_half(gif(1)), "truncated"),
        "half.bmp": (_half(encoded(photo(), "BMP")), "truncated"),
        "half.tif": (_half(grey_tiff(photo()[..., 0], 8)), "truncated"),
        "half-lzw.tif": (_half(encoded(photo(), "TIFF", compression="tiff_lzw")), "truncated"),
        "no-tables.jpg": (_patched(whole, table, b"\xff\xfe"), "corrupt"),
        "bad-checksum.png": (encoded(photo(), "PNG").replace(b"IHDR\0\0\0\x30", b"IHDR\0\0\0\x31"), "corrupt"),
        "no-idat.png": (png(4, 4, 8, 2, None), "corrupt"),
        "zero-width.png": (png(0, 4, 8, 2, b""), "corrupt"),
        "zero-height.bmp": (_patched(encoded(photo(), "BMP"), 22, struct.pack("<i", 0)), "corrupt"),
        "zero-pixels.gif": (_zero_gif(), "corrupt"),
        "huge-header.png": (png(60_000, 60_000, 8, 2, b"\0" * 64), "too_many_pixels"),
        "huge-header.bmp": (
            _patched(encoded(photo(), "BMP"), 18, struct.pack("<ii", 40_000, 40_000)),
            "too_many_pixels",
        ),
        "huge-header.gif": (_patched(gif(), 6, struct.pack("<HH", 65_535, 65_535)), "too_many_pixels"),
        "huge-header.webp": (_huge_webp(), "too_many_pixels"),
        "huge-header.jpg": (_huge_jpeg(whole), "too_many_pixels"),
        "huge-header.tif": (grey_tiff_claiming(50_000, 50_000), "too_many_pixels"),
        "huge-tile.tif": (tiled_tiff(16_384), "too_many_pixels"),
        "float.tif": (encoded(floats, "TIFF"), "unsupported_mode"),
        "int32.tif": (encoded((floats * 1e6).astype(np.int32), "TIFF"), "unsupported_mode"),
        "lab.tif": (encoded(lab, "TIFF"), "unsupported_mode"),
    }


def grey_tiff_claiming(width: int, height: int) -> bytes:
    data = grey_tiff(np.zeros((2, 2), np.uint8), 8)
    for tag, side in ((256, width), (257, height)):
        at = data.index(struct.pack("<HHI", tag, 3, 1))
        data = _patched(data, at + 8, struct.pack("<I", side))
    return data


def tiled_tiff(side: int) -> bytes:
    """Build a grey TIFF of 16 x 16 pixels in one deflated tile of `side` x `side`."""
    # A full flush makes blocks that do not depend on each other, so that one can be repeated. The rest is RFC 1950's.
    deflate = zlib.compressobj(wbits=-15)
    row = deflate.compress(bytes(side)) + deflate.flush(zlib.Z_FULL_FLUSH)
    checksum = struct.pack(">I", (side * side % 65_521) << 16 | 1)
    data = b"\x78\x9c" + row * side + b"\x03\x00" + checksum
    tags = {256: 16, 257: 16, 258: 8, 259: 8, 262: 1, 277: 1, 322: side, 323: side, 324: 8, 325: len(data)}
    return tiff({tag: (4, 1, value) for tag, value in tags.items()}, data)


def _half(data: bytes) -> bytes:
    return data[: len(data) // 2]


def _patched(data: bytes, at: int, new: bytes) -> bytes:
    return data[:at] + new + data[at + len(new) :]


def _zero_gif() -> bytes:
    return b"GIF89a\0\0\0\0\x80\0\0\0\0\0\xff\xff\xff,\0\0\0\0\0\0\0\0\0\x02\x02L\x01\0;"


def _huge_webp() -> bytes:
    extended = b"VP8X" + struct.pack("<I", 10) + b"\0\0\0\0" + (16_383).to_bytes(3, "little") * 2
    body = b"WEBP" + extended + encoded(photo(), "WEBP")[12:]
    return b"RIFF" + struct.pack("<I", len(body)) + body


def _huge_jpeg(data: bytes) -> bytes:
    at = data.index(b"\xff\xc0") + 5
    return _patched(data, at, struct.pack(">HH", 65_000, 65_000))


def described(data: bytes, crop: int) -> dict[str, Any]:
    """Describe one file for golden/decoding.json: hashes of its pixels and of its normalised central crop."""
    image = decode(data)
    square = center_crop(image.pixels, crop)
    tensor = normalise(square.pixels, Preprocessing(crop=crop))
    return {
        "format": image.format,
        "width": image.width,
        "height": image.height,
        "crop": square.kind,
        "pixels_sha256": sha256(image.pixels.tobytes()).hexdigest(),
        "tensor_sha256": sha256(tensor.astype("<f4").tobytes()).hexdigest(),
    }


def remake_golden() -> None:
    """Write golden/decoding/* and golden/decoding.json again, with the decoder installed here."""
    folder = GOLDEN / "decoding"
    folder.mkdir(parents=True, exist_ok=True)
    files = valid()
    for name, data in files.items():
        (folder / name).write_bytes(data)
    crop = 28
    table = {
        "decoder": decoder_version(),
        "crop": crop,
        "images": {name: described(data, crop) for name, data in sorted(files.items())},
    }
    (GOLDEN / "decoding.json").write_text(json.dumps(table, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    remake_golden()
