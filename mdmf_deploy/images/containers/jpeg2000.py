"""The structure of JPEG 2000 files: a codestream, bare or in the boxes of JP2.

The comments of the codestream and all boxes but those that say how to make RGB are dropped. An end marker is put where
one is missing, because whether all tiles are there decides. JPEG 2000 has no orientation.
Sources: ISO/IEC 15444-1, annex A (codestream) and annex I (JP2).
"""

from __future__ import annotations

from dataclasses import dataclass

from mdmf_deploy.errors import ImageError
from mdmf_deploy.images.containers import Container
from mdmf_deploy.images.containers.boxes import Box, Fields, boxes, children, made
from mdmf_deploy.images.limits import ReadLimits

_SOC, _SIZ, _COD, _COC, _COM, _SOT, _EOC = 0xFF4F, 0xFF51, 0xFF52, 0xFF53, 0xFF64, 0xFF90, 0xFFD9
# More than any writer makes, and few enough to walk over in a moment.
_MOST_SEGMENTS, _MOST_PARTS = 2**16, 2**18
_SIGNATURE = made(b"jP  ", b"\r\n\x87\n")
_COLOURS = {16: "sRGB", 17: "grey", 18: "sYCC", 20: "e-sRGB", 21: "ROMM-RGB"}
_ICC_SPACES = (b"RGB ", b"GRAY")
# Bytes that OpenJPEG takes for one of these, as measured.
_BASE, _TILE, _TILE_COMPONENT, _BLOCK, _PRECINCT = 8 << 20, 6 << 10, 2 << 10, 400, 1500


@dataclass(frozen=True, slots=True)
class _Header:
    """The main header of a codestream. `tiles` is their number, and `overhead` the bytes of what describes them."""

    width: int
    height: int
    components: int
    depth: int
    subsampled: bool
    tiles: int
    overhead: int


def parse(data: bytes, limits: ReadLimits) -> Container:
    """Return the structure of the file's picture.

    Raises ImageError: unsupported_mode for samples without a sensible 8-bit RGB, unsupported_format, truncated,
    corrupt, too_many_pixels.
    """
    if data.startswith(b"\xff\x4f"):
        header, stream = _codestream(data, 0, len(data), limits)
        kept = stream
        colours = None
    else:
        boxed, stream_box = _boxed(data)
        header, stream = _codestream(data, stream_box.start, min(stream_box.end, len(data)), limits)
        description, colours = _described(data, boxed, header)
        kept = _SIGNATURE + made(b"ftyp", b"jp2 ", bytes(4), b"jp2 ") + description + made(b"jp2c", stream)
    if header.depth > 8 and header.components > 1:
        raise ImageError(
            "unsupported_mode",
            f"jpeg2000 in colour with {header.depth} bits a sample is not read, because Pillow turns white into black; "
            "convert it to 8 bits",
        )
    if header.components > 4:
        raise ImageError("unsupported_mode", f"jpeg2000 of {header.components} components has no documented 8-bit RGB")
    if header.subsampled and (header.components != 3 or (colours is not None and colours != "sYCC")):
        raise ImageError("unsupported_mode", "jpeg2000 with components of unequal size is read as YCbCr only")
    return Container(
        format="jpeg2000",
        data=kept,
        width=header.width,
        height=header.height,
        orientation=1,
        memory=_memory(header),
        isolated=True,
    )


def _boxed(data: bytes) -> tuple[Box, Box]:
    """Return the boxes jp2h and jp2c."""
    header: Box | None = None
    for box in boxes(data, 0, len(data), "jpeg2000"):
        if box.kind == b"jp2h" and header is None:
            header = box
        elif box.kind == b"ftbl":
            raise ImageError("unsupported_format", "jpeg2000: its picture is stored in fragments; convert it to a JPEG")
        elif box.kind == b"jp2c":
            if header is None:
                raise ImageError("corrupt", "jpeg2000: it has no header (jp2h) before its picture")
            return header, box
    raise ImageError("truncated", "jpeg2000: it ends before its picture (jp2c)")


def _described(data: bytes, parent: Box, header: _Header) -> tuple[bytes, str | None]:
    """Return the boxes that say how to make RGB, and the colour space."""
    kept: dict[bytes, bytes] = {}
    colours: str | None = None
    for box in children(data, parent, "jpeg2000"):
        if box.kind not in (b"ihdr", b"bpcc", b"colr", b"pclr", b"cmap", b"cdef") or box.kind in kept:
            continue
        body = data[box.start : box.end]
        if box.kind == b"ihdr":
            fields = Fields(data, box, "jpeg2000")
            sides = fields.numbers(4, 2)
            if sides != (header.height, header.width) or fields.number(2) != header.components:
                raise ImageError("corrupt", "jpeg2000: its header and its codestream differ in size")
        elif box.kind == b"colr":
            colours = _colours(body)
            if body[:1] != b"\1":
                # Profiles are ignored, so say only what the samples are.
                body = b"\1\0\0" + (17 if colours == "grey" else 16).to_bytes(4, "big")
        elif box.kind == b"cdef":
            _check_channels(Fields(data, box, "jpeg2000"))
        kept[box.kind] = made(box.kind, body)
    if b"ihdr" not in kept:
        raise ImageError("corrupt", "jpeg2000: it has no image header (ihdr)")
    if b"pclr" in kept and colours != "sRGB":
        raise ImageError("unsupported_mode", f"jpeg2000 with a palette in {colours} has no documented 8-bit RGB")
    return made(b"jp2h", *kept.values()), colours


