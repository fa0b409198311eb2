"""The structure of TIFF files: the first directory, and where its strips or tiles lie. Camera raw is refused.

The decoder gets the file with a new directory, which has the tags that pixels depend on and no others. So metadata
cannot stop the decoder nor cost anything. The first directory counts, whatever follows it, with two exceptions:
- A camera raw (camera_raw.py) is refused. Its first image is a preview, rendered by the camera.
- A first directory that declares itself a reduced version of another one is refused, unless the file has no other.
  Nothing says which of the others is meant.

Sources: TIFF Revision 6.0, Supplements 1 and 2, and the BigTIFF design by libtiff.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np

from mdmf_deploy.errors import ImageError
from mdmf_deploy.images.containers import Container
from mdmf_deploy.images.containers.camera_raw import kind_of_raw
from mdmf_deploy.images.containers.directories import Directory, Entry, Layout, directory, layout, only, values
from mdmf_deploy.images.limits import ReadLimits

_SUBFILE, _OLD_SUBFILE, _SUB_IFDS = 254, 255, 330
_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC = 256, 257, 258, 259, 262
_STRIP_OFFSETS, _STRIP_COUNTS, _ROWS = 273, 279, 278
_TILE_WIDTH, _TILE_LENGTH, _TILE_OFFSETS, _TILE_COUNTS = 322, 323, 324, 325
_ORIENTATION, _SAMPLES, _PLANAR, _EXTRA, _FORMAT, _COLOURS = 274, 277, 284, 338, 339, 320
# Tags that pixels depend on, with the most values that make sense. The arrays of strips and tiles come on top.
_KEPT = {
    **dict.fromkeys((_WIDTH, _HEIGHT, _COMPRESSION, _PHOTOMETRIC, _ROWS, _ORIENTATION, _SAMPLES, _PLANAR), 1),
    **dict.fromkeys((266, 292, 293, 317, _TILE_WIDTH, _TILE_LENGTH, 332), 1),  # fill order, fax, predictor, ink set
    **dict.fromkeys((_BITS, _EXTRA, _FORMAT), 16),
    _COLOURS: 3 * 2**16,
    347: 2**16,  # tables of the JPEGs in strips
    **dict.fromkeys((512, 513, 514, 515, 517, 518, 519, 520, 521), 16),  # JPEG as in TIFF 6.0
    **dict.fromkeys((529, 530, 531, 532), 6),  # YCbCr
}
_MAX_SAMPLES = 6  # that Pillow reads

_UNCOMPRESSED, _OLD_JPEG, _JPEG = 1, 6, 7
_COMPRESSIONS = {1, 2, 3, 4, 5, _OLD_JPEG, _JPEG, 8, 32771, 32773, 32946, 34925, 50000, 50001}
# Photometric interpretation -> bits per sample that have a documented 8-bit RGB.
_LAYOUTS = {0: {1, 2, 4, 8, 12, 16}, 1: {1, 2, 4, 8, 12, 16}, 2: {8, 16}, 3: {1, 2, 4, 8}, 5: {8, 16}, 6: {8}}
_NAMES = {4: "a mask", 8: "CIE Lab", 9: "ICC Lab", 10: "ITU Lab", 32844: "LogL", 32845: "LogLuv"}
_FORMATS = {2: "signed", 3: "floating-point", 5: "complex", 6: "complex"}

# Bytes that Pillow and libtiff take for each strip or tile: two numbers, as Python integers too, and a tuple of both.
_PER_PART = 600
_EXPLICIT = 2**14  # strips or tiles that are few enough for a file to list too many of them


def parse(data: bytes, limits: ReadLimits) -> Container:
    """Return the structure of a TIFF's first image.

    Raises ImageError: unsupported_format for camera raw, a thumbnail or a compression that cannot be read here,
    unsupported_mode, too_many_pixels, too_much_memory, truncated or corrupt.
    """
    file = layout(data)
    raw = kind_of_raw(data, file)
    if raw is not None:
        raise ImageError(
            "unsupported_format",
            f"this is a camera raw ({raw}), not a finished picture; convert it to JPEG or TIFF with your raw developer",
        )
    first = directory(data, file, file.first)
    _refuse_reduced(data, file, first)
    repeated = sorted(first.repeated & (_KEPT.keys() | {_STRIP_OFFSETS, _STRIP_COUNTS, _TILE_OFFSETS, _TILE_COUNTS}))
    if repeated:
        raise ImageError("corrupt", f"tiff: its first directory has tag {repeated[0]} twice")
    fields = _Fields.of(data, file, first)
    limits.check_pixels("tiff", fields.width, fields.height)
    fields.check()
    parts = _Parts.of(data, file, first, fields)
    if parts.tiled:
        # A tile is allocated whole, even if the image shows little of it.
        limits.check_pixels("tiff tile", parts.width, parts.height)
    memory = _memory(len(data), fields, parts)
    limits.check_memory("tiff", memory)
    parts.check(data, file, fields)
    kept = {tag: _cut(first.entries[tag], most) for tag, most in _KEPT.items() if tag in first.entries}
    for tag, entry in zip(parts.tags, (parts.offsets, parts.counts), strict=True):
        if entry is not None:
            kept[tag] = _cut(entry, parts.number)
    if any(entry.size > file.inline and entry.at + entry.size > len(data) for entry in kept.values()):
        raise ImageError("truncated", "tiff: it ends before the values in its first directory")
    return Container(
        format="tiff",
        data=only(data, file, kept),
        width=fields.width,
        height=fields.height,
        orientation=None,  # Pillow itself turns the pixels of a TIFF
        memory=memory,
        isolated=True,
    )


def _refuse_reduced(data: bytes, file: Layout, first: Directory) -> None:
    kind = _number(data, file, first, _SUBFILE, 0) & 1 or _number(data, file, first, _OLD_SUBFILE, 1) == 2
    if kind and (first.next or _SUB_IFDS in first.entries):
        raise ImageError(
            "unsupported_format",
            "this is a TIFF whose first page is a reduced version of another page, as in camera raw; "
            "save the full picture as a JPEG or a TIFF of its own",
        )


class _Fields(NamedTuple):
    """Fields of the first directory about its pixels, with the specification's defaults."""

    width: int
    height: int
    samples: int
    bits: tuple[int, ...]
    formats: tuple[int, ...]
    photometric: int
    compression: int
    separate: bool
    orientation: int

    @classmethod
    def of(cls, data: bytes, file: Layout, first: Directory) -> _Fields:
        compression = _number(data, file, first, _COMPRESSION, 1)
        photometric = _number(data, file, first, _PHOTOMETRIC, 0)
        in_jpeg = compression == _JPEG and photometric in (2, 6)
        return cls(
            _number(data, file, first, _WIDTH, 0),
            _number(data, file, first, _HEIGHT, 0),
            _number(data, file, first, _SAMPLES, 3 if in_jpeg else 1),
            tuple(values(data, file, first.entries.get(_BITS), _MAX_SAMPLES).tolist()) or (8 if in_jpeg else 1,),
            tuple(values(data, file, first.entries.get(_FORMAT), _MAX_SAMPLES).tolist()) or (1,),
            photometric,
            compression,
            _number(data, file, first, _PLANAR, 1) == 2,
            _number(data, file, first, _ORIENTATION, 1),
        )

    def check(self) -> None:
        """Raise ImageError if no decoder can make 8-bit RGB of such pixels."""
        if min(self.width, self.height) < 1:
            raise ImageError("corrupt", f"tiff: its header gives a size of {self.width} x {self.height}")
        for number in self.formats:
            if number in _FORMATS:
                raise _unsupported_mode(f"{_FORMATS[number]} samples of {max(self.bits)} bits")
        bits = _LAYOUTS.get(self.photometric)
        if bits is None:
            name = _NAMES.get(self.photometric, f"photometric interpretation {self.photometric}")
            raise _unsupported_mode(f"pixels in {name}")
        if self.compression not in _COMPRESSIONS:
            raise ImageError(
                "unsupported_format",
                f"this is a TIFF with compression {self.compression}, which cannot be decoded here; "
                "save it without compression or as a PNG",
            )
        if not set(self.bits) <= bits:
            raise _unsupported_mode(f"samples of {', '.join(map(str, dict.fromkeys(self.bits)))} bits")
        if not 1 <= self.samples <= _MAX_SAMPLES:
            raise _unsupported_mode(f"{self.samples} samples a pixel")

    @property
    def row(self) -> float:
        """Bytes of one pixel of one plane, uncompressed."""
        return max(self.bits) * (1 if self.separate else self.samples) / 8


