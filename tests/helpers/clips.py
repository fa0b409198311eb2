"""Small videos that OpenCV writes, and what befalls them: a rotation, a varying rate, a cut."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from helpers.synthetic_photos import synthetic_photo

RATE = 25
LOSSLESS = "FFV1"
_CONTAINERS = (b"moov", b"trak", b"mdia", b"minf", b"stbl")


def cv2() -> Any:
    """Import OpenCV without the messages that its writers print."""
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    os.environ.setdefault("OPENCV_LOG_LEVEL", "OFF")
    import cv2 as module

    return module


def frame(n: int, width: int = 64, height: int = 48) -> np.ndarray:
    """Frame n of every clip, (H, W, 3) RGB: a texture of its own."""
    return synthetic_photo(1000 + n, width, height)


def write_clip(path: Path, frames: int = 30, codec: str = "mp4v", size: tuple[int, int] = (64, 48)) -> Path:
    """Write a clip of frame(0), frame(1), ... at 25 frames a second. FFV1 in .mkv is lossless."""
    module = cv2()
    writer = module.VideoWriter(str(path), module.CAP_FFMPEG, module.VideoWriter.fourcc(*codec), RATE, size)
    assert writer.isOpened()
    for n in range(frames):
        writer.write(np.ascontiguousarray(frame(n, *size)[..., ::-1]))
    writer.release()
    return path


def rotated(data: bytes, degrees: int) -> bytes:
    """An MP4 whose header asks for a turn clockwise by 90, 180 or 270 degrees (ISO/IEC 14496-12, section 8.3.2)."""
    one = 1 << 16
    turns = {90: (0, one, 0, -one, 0), 180: (-one, 0, 0, 0, -one), 270: (0, -one, 0, one, 0)}
    matrix = (*turns[degrees], 0, 0, 0, 1 << 30)
    at = data.rindex(b"tkhd") + 44
    return data[:at] + b"".join(value.to_bytes(4, "big", signed=True) for value in matrix) + data[at + 36 :]


def without_pictures(data: bytes) -> bytes:
    """An MP4 whose only track says that it is sound."""
    return data.replace(b"vide", b"soun")


def index_first(data: bytes) -> bytes:
    """An MP4 with its index before the pictures, as for the web. Cut, it still says what there was."""
    top = {kind: (at, size) for kind, at, size in _boxes(data, 0, len(data))}
    at, size = top[b"moov"]
    start, _ = top[b"mdat"]
    moov = bytearray(data[at : at + size])
    for table in _places(moov, b"stco"):
        for entry in range(int.from_bytes(moov[table + 12 : table + 16], "big")):
            place = table + 16 + 4 * entry
            moov[place : place + 4] = (int.from_bytes(moov[place : place + 4], "big") + size).to_bytes(4, "big")
    rest = data[:at] + data[at + size :]
    return rest[:start] + bytes(moov) + rest[start:]


def at_rates(data: bytes, runs: list[tuple[int, int]]) -> bytes:
    """An MP4 with its index last, whose frames last as long as runs of (frames, times a usual frame) say."""
    # The edit list ends the track where it ended before.
    data = data.replace(b"edts", b"free")
    [at] = _places(data, b"stts")
    unit = int.from_bytes(data[at + 20 : at + 24], "big")
    table = b"".join(count.to_bytes(4, "big") + (unit * times).to_bytes(4, "big") for count, times in runs)
    box = b"stts" + bytes(4) + len(runs).to_bytes(4, "big") + table
    old = int.from_bytes(data[at : at + 4], "big")
    grown = len(box) + 4 - old
    changed = bytearray(data)
    for kind in _CONTAINERS:
        [start] = _places(data, kind)
        changed[start : start + 4] = (int.from_bytes(data[start : start + 4], "big") + grown).to_bytes(4, "big")
    return bytes(changed[:at]) + (len(box) + 4).to_bytes(4, "big") + box + bytes(changed[at + old :])


def _places(data: bytes | bytearray, kind: bytes) -> list[int]:
    """Where boxes of this kind begin, below the usual containers."""
    found = []
    waiting = [(0, len(data))]
    while waiting:
        for name, at, size in _boxes(data, *waiting.pop()):
            found += [at] * (name == kind)
            waiting += [(at + 8, at + size)] * (name in _CONTAINERS)
    return found


def _boxes(data: bytes | bytearray, at: int, end: int) -> list[tuple[bytes, int, int]]:
    boxes = []
    while at + 8 <= end:
        size = int.from_bytes(data[at : at + 4], "big")
        boxes.append((bytes(data[at + 4 : at + 8]), at, size))
        at += size
    return boxes
