"""The items of a HEIF or AVIF file: pictures, tiles and masks, their properties and where their bytes lie.

Sources: ISO/IEC 14496-12, section 8.11 (meta, iloc, iinf, iref, iprp), and ISO/IEC 23008-12, section 6 (pictures).
"""

from __future__ import annotations

from dataclasses import dataclass, field

from mdmf_deploy.errors import ImageError
from mdmf_deploy.images.containers.boxes import Box, Fields, children, made

MOST_ITEMS = 60_000
"""Items in a file, and items that one picture may need. A grid of 200 megapixels needs 800."""

KEPT = frozenset({b"ispe", b"pixi", b"av1C", b"hvcC", b"colr", b"irot", b"imir", b"clap", b"auxC", b"a1op", b"lsel"})
"""Properties that pixels depend on. The bodies of others are not copied."""

_MOST_ENTRIES = 2**19
_CUT = "truncated", "heif: it ends before the data of its picture do"


@dataclass(frozen=True, slots=True)
class Property:
    """A property of an item, such as its size or rotation.

    kind: its four letters.  body: its bytes.  essential: whether a reader that does not know it must give up.
    """

    kind: bytes
    body: bytes
    essential: bool = False


@dataclass(slots=True)
class Item:
    """A picture, a tile or a mask.

    kind: its codec, or "grid".  tiles: what a grid is made of, in order.  masks: items with its transparency.
    premultiplied: the item whose transparency its colours are multiplied by, or None.
    """

    number: int
    kind: bytes
    properties: list[Property]
    data: bytes
    tiles: list[int] = field(default_factory=list)
    masks: list[int] = field(default_factory=list)
    premultiplied: int | None = None

    def find(self, kind: bytes) -> bytes | None:
        """Return the body of the first property of this kind, or None."""
        return next((found.body for found in self.properties if found.kind == kind), None)


class Items:
    """The box `meta` of a file. Tables are read once. An item's bytes are copied only when it is asked for."""

    def __init__(self, data: bytes, meta: Box) -> None:
        """Read the tables. Raises ImageError corrupt or truncated."""
        self._data = data
        self._kinds: dict[int, bytes] = {}
        self._places: dict[int, tuple[int, int, tuple[int, ...]]] = {}
        self._owned: dict[int, tuple[int, ...]] = {}
        self._properties: list[Box] = []
        self._known: dict[int, Property] = {}
        self._entries = 0
        self._references: dict[bytes, dict[int, list[int]]] = {b"dimg": {}, b"auxl": {}, b"prem": {}}
        self._inner: Box | None = None
        self._copied: dict[tuple[int, int, tuple[int, ...]], bytes] = {}
        self._bytes_copied = 0
        self.primary: int | None = None
        readers = {b"pitm": self._pitm, b"iinf": self._iinf, b"iloc": self._iloc, b"iref": self._iref}
        for box in children(data, meta, "heif", skip=4):
            if box.kind in readers:
                readers[box.kind](box)
            elif box.kind == b"iprp":
                self._iprp(box)
            elif box.kind == b"idat":
                self._inner = box

    def masks_of(self, number: int) -> list[int]:
        """Return the auxiliary items of an item."""
        return self._references[b"auxl"].get(number, [])

    def item(self, number: int) -> Item:
        """Return an item. Raises ImageError corrupt, truncated or unsupported_format."""
        if number not in self._kinds:
            raise ImageError("corrupt", f"heif: it has no item {number}, which its picture needs")
        return Item(
            number,
            self._kinds[number],
            self._properties_of(number),
            self._bytes_of(number),
            self._references[b"dimg"].get(number, []),
            self.masks_of(number),
            next(iter(self._references[b"prem"].get(number, [])), None),
        )

    def _pitm(self, box: Box) -> None:
        fields = Fields(self._data, box, "heif")
        version = fields.number(4) >> 24
        self.primary = fields.number(2 if version == 0 else 4)

    def _iinf(self, box: Box) -> None:
        version = Fields(self._data, box, "heif").number(4) >> 24
        for entry in children(self._data, box, "heif", skip=6 if version == 0 else 8):
            fields = Fields(self._data, entry, "heif")
            version = fields.number(4) >> 24
            if entry.kind != b"infe" or version < 2:
                continue
            self._count(1)
            number = fields.number(2 if version == 2 else 4)
            fields.bytes(2)
            self._kinds.setdefault(number, fields.bytes(4))

    def _iloc(self, box: Box) -> None:
        fields = Fields(self._data, box, "heif")
        version = fields.number(4) >> 24
        sizes = fields.number(2)
        offset, length, base, index = sizes >> 12, sizes >> 8 & 15, sizes >> 4 & 15, sizes & 15 if version else 0
        if {offset, length, base, index} - {0, 4, 8}:
            raise ImageError("corrupt", "heif: the box iloc has fields of an impossible size")
        for _ in range(fields.number(2 if version < 2 else 4)):
            number = fields.number(2 if version < 2 else 4)
            method = fields.number(2) & 15 if version else 0
            source = fields.number(2)
            start = fields.number(base)
            count = fields.number(2)
            self._count(count + 1)
            extents = []
            for _ in range(count):
                fields.bytes(index)
                extents += [start + fields.number(offset), fields.number(length)]
            # Data in another file cannot be there: a method of its own, so that only an item that needs it fails.
            self._places.setdefault(number, (method if source == 0 else 16, 0, tuple(extents)))

    def _iref(self, box: Box) -> None:
        version = Fields(self._data, box, "heif").number(4) >> 24
        size = 2 if version == 0 else 4
        for entry in children(self._data, box, "heif", skip=4):
            if entry.kind not in self._references:
                continue
            fields = Fields(self._data, entry, "heif")
            origin = fields.number(size)
            targets = fields.numbers(size, fields.number(2))
            self._count(len(targets))
            if entry.kind != b"auxl":
                self._references[entry.kind].setdefault(origin, []).extend(targets)
                continue
            for target in targets:
                self._references[b"auxl"].setdefault(target, []).append(origin)

    def _iprp(self, box: Box) -> None:
        for child in children(self._data, box, "heif"):
            if child.kind == b"ipco":
                self._properties += children(self._data, child, "heif")
            elif child.kind == b"ipma":
                self._ipma(child)

    def _ipma(self, box: Box) -> None:
        fields = Fields(self._data, box, "heif")
        head = fields.number(4)
        wide = 2 if head & 1 else 1
        for _ in range(fields.number(4)):
            number = fields.number(2 if head >> 24 < 1 else 4)
            found = fields.numbers(wide, fields.number(1))
            self._count(len(found) + 1)
            # The highest bit says "essential". It is moved so that it does not depend on the width.
            high = 0x8000 if wide == 2 else 0x80
            self._owned[number] = tuple(value % high | (0x8000 if value & high else 0) for value in found)

    def _properties_of(self, number: int) -> list[Property]:
        found = []
        for value in self._owned.get(number, ()):
            index = value & 0x7FFF
            if index > len(self._properties):
                raise ImageError("corrupt", f"heif: item {number} has a property {index} that is not there")
            if not index:  # none
                continue
            if value not in self._known:
                box = self._properties[index - 1]
                body = self._data[box.start : box.end] if box.kind in KEPT else b""
                self._known[value] = Property(box.kind, body, value >= 0x8000)
            found.append(self._known[value])
        return found

    def _count(self, entries: int) -> None:
        """Bound the time that the tables take. Real ones have a few hundred entries."""
        self._entries += entries
        if self._entries > _MOST_ENTRIES:
            raise ImageError("corrupt", f"heif: its tables have more than {_MOST_ENTRIES} entries")

    def _bytes_of(self, number: int) -> bytes:
        """Return an item's bytes, joined. Items that share the very same bytes cost them once."""
        place = self._places.get(number)
        if place is None:
            return b""
        if place in self._copied:
            return self._copied[place]
        method, _, extents = place
        first, last = 0, len(self._data)
        if method == 1:
            if self._inner is None:
                raise ImageError("corrupt", f"heif: item {number} lies in a box idat that is not there")
            first, last = self._inner.start, self._inner.end
        elif method != 0:
            where = "in another file" if method == 16 else f"by the construction method {method}"
            raise ImageError("unsupported_format", f"heif: item {number} is stored {where}; convert it to a JPEG")
        parts = []
        for start, length in zip(extents[::2], extents[1::2], strict=True):
            end = first + start + length if length else last
            if end > last or first + start > last:
                raise ImageError(*_CUT)
            self._bytes_copied += end - first - start
            if self._bytes_copied > len(self._data):
                raise ImageError("corrupt", "heif: the data of its items overlap")
            parts.append(self._data[first + start : end])
        self._copied[place] = b"".join(parts)
        return self._copied[place]


