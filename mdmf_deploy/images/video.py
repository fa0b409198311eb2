"""Videos by OpenCV: frames sampled evenly over the whole length, upright, as 8-bit RGB, and only their crops are kept.

The length is divided into as many equal parts as frames are asked for, and the frame in the middle of each part is
taken. "Middle" goes by time, so frames that are shown longer in a file of varying rate do not count less. A frame is
never taken twice: a clip with fewer frames than are asked for gives all of them.

Rotation metadata is applied once, by OpenCV. The aspect of pixels, and colour profiles, are ignored. FFmpeg, inside
OpenCV, converts YUV and more than 8 bits to 8-bit RGB.

If a file is cut or damaged, the frames that can be read count, with the note "frames_missing", provided that they are
at least half of those asked for. Otherwise the video is "truncated".
"""

from __future__ import annotations

import math
import os
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mdmf_deploy.errors import ImageError
from mdmf_deploy.images.crops import Pixels, boxes, grid, squares
from mdmf_deploy.images.limits import Note, ReadLimits
from mdmf_deploy.images.raster import Decoded
from mdmf_deploy.images.video_tracks import outline

SEEK_GAP = 100
"""Frames between samples from which on seeking is cheaper than decoding all (benchmarks/video.py)."""

_LEAST_SECONDS = 60.0
_SAME_TIME = 1e-4  # seconds
DECODER_THREADS = 1  # with more, FFmpeg conceals damage in an order that changes from run to run
_MOST_COUNT = 1 << 40
_IMPORTING = threading.Lock()
_STEPS_BACK = (0, 32, 128, 512)  # frames, while a seek lands behind the frame that is looked for


@dataclass(frozen=True, slots=True)
class VideoPlan:
    """What is taken of a video.

    frames: how many, at most.  size: pixels along one side of a crop.  crops: the most crops of one frame.
    """

    frames: int
    size: int
    crops: int

    @property
    def most_bytes(self) -> int:
        """The most bytes that its crops take."""
        return 3 * self.size**2 * self.crops * self.frames


@dataclass(frozen=True, slots=True)
class SampledVideo:
    """The crops of a video's frames.

    crops: (F, k, S, S, 3) uint8, the k crops of each of F frames.
    crop: as the kind of mdmf_deploy.images.crops.Crop.
    times: (F,) seconds from the beginning, ascending.
    width, height: of a frame, after rotation.
    format: as magic.video_format names it.
    """

    crops: NDArray[np.uint8]
    crop: str
    times: tuple[float, ...]
    width: int
    height: int
    format: str
    notes: tuple[Note, ...] = ()


def can_decode() -> bool:
    """Return whether OpenCV is installed. It is not imported."""
    # While another thread imports it, it has no specification.
    return sys.modules["cv2"] is not None if "cv2" in sys.modules else find_spec("cv2") is not None


def seconds_allowed(frames: int, limits: ReadLimits) -> float:
    """Return the seconds that decoding so many frames of a video may take: at least a minute."""
    return max(_LEAST_SECONDS, limits.max_seconds * frames)


def sample(path: str, format: str, plan: VideoPlan, limits: ReadLimits) -> SampledVideo:
    """Decode frames of the video at an absolute path, evenly over its length, and cut their crops.

    format: as magic.video_format names the file. Only one frame is held at a time.
    Raises ImageError: unsupported_format without a picture track or a decoder for it, truncated, corrupt (no frame in a
    whole file), too_many_pixels, too_slow.
    """
    with _Capture(path, format, plan.frames, limits) as capture:
        targets = _targets(capture.count, plan.frames)
        crops: NDArray[np.uint8] | None = None
        times: list[float] = []
        size = 0, 0
        missing = 0
        for found in _visits(capture, targets):
            frame = None if found is None else capture.frame()
            if frame is None or (crops is not None and frame.shape[:2] != size):
                missing += 1
                continue
            size = frame.shape[0], frame.shape[1]
            cut = _cut(frame, *size, plan)
            if crops is None:
                crops = np.empty((len(targets), *cut.shape), np.uint8)
            crops[len(times)] = cut
            times.append(capture.time)
    if crops is None:
        raise _why_nothing(path, format)
    if 2 * len(times) < len(times) + missing:
        raise ImageError(
            "truncated",
            f"{format}: only {len(times)} of the {len(times) + missing} frames asked for can be read; get the whole "
            "file, or convert it",
        )
    return SampledVideo(
        crops[: len(times)],
        kind_of(*size, plan),
        tuple(times),
        size[1],
        size[0],
        format,
        ("frames_missing",) if missing else (),
    )


