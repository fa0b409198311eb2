"""Read protobuf's wire format within bounds, without the packages protobuf and onnx.

A message is a run of fields. Each begins with a varint, 8 * number + wire type, and holds a varint, 4 or 8 bytes, or a
length and that many bytes: a text, packed numbers, or another message (protobuf.dev/programming-guides/encoding).
Bytes are never copied: the caller gets their place, and reads on only where it knows what lies there. So the depth is
the caller's, and the work is at most one step for each field.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

VARINT, EIGHT, BYTES, FOUR = 0, 1, 2, 5
_SIZES = {EIGHT: 8, FOUR: 4}

Place = tuple[int, int]
"""Where a field's bytes lie: [start, stop) of the whole file."""


class Malformed(Exception):
    """Bytes that are no message of the expected kind. The text says why, in a few words."""


class Kind:
    """A kind of message, and the fields that it may hold.

    once: number -> wire type, of fields that may come once. Protobuf would take the last, or merge them.
    repeated: number -> wire type, of fields that may come more often.
    Every other field is refused. A reader that knows the field might act on it.
    """

    def __init__(self, name: str, once: Mapping[int, int], repeated: Iterable[tuple[int, int]] = ()) -> None:
        self.name = name
        self.once = dict(once)
        # Numbers may come packed or one by one, so a repeated field may have two wire types.
        self.tags = {number << 3 | wire for number, wire in (*self.once.items(), *repeated)}


class Message:
    """The fields of one message: varints as int, and everything else as its Place.

    number[n] gives the values of field n, in order.
    """

    __slots__ = ("_values", "kind")

    def __init__(self, kind: Kind, values: dict[int, list[int | Place]]) -> None:
        self.kind, self._values = kind, values

    def integer(self, number: int, default: int = 0) -> int:
        """Return a varint that may come once."""
        values = self._values.get(number)
        return default if values is None else int(values[0])  # type: ignore[arg-type]

    def place(self, number: int) -> Place | None:
        """Return the place of bytes that may come once, or None without any."""
        values = self._values.get(number)
        return None if values is None else values[0]  # type: ignore[return-value]

    def all(self, number: int) -> list[int | Place]:
        """Return every value of a field that may come more often."""
        return self._values.get(number, [])

    def places(self, number: int) -> list[Place]:
        """Return the places of a field that is always bytes."""
        return self._values.get(number, [])  # type: ignore[return-value]

    def __contains__(self, number: int) -> bool:
        return number in self._values


class Reader:
    """One file's bytes, and how many more fields may be read from them. Every method raises Malformed."""

    def __init__(self, data: bytes, most_fields: int) -> None:
        self._data, self._left = data, most_fields

    def message(self, kind: Kind, place: Place | None = None) -> Message:
        """Read one message. place: None means the whole file."""
        data, tags = self._data, kind.tags
        at, stop = place or (0, len(data))
        values: dict[int, list[int | Place]] = {}
        while at < stop:
            self._left -= 1
            if self._left < 0:
                raise Malformed("more fields than any graph needs")
            # Most varints have one byte. The rest of this loop is written for speed.
            tag = data[at]
            at += 1
            if tag > 0x7F:
                tag, at = self._varint(at - 1, stop)
            number, wire = tag >> 3, tag & 7
            if tag not in tags:
                raise Malformed(f"field {number} of type {wire} in its {kind.name}, which none of ours has")
            value: int | Place
            length = _SIZES.get(wire)
            if length is None:
                if at < stop and data[at] <= 0x7F:
                    length = data[at]
                    at += 1
                else:
                    length, at = self._varint(at, stop)
            if wire == VARINT:
                value = length
            else:
                if length > stop - at:
                    raise Malformed(f"a length of {length} bytes in its {kind.name}, of which {stop - at} are there")
                value = (at, at + length)
                at += length
            if number not in values:
                values[number] = [value]
            elif number in kind.once:
                raise Malformed(f"field {number} twice in its {kind.name}")
            else:
                values[number].append(value)
        return Message(kind, values)

    def text(self, place: Place | None, longest: int) -> str:
        """Return a text. A field that is not there is the empty text."""
        if place is None:
            return ""
        start, stop = place
        if stop - start > longest:
            raise Malformed(f"a name of {stop - start} bytes, expected at most {longest}")
        try:
            return self._data[start:stop].decode()
        except UnicodeDecodeError:
            raise Malformed("a name that is no UTF-8") from None

    def integers(self, values: Iterable[int | Place], most: int) -> list[int]:
        """Return at most `most` signed 64-bit integers of a repeated field, packed or not."""
        found: list[int] = []
        for value in values:
            if isinstance(value, int):
                found.append(value)
            else:
                at, stop = value
                while at < stop and len(found) <= most:
                    one, at = self._varint(at, stop)
                    found.append(one)
            if len(found) > most:
                raise Malformed(f"more than {most} dimensions")
        return [one - (1 << 64) if one >> 63 else one for one in found]

    def _varint(self, at: int, stop: int) -> tuple[int, int]:
        """Return an unsigned number below 2^64, and the place after it."""
        data, value, shift = self._data, 0, 0
        while at < stop:
            byte = data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                if value >> 64:
                    raise Malformed("a number beyond 64 bits")
                return value, at
            shift += 7
            if shift > 63:
                raise Malformed("a number beyond 64 bits")
        raise Malformed("it ends in the middle of a number")