def _colours(body: bytes) -> str:
    """Return the colour space of a box colr (section I.5.3.3)."""
    if body[:1] == b"\1":
        number = int.from_bytes(body[3:7], "big")
        if number not in _COLOURS:
            raise ImageError(
                "unsupported_mode",
                f"jpeg2000 in the colour space {number} (CMYK, Lab, ...) has no documented 8-bit RGB",
            )
        return _COLOURS[number]
    space = body[3 + 16 : 3 + 20]
    if space not in _ICC_SPACES:
        raise ImageError(
            "unsupported_mode",
            f"jpeg2000 in the colour space {space.decode('ascii', 'replace').strip()!r} of its profile has no "
            "documented 8-bit RGB",
        )
    return "grey" if space == b"GRAY" else "sRGB"


def _check_channels(fields: Fields) -> None:
    """Refuse colours that are multiplied by their transparency (section I.5.3.6)."""
    for _ in range(fields.number(2)):
        if fields.numbers(2, 3)[1] == 2:
            raise ImageError("unsupported_mode", "jpeg2000 with colours premultiplied by alpha is not read")


def _codestream(data: bytes, start: int, end: int, limits: ReadLimits) -> tuple[_Header, bytes]:
    """Return the header of data[start:end] and the codestream, without comments and with an end marker.

    Raises ImageError truncated unless all tile-parts of all tiles are there.
    """
    at = start + 2
    kept = [data[start:at]]
    header: _Header | None = None
    siz = b""
    styles: list[bytes] = []
    for _ in range(_MOST_SEGMENTS):
        marker, length = int.from_bytes(data[at : at + 2], "big"), int.from_bytes(data[at + 2 : at + 4], "big")
        if at + 4 > end or (marker != _SOT and at + 2 + length > end):
            raise ImageError("truncated", "jpeg2000: it ends inside its header")
        if marker == _SOT:
            break
        if marker < 0xFF01 or length < 2 or (not siz and marker != _SIZ):
            raise ImageError("corrupt", f"jpeg2000: its header makes no sense at the marker {marker:04x}")
        segment = data[at : at + 2 + length]
        if marker == _SIZ:
            if siz:
                raise ImageError("corrupt", "jpeg2000: its header gives two sizes")
            siz = segment[4:]
            _check_size(siz, limits)
        elif marker in (_COD, _COC):
            styles.append(segment)
        if marker != _COM:
            kept.append(segment)
        at += 2 + length
    else:
        raise ImageError("corrupt", f"jpeg2000: its header has more than {_MOST_SEGMENTS} segments")
    header = _header(siz, styles)
    kept.append(_tile_parts(data, at, end, header.tiles))
    return header, b"".join(kept)


def _tile_parts(data: bytes, start: int, end: int, tiles: int) -> bytes:
    """Return all tile-parts and an end marker (sections A.4.2 and A.4.4)."""
    at = start
    parts: dict[int, int] = {}
    expected: dict[int, int] = {}
    count = 0
    while end - at >= 12 and data[at : at + 2] == b"\xff\x90":
        tile, length = int.from_bytes(data[at + 4 : at + 6], "big"), int.from_bytes(data[at + 6 : at + 10], "big")
        if length == 0:  # the last one: up to the end marker
            if data[end - 2 : end] != b"\xff\xd9":
                raise ImageError("truncated", "jpeg2000: its last tile ends early")
            length = end - 2 - at
        if length < 14 or tile >= tiles:
            raise ImageError("corrupt", f"jpeg2000: the tile {tile} makes no sense")
        if at + length > end:
            raise ImageError("truncated", f"jpeg2000: it ends inside the tile {tile} of {tiles}")
        parts[tile] = parts.get(tile, 0) + 1
        expected[tile] = max(expected.get(tile, 0), data[at + 11])
        at += length
        count += 1
        if count > _MOST_PARTS:
            raise ImageError("corrupt", f"jpeg2000: it has more than {_MOST_PARTS} tile-parts")
    if len(parts) < tiles or any(found < expected[tile] for tile, found in parts.items()):
        code = "truncated" if end - at < 12 else "corrupt"
        raise ImageError(code, f"jpeg2000: only {len(parts)} of its {tiles} tiles are there, or not all of them whole")
    return data[start:at] + b"\xff\xd9"