def frame_at(path: str, format: str, seconds: float, limits: ReadLimits) -> Decoded:
    """Decode the whole frame that `sample` found at this time.

    Raises ImageError as `sample` does, and truncated if there is no such frame.
    """
    # If a seek goes astray, all frames up to this one are decoded.
    for seeks in (True, False):
        with _Capture(path, format, 1, limits) as capture:
            target = capture.number_at(seconds)
            if seeks and target > SEEK_GAP:
                capture.jump(target)
            while capture.time < seconds - _SAME_TIME and capture.grab():
                pass
            frame = capture.frame() if abs(capture.time - seconds) <= _SAME_TIME else None
            if frame is not None:
                height, width = frame.shape[:2]
                return Decoded(np.ascontiguousarray(frame[..., ::-1]), width, height, format)
    raise ImageError("truncated", f"{format}: its frame at {seconds:.3f} s cannot be read again")


def _targets(count: int, frames: int) -> list[int]:
    """Return the numbers of the frames in the middle of each part, ascending and distinct."""
    return sorted({(2 * part + 1) * count // (2 * frames) for part in range(frames)})


def _visits(capture: _Capture, targets: Sequence[int]) -> Iterator[int | None]:
    """Take the capture to the first frame at or behind each target. Yields None for one that cannot be reached.

    A target that the last frame answers as well is left out.
    """
    seeks = capture.count > SEEK_GAP * len(targets)
    for target in targets:
        if capture.number >= target:
            continue
        if seeks:
            capture.jump(target)
        while capture.number < target:
            if not capture.grab():
                break
        yield target if capture.number >= target else None


def kind_of(height: int, width: int, plan: VideoPlan) -> str:
    """Return the kind of the crops of a frame, as mdmf_deploy.images.crops.squares names it."""
    rows, columns = grid(height, width, plan.size, plan.crops)
    if rows * columns > 1:
        return f"grid {rows}x{columns}"
    return "reflected" if min(height, width) < plan.size else "center"


def _cut(frame: Pixels, height: int, width: int, plan: VideoPlan) -> Pixels:
    """Cut the crops of a BGR frame, and turn them to RGB."""
    place = partial(boxes, size=plan.size, count=plan.crops)
    parts = [frame[top:bottom, left:right, ::-1] for left, top, right, bottom in place(height, width)]
    return squares(parts, plan.size, grid(height, width, plan.size, plan.crops)).pixels


def _why_nothing(path: str, format: str) -> ImageError:
    """Return why no frame of a file can be read."""
    found = outline(path, format)
    if not found.whole:
        return ImageError("truncated", f"{format}: the file ends before its pictures do; get the whole file")
    if not found.kinds:
        return ImageError("corrupt", f"{format}: it describes no track; get the file again")
    if not found.pictures:
        return ImageError("unsupported_format", f"{format}: it has no picture track, only sound or text")
    return ImageError(
        "corrupt",
        f"{format}: it holds no frame that OpenCV can decode; if it plays elsewhere, convert it to H.264 in MP4",
    )


class _Capture:
    """An open video, read frame by frame within its time.

    count: frames, or an estimate from the duration.
    number, time: of the last frame that was grabbed, in frames at the average rate and in seconds. -1 before the first.
    """

    def __init__(self, path: str, format: str, frames: int, limits: ReadLimits) -> None:
        self._path, self._format, self._limits = path, format, limits
        self._allowed = seconds_allowed(frames, limits)
        self._deadline = time.monotonic() + self._allowed
        self.count = 0
        self._open()
        if not 0 < self.count < _MOST_COUNT:
            # A browser's recording does not say how long it is, so its frames are counted first.
            while self.grab():
                pass
            count = self.number + 1
            self.close()
            self._open()
            self.count = count

    def __enter__(self) -> _Capture:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._video.release()

    def number_at(self, seconds: float) -> int:
        """Return the number of the frame at this time, at the average rate."""
        return math.floor(seconds * self._rate + 0.5)

    def grab(self) -> bool:
        """Decode the next frame. Returns False after the last."""
        if time.monotonic() > self._deadline:
            raise ImageError(
                "too_slow",
                f"{self._format}: reading its frames takes longer than the {self._allowed:g} s allowed; cut the video, "
                "or ask for fewer frames",
            )
        if not self._video.grab():
            return False
        self._take_position()
        return True

    def frame(self) -> Pixels | None:
        """Return the pixels of the frame that was grabbed, (H, W, 3) BGR, upright. None if they cannot be had."""
        pixels: Pixels | None = self._video.retrieve()[1]
        return None if pixels is None or pixels.ndim != 3 or pixels.dtype != np.uint8 else pixels

    def jump(self, target: int) -> None:
        """Seek, so that the next frame is the one with this number, or one shortly before it."""
        for back in _STEPS_BACK:
            start = max(0, target - back)
            self._video.set(self._cv2.CAP_PROP_POS_FRAMES, start)
            self.number, self.time = -1, -1.0
            if start == 0:
                return
            self._take_position()
            if self.number < target:
                return

    def _open(self) -> None:
        cv2 = self._cv2 = opencv()
        options = [cv2.CAP_PROP_HW_ACCELERATION, cv2.VIDEO_ACCELERATION_NONE]
        options += [cv2.CAP_PROP_N_THREADS, DECODER_THREADS]
        try:
            self._video = cv2.VideoCapture(self._path, cv2.CAP_FFMPEG, options)
            opened = self._video.isOpened()
        except (cv2.error, UnicodeError, SystemError):
            opened = False
        if not opened:
            raise _why_nothing(self._path, self._format)
        self._video.set(cv2.CAP_PROP_ORIENTATION_AUTO, 1)
        width, height = (self._get(name) for name in ("FRAME_WIDTH", "FRAME_HEIGHT"))
        try:
            self._limits.check_pixels(self._format, int(width), int(height))
        except ImageError:
            self.close()
            raise
        rate, count = self._get("FPS"), self._get("FRAME_COUNT")
        self._rate = rate if 0 < rate <= 1e6 else 25.0
        self.count = int(count)
        self.number, self.time = -1, -1.0

    def _take_position(self) -> None:
        """Set the number and the time by the frame's own time, or by counting if times do not advance."""
        seconds = self._get("POS_MSEC") / 1000
        if seconds > self.time:
            # Several frames have one number where they are closer than on average.
            self.number, self.time = self.number_at(seconds), seconds
        else:
            self.number, self.time = self.number + 1, (self.number + 1) / self._rate

    def _get(self, name: str) -> float:
        value = float(self._video.get(getattr(self._cv2, f"CAP_PROP_{name}")))
        return value if math.isfinite(value) else 0.0


def opencv() -> Any:
    """Import OpenCV. Neither it nor FFmpeg write messages, because they name no file."""
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    os.environ.setdefault("OPENCV_LOG_LEVEL", "OFF")
    # Its package replaces itself while it is imported, which only one thread may see.
    with _IMPORTING:
        import cv2

    return cv2