def written(items: list[Item], brand: bytes) -> bytes:
    """Return a file that holds only these items. The first one is the primary item.

    brand: "heic" or "avif".
    """
    new = {item.number: place for place, item in enumerate(items, 1)}
    table: dict[tuple[bytes, bytes], int] = {}
    owned, references = [], []
    for item in items:
        marks = b"".join(
            (table.setdefault((found.kind, found.body), len(table) + 1) | (0x8000 if found.essential else 0)).to_bytes(
                2, "big"
            )
            for found in item.properties
        )
        owned.append(_short(new[item.number]) + bytes([len(marks) // 2]) + marks)
        if item.tiles:
            tiles = b"".join(_short(new[tile]) for tile in item.tiles)
            references.append(made(b"dimg", _short(new[item.number]), _short(len(item.tiles)), tiles))
        references += [made(b"auxl", _short(new[mask]), _short(1), _short(new[item.number])) for mask in item.masks]
        if item.premultiplied in new:
            references.append(made(b"prem", _short(new[item.number]), _short(1), _short(new[item.premultiplied])))
    head = made(b"ftyp", brand, bytes(4), b"mif1", b"miaf", brand)
    information = [
        made(b"infe", b"\2\0\0\0", _short(place), bytes(2), item.kind, b"\0") for place, item in enumerate(items, 1)
    ]
    # Items that share their bytes share their place.
    blobs = dict.fromkeys(item.data for item in items)

    def meta(start: int) -> bytes:
        for blob in blobs:
            blobs[blob] = start
            start += len(blob)
        places = [
            _short(place) + bytes(4) + _short(1) + _long(blobs[item.data] or 0) + _long(len(item.data))
            for place, item in enumerate(items, 1)
        ]
        return made(
            b"meta",
            bytes(4),
            made(b"hdlr", bytes(8), b"pict", bytes(13)),
            made(b"pitm", bytes(4), _short(1)),
            made(b"iloc", b"\1\0\0\0\x44\0", _short(len(items)), *places),
            made(b"iinf", bytes(4), _short(len(items)), *information),
            *([made(b"iref", bytes(4), *references)] if references else []),
            made(
                b"iprp",
                made(b"ipco", *(made(kind, body) for kind, body in table)),
                made(b"ipma", b"\0\0\0\1", _long(len(items)), *owned),
            ),
        )

    start = len(head) + len(meta(0)) + 8
    return head + meta(start) + made(b"mdat", *blobs)


def _short(number: int) -> bytes:
    return number.to_bytes(2, "big")


def _long(number: int) -> bytes:
    return number.to_bytes(4, "big")