class _Parts(NamedTuple):
    """The strips or tiles of an image.

    width, height: of one, in pixels.  across: how many lie side by side.  number: how many make the image.
    tags: of their offsets and byte counts.
    """

    tiled: bool
    width: int
    height: int
    across: int
    number: int
    tags: tuple[int, int]
    offsets: Entry
    counts: Entry | None

    @classmethod
    def of(cls, data: bytes, file: Layout, first: Directory, fields: _Fields) -> _Parts:
        tiled = _TILE_OFFSETS in first.entries
        tags = (_TILE_OFFSETS, _TILE_COUNTS) if tiled else (_STRIP_OFFSETS, _STRIP_COUNTS)
        if tiled:
            width = _number(data, file, first, _TILE_WIDTH, 0)
            height = _number(data, file, first, _TILE_LENGTH, 0)
            if min(width, height) < 1:
                raise ImageError("corrupt", f"tiff: its header gives tiles of {width} x {height}")
        else:
            width = fields.width
            height = min(fields.height, _number(data, file, first, _ROWS, fields.height) or fields.height)
        across = -(-fields.width // width)
        number = across * -(-fields.height // height) * (fields.samples if fields.separate else 1)
        offsets = first.entries.get(tags[0])
        if offsets is None:
            raise ImageError("corrupt", "tiff: its header does not say where its pixels are")
        return cls(tiled, width, height, across, number, tags, offsets, first.entries.get(tags[1]))

    def check(self, data: bytes, file: Layout, fields: _Fields) -> None:
        """Raise ImageError truncated if a strip or tile is not there."""
        if fields.compression == _OLD_JPEG:
            return  # it may lie elsewhere, as one JPEG
        offsets = values(data, file, self.offsets, self.number)
        counts = values(data, file, self.counts, self.number)
        if len(offsets) < self.number:
            raise ImageError("truncated", f"tiff: {self.number - len(offsets)} of {self.number} parts are not there")
        for at in range(0, self.number, _EXPLICIT):
            starts = offsets[at : at + _EXPLICIT].astype(np.float64)
            sizes = counts[at : at + _EXPLICIT].astype(np.float64)
            if fields.compression == _UNCOMPRESSED:
                sizes = self._uncompressed(at, len(starts), fields)
            elif len(sizes) < len(starts):
                sizes = np.ones(len(starts))
            missing = (starts + sizes > len(data)) | (starts == 0)
            if missing.any():
                raise ImageError(
                    "truncated",
                    f"tiff: part {at + int(missing.argmax()) + 1} of {self.number} ends behind the end of the file",
                )

    def _uncompressed(self, at: int, number: int, fields: _Fields) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        """Return the bytes of uncompressed parts, from number `at` on."""
        row = np.ceil(self.width * fields.row)
        if self.tiled:
            return np.full(number, row * self.height)
        down = -(-fields.height // self.height)
        top = (np.arange(at, at + number) % down) * self.height
        return np.asarray(np.minimum(self.height, fields.height - top) * row)


def _memory(size: int, fields: _Fields, parts: _Parts) -> int:
    """Return the most bytes that decoding takes. `size` bytes of the file are held by both processes."""
    pixels = fields.width * fields.height
    grey = fields.samples == 1 and fields.photometric in (0, 1, 3)
    stored = pixels * ((2 if max(fields.bits) > 8 else 1) if grey else 4)
    if fields.orientation != 1:
        stored *= 2
    # One part at a time is decoded, and YCbCr by way of four bytes a pixel.
    part = parts.width * parts.height * max(4.0, fields.row)
    return int(stored + 3 * pixels + part + 2 * size + _PER_PART * min(parts.number, parts.offsets.count))


def _number(data: bytes, file: Layout, first: Directory, tag: int, default: int) -> int:
    found = values(data, file, first.entries.get(tag), 1)
    return int(found[0]) if len(found) else default


def _cut(entry: Entry, most: int) -> Entry:
    """Return an entry with at most so many values."""
    return replace(entry, count=min(entry.count, most))


def _unsupported_mode(what: str) -> ImageError:
    return ImageError("unsupported_mode", f"tiff with {what} has no documented 8-bit RGB; convert it to 8-bit RGB")
