"""Seeded damage to files: bits, bytes, lengths, ends, and whole parts of their structure."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

_EXTREMES = (0, 1, 2, 0x7F, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)


def mutated(data: bytes, others: Sequence[bytes], generator: np.random.Generator) -> tuple[str, bytes]:
    """Return a damaged copy of a file, and the name of the damage.  others: files to splice parts of into it."""
    name = list(_WAYS)[generator.integers(len(_WAYS))]
    return name, _WAYS[name](data, others, generator)


def parts(data: bytes) -> list[tuple[int, int]]:
    """Return the places of a file's chunks, segments or boxes, or slices of 64 bytes where it has none we know."""
    for magic, walk in _WALKS.items():
        if data[: len(magic)] == magic:
            return list(walk(data))
    return list(_boxes(data)) if data[4:8] in (b"ftyp", b"jP  ", b"JXL ") else list(_slices(data))


def _bits(data: bytes, others: Sequence[bytes], generator: np.random.Generator) -> bytes:
    changed = bytearray(data)
    for _ in range(generator.integers(1, 17)):
        changed[_place(data, generator)] ^= 1 << int(generator.integers(8))
    return bytes(changed)


def _run(data: bytes, others: Sequence[bytes], generator: np.random.Generator) -> bytes:
    at, length = _place(data, generator), int(generator.integers(1, 65))
    fill = generator.bytes(length) if generator.random() < 0.5 else bytes((int(generator.integers(256)),)) * length
    return data[:at] + fill + data[at + length :]


def _cut(data: bytes, others: Sequence[bytes], generator: np.random.Generator) -> bytes:
    return data[: int(generator.integers(1, len(data)))]


def _splice(data: bytes, others: Sequence[bytes], generator: np.random.Generator) -> bytes:
    other = others[generator.integers(len(others))]
    start, stop = sorted(generator.integers(0, len(other) + 1, 2).tolist())
    at = _place(data, generator)
    over = stop - start if generator.random() < 0.5 else 0
    return data[:at] + other[start:stop] + data[at + over :]


def _length(data: bytes, others: Sequence[bytes], generator: np.random.Generator) -> bytes:
    """Write an extreme number, or one near the file's size, into the head of a part or anywhere."""
    places = parts(data)
    at = places[generator.integers(len(places))][0] if generator.random() < 0.6 else _place(data, generator)
    at += int(generator.integers(0, 12))
    size = int(generator.choice((2, 4)))
    numbers = (*_EXTREMES, len(data), len(data) - at, int(generator.integers(2**32)))
    number = numbers[generator.integers(len(numbers))] % 256**size
    return data[:at] + number.to_bytes(size, "big" if generator.random() < 0.5 else "little") + data[at + size :]


def _doubled(data: bytes, others: Sequence[bytes], generator: np.random.Generator) -> bytes:
    places = parts(data)
    start, stop = places[generator.integers(len(places))]
    at = places[generator.integers(len(places))][0]
    return data[:at] + data[start:stop] * int(generator.choice((1, 1, 2, 50))) + data[at:]


def _removed(data: bytes, others: Sequence[bytes], generator: np.random.Generator) -> bytes:
    places = parts(data)
    start, stop = places[generator.integers(len(places))]
    return data[:start] + data[stop:] or data[:1]


def _swapped(data: bytes, others: Sequence[bytes], generator: np.random.Generator) -> bytes:
    places = parts(data)
    (a, b), (c, d) = sorted(places[n] for n in generator.integers(0, len(places), 2))
    return data if a == c else data[:a] + data[c:d] + data[b:c] + data[a:b] + data[d:]


_WAYS: dict[str, Callable[[bytes, Sequence[bytes], np.random.Generator], bytes]] = {
    "bits": _bits,
    "run": _run,
    "cut": _cut,
    "splice": _splice,
    "length": _length,
    "doubled": _doubled,
    "removed": _removed,
    "swapped": _swapped,
}


def _place(data: bytes, generator: np.random.Generator) -> int:
    """Return an offset, every other time in the first kilobyte, where the headers are."""
    return int(generator.integers(min(len(data), 1024) if generator.random() < 0.5 else len(data)))


def _png(data: bytes) -> Iterator[tuple[int, int]]:
    at = 8
    while at < len(data):
        end = at + 12 + int.from_bytes(data[at : at + 4], "big")
        yield at, end
        at = end


def _riff(data: bytes) -> Iterator[tuple[int, int]]:
    at = 12
    while at < len(data):
        size = int.from_bytes(data[at + 4 : at + 8], "little")
        end = at + 8 + size + size % 2
        yield at, end
        # The frames of an animation, and the streams of a video, hold chunks themselves.
        at = at + 24 if data[at : at + 4] == b"ANMF" else at + 12 if data[at : at + 4] == b"LIST" else end


def _jpeg(data: bytes) -> Iterator[tuple[int, int]]:
    at = 2
    while at < len(data):
        end = data.find(b"\xff", at + 2 + int.from_bytes(data[at + 2 : at + 4], "big"))
        while end >= 0 and data[end + 1 : end + 2] in (b"\0", b"\xff"):
            end = data.find(b"\xff", end + 1)
        end = len(data) if end < 0 else end
        yield at, end
        at = end


def _boxes(data: bytes) -> Iterator[tuple[int, int]]:
    at = 0
    while at < len(data):
        size, name = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        end = at + size if size >= 8 else len(data)
        yield at, end
        inner = {b"moov": 8, b"trak": 8, b"mdia": 8, b"minf": 8, b"stbl": 8, b"meta": 12, b"iprp": 8, b"ipco": 8}
        at = at + inner[name] if name in inner else end


def _slices(data: bytes) -> Iterator[tuple[int, int]]:
    for at in range(0, len(data), 64):
        yield at, min(len(data), at + 64)


_WALKS: dict[bytes, Callable[[bytes], Iterator[tuple[int, int]]]] = {
    b"\x89PNG": _png,
    b"RIFF": _riff,
    b"\xff\xd8": _jpeg,
}
