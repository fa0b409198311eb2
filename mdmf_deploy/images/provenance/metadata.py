"""The parts of a file that may hold claims, found by a walk over its structure. Pixels are passed over, not read."""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from mdmf_deploy.images.magic import image_format, video_format
from mdmf_deploy.images.provenance import tags
from mdmf_deploy.images.provenance.boxes import XMP_ITEM, boxes, items
from mdmf_deploy.images.provenance.texts import KEYWORDS

MOST_PARTS = 10_000
"""Segments, chunks or boxes of a file that are visited."""

MOST_BYTES = 256 * 2**10
"""Bytes of one part that are read, and bytes that a compressed text may grow to."""

_MOST_KEPT = 8  # parts of one kind


@dataclass(slots=True)
class Metadata:
    """The raw parts of one file, at most a few of each kind.

    manifest: the media type of a file that holds a C2PA manifest.
    xmp: packets.  exif: TIFF structures.  iptc: blocks of IPTC-IIM.  texts: keywords and texts of a PNG.
    comments: of a JPEG.
    """

    manifest: str | None = None
    xmp: list[bytes] = field(default_factory=list)
    exif: list[bytes] = field(default_factory=list)
    iptc: list[bytes] = field(default_factory=list)
    texts: list[tuple[str, str]] = field(default_factory=list)
    comments: list[bytes] = field(default_factory=list)


def metadata(data: bytes) -> Metadata:
    """Return the parts of a file that may hold claims. A file in another format has none."""
    format = image_format(data) or video_format(data)
    found = Metadata()
    if format in _WALKS:
        media_type, walk = _WALKS[format]
        if walk(data, found):
            found.manifest = media_type
    return found


def _keep(parts: list[bytes], data: bytes, start: int, end: int, most: int = MOST_BYTES) -> None:
    """Keep the beginning of a part, unless there are enough of its kind."""
    if len(parts) < _MOST_KEPT:
        parts.append(data[start : min(end, start + most)])


def _jpeg(data: bytes, found: Metadata) -> bool:
    """ITU-T T.81, section B.1.1. Returns whether a C2PA manifest is there, like each walk here."""
    signed, at = False, 2
    for _ in range(MOST_PARTS):
        fill = _FILL.match(data, at)
        if fill is None or fill.end() + 3 > len(data):
            break
        marker, at = data[fill.end()], fill.end() + 1
        if marker in (0xD9, 0xDA):
            break
        if marker in _BARE_MARKERS:
            continue
        size = int.from_bytes(data[at : at + 2])
        if marker == 0xE1:
            if data.startswith(b"Exif\0", at + 2):
                _keep(found.exif, data, at + 8, at + size)
            elif data.startswith(b"http://ns.adobe.com/xap/1.0/\0", at + 2):
                _keep(found.xmp, data, at + 31, at + size)
        elif marker == 0xEB:
            signed |= _JUMBF.match(data, at + 2) is not None
        elif marker == 0xED:
            _keep(found.iptc, data, at + 2, at + size)
        elif marker == 0xFE:
            _keep(found.comments, data, at + 2, at + size)
        at += size
    return signed


_FILL = re.compile(rb"\xff+")
_BARE_MARKERS = {0x01, *range(0xD0, 0xD9)}
# ISO/IEC 19566-5, annex D: the first segment of a JUMBF box whose description says c2pa
_JUMBF = re.compile(rb"JP.{2}\0\0\0\x01.{4}jumb.{4}jumdc2pa", re.DOTALL)


def _png(data: bytes, found: Metadata) -> bool:
    """PNG specification, third edition, sections 5.3 and 11.3; C2PA specification 2.2, section A.3.2."""
    signed, at = False, 8
    for _ in range(MOST_PARTS):
        kind = data[at + 4 : at + 8]
        if len(kind) < 4 or kind == b"IEND":
            break
        size = int.from_bytes(data[at : at + 4])
        if kind in _TEXTS:
            keyword = data[at + 8 : at + 8 + min(size, 80)].partition(b"\0")[0].decode("latin-1")
            start, end = at + 9 + len(keyword), at + 8 + min(size, MOST_BYTES)
            if keyword == "XML:com.adobe.xmp" and len(found.xmp) < _MOST_KEPT:
                found.xmp.append(_TEXTS[kind](data[start:end]))
            elif keyword in KEYWORDS and len(found.texts) < _MOST_KEPT:
                found.texts.append((keyword, _TEXTS[kind](data[start:end]).decode("utf-8", "replace")))
        elif kind == b"eXIf":
            _keep(found.exif, data, at + 8, at + 8 + size)
        elif kind == b"caBX":
            signed = True
        at += size + 12
    return signed