def _check_size(siz: bytes, limits: ReadLimits) -> None:
    """Check a segment SIZ (section A.5.1)."""
    if len(siz) < 39 or len(siz) != 36 + 3 * int.from_bytes(siz[34:36], "big"):
        raise ImageError("corrupt", "jpeg2000: its header gives no size")
    right, bottom, left, top, tile_width, tile_height, tile_left, tile_top = _numbers(siz)
    if not (left < right and top < bottom and tile_width and tile_height):
        raise ImageError("corrupt", "jpeg2000: it has no pixels")
    if tile_left > left or tile_top > top or tile_left + tile_width <= left or tile_top + tile_height <= top:
        raise ImageError("corrupt", "jpeg2000: its first tile lies outside the picture")
    limits.check_pixels("jpeg2000", right - left, bottom - top)
    for depth, across, down in zip(siz[36::3], siz[37::3], siz[38::3], strict=True):
        if depth & 0x80:
            raise ImageError("unsupported_mode", "jpeg2000 with signed samples has no documented 8-bit RGB")
        if depth > 15:
            raise ImageError("unsupported_mode", f"jpeg2000 with {depth + 1} bits a sample has no documented 8-bit RGB")
        if not across or not down:
            raise ImageError("corrupt", "jpeg2000: a component has no pixels")
    if siz[37:39] != b"\1\1":
        raise ImageError("unsupported_mode", "jpeg2000 whose first component is subsampled is not read")


def _numbers(siz: bytes) -> list[int]:
    return [int.from_bytes(siz[at : at + 4], "big") for at in range(2, 34, 4)]


def _header(siz: bytes, styles: list[bytes]) -> _Header:
    right, bottom, left, top, tile_width, tile_height, tile_left, tile_top = _numbers(siz)
    across, down = -(-(right - tile_left) // tile_width), -(-(bottom - tile_top) // tile_height)
    if across * down > 65_535:
        raise ImageError("corrupt", f"jpeg2000: it has {across * down} tiles, and 65535 are possible")
    components = (len(siz) - 36) // 3
    width, height = right - left, bottom - top
    sides = min(width, tile_width), min(height, tile_height)
    return _Header(
        width=width,
        height=height,
        components=components,
        depth=max(siz[36::3]) + 1,
        subsampled=any(pair != b"\1\1" for pair in (siz[at : at + 2] for at in range(37, len(siz), 3))),
        tiles=across * down,
        overhead=_overhead(sides, components, across * down, styles),
    )


def _memory(header: _Header) -> int:
    """Return an upper bound of the bytes that decoding takes. OpenJPEG gives each sample 4 bytes.

    Measured: 19 bytes a pixel for RGB, 24 with alpha and 11 for 16-bit grey.
    """
    per_pixel = {1: 14, 2: 26, 3: 21, 4: 28}[header.components]
    return _BASE + header.width * header.height * per_pixel + header.overhead


def _overhead(sides: tuple[int, int], components: int, tiles: int, styles: list[bytes]) -> int:
    """Return the bytes that OpenJPEG takes beside the samples: for tiles, precincts, code blocks and layers.

    sides: the width and height of a tile, which is decoded on its own.
    styles: the segments COD and COC (sections A.6.1 and A.6.2). The costliest one counts for all components.
    """
    most, layers = 0, 1
    for style in styles:
        coc = style[1] == 0x53
        at = (5 if components < 257 else 6) + 1 if coc else 9
        body, precincts = style[at : at + 3], style[at + 5 :]
        if len(style) < at + 5 or body[0] > 32 or body[1] > 8 or body[2] > 8:
            raise ImageError("corrupt", "jpeg2000: its coding style makes no sense")
        layers = layers if coc else max(layers, int.from_bytes(style[6:8], "big"))
        levels = body[0]
        cost = fullest = 0
        for level in range(levels + 1):
            size = precincts[level] if level < len(precincts) else 0xFF
            across, down = size & 15, size >> 4
            part = tuple(-(-side >> (levels - level)) for side in sides)
            count = _cells(part, across, down)
            fullest = max(fullest, count)
            blocks = _cells(part, min(body[1] + 2, max(0, across - 1)), min(body[2] + 2, max(0, down - 1)))
            cost += _PRECINCT * count + _BLOCK * blocks
        # OpenJPEG marks every packet of every layer.
        most = max(most, cost + 2 * (layers + 1) * (levels + 1) * fullest)
    return tiles * (_TILE + _TILE_COMPONENT * components) + components * most


def _cells(sides: tuple[int, ...], width: int, height: int) -> int:
    """Return how many cells of 2**width x 2**height cover these sides."""
    return (-(-sides[0] >> width)) * (-(-sides[1] >> height))
