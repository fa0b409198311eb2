"""File formats by their first bytes: images that can be decoded, and other kinds of file that people hand in."""

from __future__ import annotations

import re

_IMAGES: dict[str, tuple[int, tuple[bytes, ...]]] = {
    "jpeg": (0, (b"\xff\xd8\xff",)),
    "png": (0, (b"\x89PNG\r\n\x1a\n",)),
    "webp": (8, (b"WEBP",)),
    "tiff": (0, (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")),
    "bmp": (0, (b"BM",)),
    "gif": (0, (b"GIF87a", b"GIF89a")),
    "jpeg2000": (0, (b"\0\0\0\x0cjP  \r\n\x87\n", b"\xff\x4f\xff\x51")),
    "jpeg_xl": (0, (b"\xff\x0a", b"\0\0\0\x0cJXL \r\n\x87\n")),
}
_HEIF_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}
_NAMES = {
    "jpeg": "a JPEG",
    "png": "a PNG",
    "webp": "a WebP",
    "tiff": "a TIFF",
    "bmp": "a BMP",
    "gif": "a GIF",
    "avif": "an AVIF image",
    "heif": "a HEIC image",
    "jpeg2000": "a JPEG 2000",
    "jpeg_xl": "a JPEG XL",
}
# No pattern matches the beginning of a text.
_OTHERS: tuple[tuple[str, bytes], ...] = (
    ("an AVIF image", rb"\0\0.{2}ftypavi[fs]"),
    ("a HEIC image", rb"\0\0.{2}ftyp(?:he[iv][cmsx]|mi[af]1|msf1)"),
    ("an MP4 or QuickTime file", rb"\0\0.{2}ftyp"),
    ("a JPEG 2000", rb"\0\0\0\x0cjP  "),
    ("a JPEG XL", rb"\xff\x0a|\0\0\0\x0cJXL "),
    ("an icon", rb"\0\0[\x01\x02]\0"),
    ("a Photoshop file", rb"8BPS\0"),
    ("a PDF", rb"%PDF-\d\.\d\s"),
    ("a ZIP archive", rb"PK(?:\x03\x04|\x05\x06)"),
    ("a gzip file", rb"\x1f\x8b"),
    ("a bzip2 file", rb"BZh\d1AY&SY"),
    ("an xz file", rb"\xfd7zXZ\0"),
    ("a Zstandard file", rb"\x28\xb5\x2f\xfd"),
    ("a 7z archive", rb"7z\xbc\xaf"),
    ("a RAR archive", rb"Rar!\x1a\x07"),
    ("a tar archive", rb".{257}ustar[\0 ]"),
    ("a program", rb"\x7fELF|MZ.?\0|[\xcf\xce]\xfa\xed\xfe|\xca\xfe\xba\xbe"),
    ("a Matroska video", rb"\x1a\x45\xdf\xa3"),
    ("a sound or video file", rb"RIFF.{4}(?:WAVE|AVI )|OggS\0|fLaC\0|ID3[\x02-\x04]\0"),
    ("a SQLite database", rb"SQLite format 3\0"),
    ("a Parquet file", rb"PAR1[\x15-\x19]"),
    ("a NumPy array", rb"\x93NUMPY"),
    ("an HDF5 file", rb"\x89HDF\r\n"),
)


def image_format(data: bytes) -> str | None:
    """Return the name of an image format, as in containers.PARSERS, for the first bytes of such a file, else None."""
    for format, (offset, magics) in _IMAGES.items():
        if data.startswith(magics, offset) and (format != "webp" or data.startswith(b"RIFF")):
            return format
    brands = _brands(data)
    if brands & {b"avif", b"avis"}:
        return "avif"
    return "heif" if brands & _HEIF_BRANDS else None


def video_format(data: bytes) -> str | None:
    """Return "mp4", "mov", "webm", "mkv" or "avi" for the first bytes of such a file, else None."""
    if data.startswith(b"RIFF") and data[8:12] == b"AVI ":
        return "avi"
    if data.startswith(b"\x1a\x45\xdf\xa3"):
        return "webm" if b"webm" in data[:64] else "mkv"
    if data[4:8] == b"ftyp":
        still = image_format(data) is not None or data[8:12] == b"crx "
        return None if still else "mov" if data[8:12] == b"qt  " else "mp4"
    return "mov" if data[4:8] in (b"moov", b"mdat", b"wide", b"pnot") else None


def _brands(data: bytes) -> set[bytes]:
    """Return the brands that an ISO base media file declares (ISO/IEC 14496-12, section 4.3)."""
    if data[4:8] != b"ftyp":
        return set()
    end = min(int.from_bytes(data[:4], "big"), 256)
    return {data[8:12], *(data[at : at + 4] for at in range(16, end, 4))}


def kind_of_file(data: bytes) -> str | None:
    """Return a name for the kind of file that begins like this, such as "a JPEG", or None.

    A text is no kind of file, even if it begins with "GIF89a" or "BM".
    """
    format = image_format(data)
    if format is not None and any(byte < 9 or 13 < byte < 32 for byte in data[:32]):
        return _NAMES[format]
    return next((name for name, pattern in _OTHERS if re.match(pattern, data, re.DOTALL)), None)


def unsupported(data: bytes) -> str:
    """Return the line for a row whose file is in no format that can be decoded here."""
    kind = kind_of_file(data)
    what = "these bytes are" if kind is None else f"this is {kind},"
    return f"{what} not a JPEG, PNG, WebP, TIFF, BMP or GIF; convert the image to one of them"
