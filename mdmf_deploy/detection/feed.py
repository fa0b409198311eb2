"""Sources to model input: each one is read, decoded, cropped and normalised, by threads that work ahead, in order."""

from __future__ import annotations

import hashlib
import math
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from queue import Empty, SimpleQueue
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mdmf_deploy.bundle.recipe import Preprocessing
from mdmf_deploy.detection.sources import Source, Taken, take
from mdmf_deploy.detection.videos import VideoFrames, VideoRoom, check_video, hash_video, sample_video, video_provenance
from mdmf_deploy.errors import ImageError, UsageError
from mdmf_deploy.hardware.forks import Origin
from mdmf_deploy.images import decode
from mdmf_deploy.images.crops import Pixels, boxes, grid, normalise, squares
from mdmf_deploy.images.evidence import evidence
from mdmf_deploy.images.isolation.owners import Owner
from mdmf_deploy.images.limits import Note
from mdmf_deploy.images.magic import video_format
from mdmf_deploy.images.provenance import Provenance, read_provenance
from mdmf_deploy.images.video import SampledVideo, VideoPlan

CHECK_INTERVAL = 1.0
"""Seconds a thread waits before it checks that the main thread is still alive."""

_ALL = slice(None)
_CLOSE_TIMEOUT = 1.0  # seconds that close() waits for an iterable that is itself waiting


class ImageScore(NamedTuple):
    """One image's score, its patches' contributions crop by crop, and its share of a batch's milliseconds."""

    score: float
    contributions: list[float]
    ms_engine: float | None
    ms_mmd: float


@dataclass(frozen=True, slots=True)
class Extraction:
    """The result for one source: its signatures or its error, and the facts a row needs.

    uri: the source's name. If it has none, a path as mdmf_deploy.images.inputs.uri writes it, or else "bytes:<n>",
        "file:<n>", "array:<n>" or "image:<n>" for source n, from 0.
    sha256: hash of the file's bytes, or of the shape and RGB pixels of an array or a Pillow image. "" if nothing could
        be read.
    signatures: (n, N, d) of its n crops, of a video's frame after frame. None if there is an error or a GPU keeps them.
    width, height, format, crop, evidence, notes: as in mdmf_deploy.detection.rows.Row. None if they are not known.
    provenance: what the file's metadata claim. None if it could not be read, or for pixels.
    frames: of a video. All of them have as many crops.
    ms_read: milliseconds to read and hash.
    ms_decode: milliseconds from bytes to pixels.
    ms_crop: milliseconds from pixels to model input.
    ms_engine: this image's even share of its batch's time. Each time is None if its stage was not reached.
    gpu_score: waits for the score of an image whose signatures stay on a GPU. None for all others.
    """

    uri: str
    sha256: str
    error: ImageError | None = None
    signatures: NDArray[np.float32] | None = None
    width: int | None = None
    height: int | None = None
    format: str | None = None
    crop: str | None = None
    evidence: float | None = None
    notes: tuple[Note, ...] = ()
    provenance: Provenance | None = None
    frames: VideoFrames | None = None
    ms_read: float | None = None
    ms_decode: float | None = None
    ms_crop: float | None = None
    ms_engine: float | None = None
    gpu_score: Callable[[], ImageScore] | None = None


@dataclass(frozen=True, slots=True)
class Prepared:
    """A source ready for the engine.

    extraction: its facts so far, without signatures.
    tensor: model input, (n, 3, S, S). None if the extraction holds an error, or where pixels are kept.
    pixels: the crops of a video, or of an image that another process scores, (n, S, S, 3). They take a quarter of
        their size as model input.
    """

    extraction: Extraction
    tensor: NDArray[np.float32] | None
    pixels: Pixels | None = None

    @property
    def crops(self) -> int:
        """The number of crops. None of them is left if the extraction holds an error."""
        kept = self.pixels if self.tensor is None else self.tensor
        return 0 if kept is None else len(kept)

    def model_input(self, preprocessing: Preprocessing, crops: slice = _ALL) -> NDArray[np.float32]:
        """Return some of the crops, (k, 3, S, S), normalised."""
        if self.tensor is not None:
            return self.tensor[crops]
        assert self.pixels is not None
        return normalise(self.pixels[crops], preprocessing)


