"""The facts of an image file that say nothing about its content: format, size, JPEG coding, metadata.

Everything is read from headers, by the parsers that the detector itself uses. No pixels are decoded.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import msgspec

from mdmf_deploy.errors import ImageError
from mdmf_deploy.images.containers import Container, parse
from mdmf_deploy.images.containers.directories import directory, layout, values
from mdmf_deploy.images.containers.jpeg import Jpeg
from mdmf_deploy.images.decode import read_unless_video
from mdmf_deploy.images.limits import DEFAULT_LIMITS
from mdmf_deploy.images.magic import video_format
from mdmf_deploy.images.provenance.metadata import MOST_PARTS, metadata
from mdmf_deploy.images.rgb import upright
from mdmf_deploy.tasks.evaluate.quantisation import class_of, quality_of, subsampling_of, tables_of


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """The facts of one file. None stands for what its format does not have or does not say.

    codec: a format, such as "jpeg", or a video's container, such as "mp4". Of a video nothing else is known.
    width, height: in pixels, upright.
    bit_depth: bits of a sample.
    colour: how pixels are stored: "grey", "colour", "palette", "CMYK", the first two perhaps with " + alpha".
    quality: of a JPEG, as quantisation.quality_of estimates it.
    tables: of a JPEG, as quantisation.class_of names them.
    subsampling: of a JPEG's chroma, such as "4:2:0".
    progressive: whether a JPEG or a PNG comes in passes.
    exif, xmp, icc, c2pa, text: whether the file has such a block. A text is a comment, a caption of IPTC, or settings
        that generators leave in a PNG.
    bytes_per_pixel: of the whole file. It depends on the content, too.
    """

    codec: str
    width: int | None = None
    height: int | None = None
    bit_depth: int | None = None
    colour: str | None = None
    quality: int | None = None
    tables: str | None = None
    subsampling: str | None = None
    progressive: bool | None = None
    exif: bool | None = None
    xmp: bool | None = None
    icc: bool | None = None
    c2pa: bool | None = None
    text: bool | None = None
    bytes_per_pixel: float | None = None

    @property
    def megapixels(self) -> float | None:
        return None if self.width is None or self.height is None else self.width * self.height / 1e6

    @property
    def aspect(self) -> float | None:
        """Width divided by height."""
        return None if self.width is None or self.height is None else self.width / self.height


def facts_of(paths: Iterable[Path]) -> list[Facts | None]:
    """Return the facts of each file, in order. None stands for a file that cannot be read or parsed."""
    return [_facts_or_none(path) for path in paths]


def facts(path: Path) -> Facts:
    """Return the facts of one file. Raises ImageError as `decode` does for what headers show."""
    start, data = read_unless_video(path)
    if data is None:
        return Facts(codec=video_format(start) or "video")
    container = parse(data, DEFAULT_LIMITS)
    blocks = metadata(data)
    common: dict[str, Any] = {
        "codec": container.format,
        "exif": bool(blocks.exif),
        "xmp": bool(blocks.xmp),
        "c2pa": blocks.manifest is not None,
        "text": bool(blocks.texts or blocks.comments or blocks.iptc),
    }
    detail: dict[str, Any] = _DETAILS[container.format](data, container) if container.format in _DETAILS else {}
    width, height = upright((container.width, container.height), _orientation(data, container))
    return Facts(width=width, height=height, bytes_per_pixel=len(data) / (width * height), **(common | detail))


def _facts_or_none(path: Path) -> Facts | None:
    try:
        return facts(path)
    except ImageError:
        return None


def _jpeg(data: bytes, container: Container) -> dict[str, Any]:
    assert isinstance(container, Jpeg)
    tables = tables_of(container)
    return {
        "bit_depth": 8,
        "colour": {1: "grey", 4: "CMYK"}.get(len(container.sampling), "colour"),
        "quality": quality_of(tables),
        "tables": class_of(tables),
        "subsampling": subsampling_of(container),
        "progressive": container.progressive,
        "icc": _profiled(data),
    }


def _profiled(data: bytes) -> bool:
    """Return whether a segment before the first scan holds an ICC profile (ICC.1, annex B.4).

    Segments are skipped by their length, because a thumbnail in EXIF has a scan of its own.
    """
    at = 2
    for _ in range(MOST_PARTS):
        found = _MARKER.search(data, at)
        if found is None or found[1] == b"\xda":
            return False
        at = found.end()
        if found[1] == b"\xe2" and data.startswith(b"ICC_PROFILE\0", at + 2):
            return True
        at += max(2, int.from_bytes(data[at : at + 2]))
    return False


_MARKER = re.compile(rb"\xff([\x02-\xcf\xda-\xfe])")
_PNG_COLOURS = {0: "grey", 2: "colour", 3: "palette", 4: "grey + alpha", 6: "colour + alpha"}


def _png(data: bytes, container: Container) -> dict[str, Any]:
    """The header comes first, and a colour profile before the pixels (PNG specification, sections 5.6 and 11.2)."""
    return {
        "bit_depth": container.data[24],
        "colour": _PNG_COLOURS[container.data[25]],
        "progressive": container.data[28] == 1,
        "icc": 0 <= data.find(b"iCCP") < data.find(b"IDAT"),
    }


def _webp(data: bytes, container: Container) -> dict[str, Any]:
    """The flags of VP8X, if there is one, announce a profile and transparency (RFC 9649, section 2.7.1)."""
    flags = data[20] if data.startswith(b"VP8X", 12) else 0
    alpha = flags & 0x10 or (data.startswith(b"VP8L", 12) and data[24] & 0x10)
    # A lossless file keeps what a lossy one loses, as another format would.
    codec = "webp lossless" if container.data.startswith(b"VP8L", 12) else "webp"
    return {
        "colour": "colour + alpha" if alpha else "colour",
        "bit_depth": 8,
        "icc": bool(flags & 0x20),
        "codec": codec,
    }


def _tiff(data: bytes, container: Container) -> dict[str, Any]:
    file = layout(data)
    entries = directory(data, file, file.first).entries
    # The structure of a TIFF is that of EXIF. Only the tag of a camera's directory tells them apart.
    return {
        "bit_depth": _first(data, _BITS_PER_SAMPLE, 1),
        "exif": _EXIF_TAG in entries,
        "icc": _ICC_TAG in entries,
    }


def _orientation(data: bytes, container: Container) -> int:
    """Return the orientation of the pixels as stored, which the parser of a TIFF leaves to the decoder."""
    return container.orientation or (_first(data, _ORIENTATION, 1) if container.format == "tiff" else 1)


def _first(data: bytes, tag: int, otherwise: int) -> int:
    """Return the first value of a tag in the first directory of a TIFF."""
    file = layout(data)
    found = values(data, file, directory(data, file, file.first).entries.get(tag), 1)
    return int(found[0]) if found.size else otherwise


_BITS_PER_SAMPLE, _ORIENTATION, _EXIF_TAG, _ICC_TAG = 258, 274, 34665, 34675


def _gif(data: bytes, container: Container) -> dict[str, Any]:
    return {"bit_depth": 8, "colour": "palette", "icc": False}


def _bmp(data: bytes, container: Container) -> dict[str, Any]:
    """The bits of a pixel stand behind the sizes, which OS/2 1.x writes in 2 bytes each."""
    bits = int.from_bytes(data[24:26] if data[14] == 12 else data[28:30], "little")
    return {"bit_depth": 8 if bits >= 24 else 5 if bits == 16 else bits, "icc": False}


def _heif(data: bytes, container: Container) -> dict[str, Any]:
    """The properties of the items come before the pixels, in practice: pixi, and colr with a profile."""
    depth = _PIXI.search(data, 0, _HEAD)
    return {"bit_depth": None if depth is None else depth[1][0], "icc": _COLR.search(data, 0, _HEAD) is not None}


_HEAD = 2**16
_PIXI = re.compile(rb"pixi\0\0\0\0[\x01-\x04]([\x01-\x20])")
_COLR = re.compile(rb"colr(?:prof|rICC)")


def _jpeg2000(data: bytes, container: Container) -> dict[str, Any]:
    """The size marker follows the start of the codestream, and holds the depth of each component (T.800, A.5.1)."""
    at = data.find(b"\xff\x4f\xff\x51") + 42
    return {"bit_depth": (data[at] & 0x7F) + 1}


_DETAILS: dict[str, Callable[[bytes, Container], dict[str, Any]]] = {
    "jpeg": _jpeg,
    "png": _png,
    "webp": _webp,
    "tiff": _tiff,
    "gif": _gif,
    "bmp": _bmp,
    "avif": _heif,
    "heif": _heif,
    "jpeg2000": _jpeg2000,
}