def _plain(rest: bytes) -> bytes:
    return rest


def _compressed(rest: bytes) -> bytes:
    """Return the beginning of a compressed text, whose first byte is its method."""
    try:
        return zlib.decompressobj().decompress(rest[1:], MOST_BYTES)
    except zlib.error:
        return b""


def _international(rest: bytes) -> bytes:
    _, _, text = rest[2:].partition(b"\0")[2].partition(b"\0")  # after the language and the translated keyword
    return _compressed(b"\0" + text) if rest[:1] == b"\1" else text


_TEXTS: dict[bytes, Callable[[bytes], bytes]] = {b"tEXt": _plain, b"zTXt": _compressed, b"iTXt": _international}


def _riff(data: bytes, found: Metadata) -> bool:
    """WebP container specification, "RIFF File Format"; AVI has the same chunks."""
    signed, at = False, 12
    for _ in range(MOST_PARTS):
        kind = data[at : at + 4]
        if len(kind) < 4:
            break
        size = int.from_bytes(data[at + 4 : at + 8], "little")
        if kind == b"EXIF":
            head = 6 if data.startswith(b"Exif\0\0", at + 8) else 0
            _keep(found.exif, data, at + 8 + head, at + 8 + size)
        elif kind == b"XMP ":
            _keep(found.xmp, data, at + 8, at + 8 + size)
        elif kind == b"C2PA":
            signed = True
        at += 8 + size + size % 2
    return signed


def _tiff(data: bytes, found: Metadata) -> bool:
    values = tags.tags(data)
    if tags.XMP in values:
        found.xmp.append(values[tags.XMP])
    if tags.IPTC in values:
        found.iptc.append(values[tags.IPTC])
    found.exif.append(data)
    return tags.C2PA in values


_C2PA_UUID = bytes.fromhex("d8fec3d61b0e483c92975828877ec481")  # C2PA specification 2.2, section A.5.1
_XMP_UUID = bytes.fromhex("be7acfcb97a942e89c71999491e3afac")  # XMP specification, part 3, section 1.2.7


def _bmff(data: bytes, found: Metadata) -> bool:
    """ISO/IEC 14496-12, section 4.2; also the boxes of JPEG XL (ISO/IEC 18181-2) and JPEG 2000."""
    signed = listed = False
    for kind, start, end in _visited(boxes(data, 0, len(data))):
        if kind == b"uuid":
            name = data[start : start + 16]
            signed |= name == _C2PA_UUID
            if name == _XMP_UUID:
                _keep(found.xmp, data, start + 16, end)
        elif kind == b"jumb":
            signed |= data[start + 8 : start + 12] == b"c2pa"
        elif kind == b"xml ":
            _keep(found.xmp, data, start, end)
        elif kind == b"Exif":
            _keep(found.exif, data, start + 4, end)
        elif kind == b"meta" and not listed:
            listed = True  # a file has one at most
            for item, first, last in items(data, start, end):
                if item == XMP_ITEM:
                    _keep(found.xmp, data, first, last)
                else:
                    _keep(found.exif, data, first + 4 + int.from_bytes(data[first : first + 4]), last)
    return signed


def _visited(parts: Iterator[tuple[bytes, int, int]]) -> Iterator[tuple[bytes, int, int]]:
    return (part for part, _ in zip(parts, range(MOST_PARTS), strict=False))


_WALKS: dict[str, tuple[str, Callable[[bytes, Metadata], bool]]] = {
    "jpeg": ("image/jpeg", _jpeg),
    "png": ("image/png", _png),
    "webp": ("image/webp", _riff),
    "tiff": ("image/tiff", _tiff),
    "heif": ("image/heic", _bmff),
    "avif": ("image/avif", _bmff),
    "jpeg_xl": ("image/jxl", _bmff),
    "jpeg2000": ("image/jp2", _bmff),
    "mp4": ("video/mp4", _bmff),
    "mov": ("video/quicktime", _bmff),
    "avi": ("video/avi", _riff),
}
"""Format -> its media type for the C2PA library, and the walk over its parts."""