def prepare(
    n: int,
    source: Source | Taken,
    preprocessing: Preprocessing,
    crops: int,
    limits: decode.ReadLimits,
    frames: int | None = None,
    room: VideoRoom | None = None,
    keep_pixels: bool = False,
) -> Prepared:
    """Read, decode, crop and normalise source number n on the calling thread.

    crops: the most of an image, or of one frame of a video.
    frames: the most of a video. None means that a video is refused, with an error.
    room: where the crops of a video wait, if the source is one of several.
    keep_pixels: leave an image's crops as pixels, too. `Prepared.model_input` normalises them.
    An unreadable source gives an extraction with an error.
    Raises UsageError for a source of another type.
    """
    clock = _Clock()
    taken = source if isinstance(source, Taken) else take(n, source, limits)
    name, sha256 = taken.uri(n), ""
    ms_read: float | None = None
    claims: Provenance | None = None
    plan = {"size": preprocessing.crop, "count": crops}
    place = partial(boxes, **plan)
    try:
        start, data = taken.data_unless_video(limits)
        format = None if data is not None else video_format(start)
        if format is not None:
            sha256 = hash_video(taken, limits)
            claims = video_provenance(taken, limits)
            ms_read = clock.lap()
            check_video(start, frames)
            wanted = VideoPlan(frames or 1, preprocessing.crop, crops)
            if room is not None:
                room.hold(n, wanted.most_bytes)
            clock.lap()
            sampled = sample_video(taken, format, wanted, limits)
            return _prepared_video(Extraction(name, sha256, provenance=claims, ms_read=ms_read), sampled, clock)
        if data is None:
            pixels = taken.pixels(name)
            sha256 = hashlib.sha256(repr(pixels.shape).encode() + pixels.tobytes()).hexdigest()
            ms_read = clock.lap()
            image = _cut(pixels, place(*pixels.shape[:2]), taken.kind)
        else:
            sha256 = hashlib.sha256(data).hexdigest()
            claims = read_provenance(data)
            ms_read = clock.lap()
            image = decode.decode_boxes(data, place, limits)
    except ImageError as error:
        if ms_read is None:
            return Prepared(Extraction(name, sha256, error, ms_read=clock.lap()), None)
        failed = Extraction(name, sha256, error, provenance=claims, ms_read=ms_read, ms_decode=clock.lap())
        return Prepared(failed, None)
    ms_decode = clock.lap()
    crop = squares(image.boxes, preprocessing.crop, grid(image.height, image.width, **plan))
    tensor = None if keep_pixels else normalise(crop.pixels, preprocessing)
    extraction = Extraction(
        name,
        sha256,
        width=image.width,
        height=image.height,
        format=image.format,
        crop=crop.kind,
        evidence=evidence(crop.pixels),
        notes=image.notes,
        provenance=claims,
        ms_read=ms_read,
        ms_decode=ms_decode,
        ms_crop=clock.lap(),
    )
    return Prepared(extraction, tensor, crop.pixels if keep_pixels else None)


def _prepared_video(extraction: Extraction, sampled: SampledVideo, clock: _Clock) -> Prepared:
    ms_decode = clock.lap()
    frames = VideoFrames.of(sampled)
    extraction = replace(
        extraction,
        width=sampled.width,
        height=sampled.height,
        format=sampled.format,
        crop=sampled.crop,
        evidence=frames.mean_evidence,
        notes=sampled.notes,
        frames=frames,
        ms_decode=ms_decode,
        ms_crop=clock.lap(),
    )
    return Prepared(extraction, None, sampled.crops.reshape(-1, *sampled.crops.shape[2:]))


