"""The bounds on what one image may cost, and the codes that rows give for errors and notes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mdmf_deploy.errors import ImageError

Code = Literal[
    "missing",  # no such file
    "not_a_file",  # a folder, pipe, socket or device
    "unreadable",  # the system refuses to open or read it
    "empty",  # no bytes
    "too_many_bytes",  # more than ReadLimits.max_bytes
    "too_many_pixels",  # more than ReadLimits.max_pixels would have to be decoded
    "too_much_memory",  # decoding it takes more than ReadLimits.max_memory
    "too_slow",  # decoding it takes longer than ReadLimits.max_seconds
    "unsupported_format",  # no format that can be decoded here, whatever its name
    "unsupported_mode",  # one of these formats, in a pixel layout without a sensible 8-bit RGB
    "truncated",  # some of its pixels are not there
    "corrupt",  # the header or data make no sense
    "not_finite",  # decoded, but the model or the runtime returned a score that is not finite
    "impossible_score",  # decoded, but the score is one that no image can have against this bank
]
"""Every code of an ImageError. They are stable."""

Note = Literal[
    "no_end_marker",  # a JPEG without its end marker, whose pixels are there, but perhaps its last two blocks
    "scans_missing",  # a progressive JPEG whose finer scans are not there, so that its pixels are coarse
    "frames_missing",  # a video of which some of the frames asked for cannot be read
]
"""Every code in the notes of a row. They are stable."""


@dataclass(frozen=True, slots=True)
class ReadLimits:
    """Bounds on one image, or on one frame of a video.

    max_pixels: that have to be decoded. That is width x height, or only the rows down to the lowest crop x width of a
        baseline JPEG.
    max_bytes: of the file.
    max_video_bytes: of a video's file, which is never read into memory as a whole.
    max_memory: bytes that decoding may take. All threads of a process together take no more than this for images that
        need much.
    max_seconds: that decoding may take, for formats whose cost cannot be told from their structure.
    """

    max_pixels: int = 128_000_000
    max_bytes: int = 512 * 2**20
    max_video_bytes: int = 8 * 2**30
    max_memory: int = 2**30
    max_seconds: float = 10.0

    def check_pixels(self, format: str, width: int, height: int, rows: int | None = None) -> None:
        """Raise ImageError too_many_pixels if too many have to be decoded.  rows: if not all of them have to be."""
        needed = width * (height if rows is None else rows)
        if needed > self.max_pixels:
            raise ImageError(
                "too_many_pixels",
                f"{format} of {width} x {height} pixels: {needed} have to be decoded, more than the {self.max_pixels} "
                "allowed; raise --max-pixels to read it",
            )

    def check_memory(self, format: str, bytes_needed: int) -> None:
        """Raise ImageError too_much_memory if decoding takes more than is allowed."""
        if bytes_needed > self.max_memory:
            raise ImageError(
                "too_much_memory",
                f"{format}: decoding it takes about {bytes_needed >> 20} MiB, more than the {self.max_memory >> 20} "
                "MiB allowed; raise --max-memory to read it",
            )


FRAMES, MOST_FRAMES = 10, 100
"""Frames of a video that are scored by default, as in the paper's study of OpenSora, and at most."""

DEFAULT_LIMITS = ReadLimits()
