"""The parent's side of the tasks "video" and "video frame"."""

from __future__ import annotations

import math
from itertools import pairwise

import msgspec

from mdmf_deploy.images.budget import DECODING
from mdmf_deploy.images.crops import grid
from mdmf_deploy.images.isolation.conversation import Allowance, conversation
from mdmf_deploy.images.isolation.wire import Garbled
from mdmf_deploy.images.limits import Note, ReadLimits
from mdmf_deploy.images.raster import Decoded
from mdmf_deploy.images.video import SampledVideo, VideoPlan, kind_of, seconds_allowed


class AskedVideo(msgspec.Struct, frozen=True):
    """What to sample.  path: absolute."""

    path: str
    format: str
    plan: VideoPlan
    limits: ReadLimits


class FoundVideo(msgspec.Struct, frozen=True):
    """A SampledVideo without its crops, which follow as an array."""

    times: tuple[float, ...]
    height: int
    width: int
    notes: tuple[Note, ...]


class AskedFrame(msgspec.Struct, frozen=True):
    """Which frame to decode, by its time in seconds."""

    path: str
    format: str
    seconds: float
    limits: ReadLimits


class FoundFrame(msgspec.Struct, frozen=True):
    """The size of a frame. Its pixels follow as an array."""

    height: int
    width: int


def sample(path: str, format: str, plan: VideoPlan, limits: ReadLimits) -> SampledVideo:
    """Sample a video in a child process, as mdmf_deploy.images.video.sample does. Safe to call from many threads."""
    memory = _memory(limits)
    allowance = Allowance(memory + plan.most_bytes, seconds_allowed(plan.frames, limits))
    asked = AskedVideo(path, format, plan, limits)
    with DECODING.held(memory, limits.max_memory), conversation("video", b"", asked, allowance, format) as child:
        found = child.receive(FoundVideo)
        _check_size(found.height, found.width, format, limits)
        times = found.times
        if not 1 <= len(times) <= plan.frames or not all(map(math.isfinite, times)) or _disordered(times):
            raise Garbled(f"frames at {times[:3]} and on")
        rows, columns = grid(found.height, found.width, plan.size, plan.crops)
        crops = child.array((len(times), rows * columns, plan.size, plan.size, 3))
    kind = kind_of(found.height, found.width, plan)
    return SampledVideo(crops, kind, times, found.width, found.height, format, found.notes)


def frame_at(path: str, format: str, seconds: float, limits: ReadLimits) -> Decoded:
    """Decode a frame in a child process, as mdmf_deploy.images.video.frame_at does. Safe to call from many threads."""
    memory = _memory(limits)
    allowance = Allowance(memory, seconds_allowed(1, limits))
    asked = AskedFrame(path, format, seconds, limits)
    with DECODING.held(memory, limits.max_memory), conversation("video frame", b"", asked, allowance, format) as child:
        found = child.receive(FoundFrame)
        _check_size(found.height, found.width, format, limits)
        pixels = child.array((found.height, found.width, 3))
    return Decoded(pixels, found.width, found.height, format)


def _memory(limits: ReadLimits) -> int:
    """Return the bytes that one video may take. Nothing in its structure bounds them, so two share what there is."""
    return limits.max_memory // 2


def _check_size(height: int, width: int, format: str, limits: ReadLimits) -> None:
    if min(height, width) < 1:
        raise Garbled(f"a size of {width} x {height}")
    limits.check_pixels(format, width, height)


def _disordered(times: tuple[float, ...]) -> bool:
    return any(a > b for a, b in pairwise(times))
