"""A video to its crops: hashed, sampled and cut, without holding more than one of its frames."""

from __future__ import annotations

import hashlib
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from mdmf_deploy.detection.sources import Taken
from mdmf_deploy.errors import ImageError
from mdmf_deploy.images import decode, video
from mdmf_deploy.images.evidence import evidence
from mdmf_deploy.images.isolation import video as isolated
from mdmf_deploy.images.isolation.owners import Ended
from mdmf_deploy.images.magic import unsupported
from mdmf_deploy.images.provenance import Provenance, read_provenance
from mdmf_deploy.images.provenance.manifest import MOST_BYTES
from mdmf_deploy.images.raster import Decoded
from mdmf_deploy.images.video import SampledVideo, VideoPlan

ROOM = 128 * 2**20
"""Bytes of crops of the videos that wait for the engine, together."""


@dataclass(frozen=True, slots=True)
class VideoFrames:
    """The frames of a video that were scored.

    times: (F,) seconds from the beginning, ascending.  evidence: (F,) as Row.evidence, of each frame.
    """

    times: tuple[float, ...]
    evidence: tuple[float, ...]

    @classmethod
    def of(cls, sampled: SampledVideo) -> VideoFrames:
        return cls(sampled.times, tuple(evidence(crops) for crops in sampled.crops))

    @property
    def mean_evidence(self) -> float:
        """The evidence of the video. All frames have as many crops, so it is that of all crops."""
        return float(np.mean(self.evidence))


class VideoRoom:
    """Bytes for the crops of videos that wait. The source that is asked for next gets in even if there is no room.

    So at most ROOM bytes wait, or one video.
    """

    def __init__(self, most: int = ROOM) -> None:
        self._changed = threading.Condition()
        self._most, self._next, self._closed = most, 0, False
        self._held: dict[int, int] = {}

    def hold(self, n: int, needed: int) -> None:
        """Wait until there is room for the crops of source number n. Raises Ended once it is closed."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._closed or n <= self._next or sum(self._held.values()) + needed <= self._most
            )
            if self._closed:
                raise Ended
            self._held[n] = needed

    def passed(self) -> None:
        """Free the room of the next source, because it has been taken to the engine."""
        with self._changed:
            self._held.pop(self._next, None)
            self._next += 1
            self._changed.notify_all()

    def close(self) -> None:
        """Let nobody wait any more."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()


def hash_video(taken: Taken, limits: decode.ReadLimits) -> str:
    """Return the SHA-256 of a video's bytes. A file is never in memory as a whole."""
    if isinstance(taken.source, bytes):
        return hashlib.sha256(taken.source).hexdigest()
    assert isinstance(taken.source, str | Path)
    return decode.sha256_of_video(taken.source, limits)


def video_provenance(taken: Taken, limits: decode.ReadLimits) -> Provenance | None:
    """Return what a video's metadata claim. None for a file that is too large to be read as a whole."""
    try:
        data = taken.data(replace(limits, max_bytes=MOST_BYTES))
    except ImageError as error:
        if error.code == "too_many_bytes":
            return None
        raise
    return None if data is None or len(data) > MOST_BYTES else read_provenance(data)


def check_video(start: bytes, frames: int | None) -> None:
    """Raise ImageError unsupported_format where videos are not read, or not without OpenCV.

    start: the first bytes of the file.  frames: how many are taken of a video. None means that images alone are read.
    """
    if frames is None:
        raise ImageError(
            "unsupported_format", "this is a video, and images alone are read here; `mdmf detect` scores videos"
        )
    if not video.can_decode():
        raise ImageError("unsupported_format", unsupported(start))


def sample_video(taken: Taken, format: str, plan: VideoPlan, limits: decode.ReadLimits) -> SampledVideo:
    """Decode a video's frames and cut their crops. Raises ImageError as mdmf_deploy.images.video.sample does."""
    assert isinstance(taken.source, bytes | str | Path)
    with _as_file(taken.source) as path:
        return isolated.sample(path, format, plan, limits)


def decode_frame(source: bytes | str | Path, format: str, seconds: float, limits: decode.ReadLimits) -> Decoded:
    """Decode the whole frame that was scored at this time. Raises ImageError as `sample_video` does."""
    with _as_file(source) as path:
        return isolated.frame_at(path, format, seconds, limits)


@contextmanager
def _as_file(source: bytes | str | Path) -> Iterator[str]:
    """Yield an absolute path that OpenCV can open. It reads neither bytes nor names that are not UTF-8.

    An absolute path can't be mistaken for a protocol of FFmpeg's, such as "concat:" or "http:".
    """
    path = None if isinstance(source, bytes) else Path(str(source)).absolute()
    if path is not None and _is_utf8(str(path)):
        yield str(path)
        return
    with tempfile.TemporaryDirectory(prefix="mdmf-video-", ignore_cleanup_errors=True) as folder:
        stand_in = Path(folder, "video")
        if isinstance(source, bytes):
            stand_in.write_bytes(source)
        elif path is not None:
            stand_in.symlink_to(path)
        yield str(stand_in)


def _is_utf8(path: str) -> bool:
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True