class Feed:
    """Yield one Prepared per source, in order.

    One thread iterates the sources, so that a late source does not delay the ones before it. `workers` more threads
    call `prepare` on them. ahead: how many sources are taken before they are asked for, at most.
    room: gets to know which source is next, and is closed with the feed.
    """

    def __init__(
        self,
        sources: Iterable[Source | Taken],
        prepare: Callable[[int, Source | Taken], Prepared],
        workers: int,
        ahead: int,
        room: VideoRoom | None = None,
    ) -> None:
        self._prepare = prepare
        self._video_room = room or VideoRoom()
        self._room = threading.Semaphore(ahead)
        self._queue: SimpleQueue[Future[Prepared] | None] = SimpleQueue()
        self._head: Future[Prepared] | None = None
        self._closed = False
        self._origin = Origin("stream")
        self._owner = Owner()
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="mdmf-decode", initializer=self._owner.adopt)
        # A daemon: an iterable that waits for its next source for ever must not keep the process alive.
        self._thread = threading.Thread(target=self._iterate, args=(sources,), name="mdmf-sources", daemon=True)

    def start(self) -> None:
        """Begin to take sources. Raises UsageError in a forked process."""
        self._origin.check()
        self._thread.start()

    def peek(self, timeout: float | None = None) -> Prepared | None:
        """Return the next prepared source without removing it, or None after the last.

        Raises TimeoutError if it is not ready in time, UsageError if the main thread has ended or in a forked process,
        or the error that the sources raised.
        """
        self._origin.check()
        deadline = math.inf if timeout is None else time.monotonic() + timeout
        if self._head is None:
            self._head = self._next(deadline)
        if self._head is None:
            self._queue.put(None)  # so that the next peek sees the end, too
            return None
        return self._head.result(None if timeout is None else max(0.0, deadline - time.monotonic()))

    def pop(self) -> None:
        """Remove the source that was last peeked at, and make room for another."""
        self._head = None
        self._video_room.passed()
        self._room.release()

    def close(self) -> None:
        """Stop taking sources and end the threads. A later peek returns None.

        Sources in work are finished, but those that a child process decodes are dropped at once, like waiting ones. If
        the iterable is itself waiting for its next source, its thread is left behind and ends once that source comes.
        Does nothing in a forked process, which has none of the threads.
        """
        if not self._origin.is_here:
            return
        self._closed = True
        self._video_room.close()
        self._room.release()
        self._queue.put(None)
        self._owner.end()
        self._pool.shutdown(wait=True, cancel_futures=True)
        if self._thread.is_alive():
            self._thread.join(_CLOSE_TIMEOUT)

    def _next(self, deadline: float) -> Future[Prepared] | None:
        while True:
            left = max(0.0, deadline - time.monotonic())
            try:
                return self._queue.get(timeout=min(left, CHECK_INTERVAL))
            except Empty:
                if left <= CHECK_INTERVAL:
                    raise TimeoutError from None
                check_main_thread()

    def _submit(self, n: int, source: Source | Taken) -> Future[Prepared]:
        try:
            return self._pool.submit(self._prepare, n, source)
        except RuntimeError:
            if not self._closed:
                # Pools refuse work once the interpreter is ending, just before the main thread counts as ended.
                threading.main_thread().join(CHECK_INTERVAL)
                check_main_thread()
            raise

    def _iterate(self, sources: Iterable[Source | Taken]) -> None:
        try:
            numbered = enumerate(sources)
            while True:
                self._room.acquire()
                if self._closed:
                    return
                pair = next(numbered, None)
                if pair is None or self._closed:
                    return
                self._queue.put(self._submit(*pair))
        except BaseException as error:
            failed: Future[Prepared] = Future()
            failed.set_exception(error)
            self._queue.put(failed)
        finally:
            self._queue.put(None)


def check_main_thread() -> None:
    """Raise UsageError if the main thread has ended.

    A program cannot exit before its threads do, so threads that wait without a limit call this.
    """
    if not threading.main_thread().is_alive():
        raise UsageError("the main thread has ended before this stream; let it wait for whoever reads the stream")


class _Clock:
    def __init__(self) -> None:
        self._last = time.perf_counter()

    def lap(self) -> float:
        """Return the milliseconds since the last lap."""
        last, self._last = self._last, time.perf_counter()
        return 1e3 * (self._last - last)


def _cut(pixels: NDArray[np.uint8], placed: list[tuple[int, int, int, int]], kind: str) -> decode.DecodedBoxes:
    parts = tuple(pixels[top:bottom, left:right] for left, top, right, bottom in placed)
    return decode.DecodedBoxes(parts, pixels.shape[1], pixels.shape[0], kind)
