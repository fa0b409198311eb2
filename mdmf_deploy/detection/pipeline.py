"""Sources to signatures, in order: decoding, the engine and the caller work at the same time.

    mdmf-sources --> mdmf-decode (several) --> mdmf-engine --> the caller
    iterates         read, decode, crop        batches         reduction, rows

Memory does not grow with the number of sources. At most two batches of signatures wait for the caller and one batch is
with the engine. The prepared sources that wait fill two batches if each has one crop, and never more than eight. There
is always room for one per decoding thread. A video waits as its crops' bytes, of which there is a bound of its own
(mdmf_deploy.detection.videos.ROOM), and they are normalised batch by batch.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from queue import SimpleQueue
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import NDArray

from mdmf_deploy.bundle.recipe import Preprocessing
from mdmf_deploy.detection.feed import CHECK_INTERVAL, Extraction, Feed, Prepared, check_main_thread, prepare
from mdmf_deploy.detection.sources import Source, Taken
from mdmf_deploy.detection.videos import VideoRoom
from mdmf_deploy.errors import UsageError
from mdmf_deploy.hardware.forks import Origin
from mdmf_deploy.hardware.host import cores
from mdmf_deploy.images.decode import ReadLimits
from mdmf_deploy.runtime import Engine

if TYPE_CHECKING:
    from mdmf_deploy.detection.on_gpu import Fused

T = TypeVar("T")
ExtractBatch = Callable[[list[Prepared]], list[Extraction]]
ModelInputs = Callable[[list[Prepared]], Iterator[NDArray[np.float32]]]


def extract(
    sources: Iterable[Source | Taken],
    engine: Engine,
    preprocessing: Preprocessing,
    *,
    batch_size: int = 8,
    crops: int | None = None,
    workers: int | None = None,
    limits: ReadLimits | None = None,
    max_wait: float = 0.2,
    frames: int | None = None,
) -> Generator[Extraction, None, None]:
    """Yield one Extraction per source, in order. An unreadable source costs only its own.

    batch_size: the most crops given to the engine at once.
    crops: the most crops taken of one image. None means the preprocessing's.
    workers: decoding threads. None means one per core, at most 8.
    max_wait: seconds after its first image at which a batch goes to the engine, full or not.
    frames: the most frames taken of a video. None means that videos are refused, each with an error.
    The sources are iterated in one thread and the engine is called in another. All threads end with the iterator, also
    after an error or `close`. The exception is an iterable that never comes back (see Feed.close).
    Raises UsageError for a source of another type or a count below 1. Errors of the engine pass through.
    """
    batches = extract_batches(
        sources,
        engine,
        preprocessing,
        batch_size=batch_size,
        crops=crops,
        workers=workers,
        limits=limits,
        max_wait=max_wait,
        frames=frames,
    )
    return flat(batches)


def extract_batches(
    sources: Iterable[Source | Taken],
    engine: Engine,
    preprocessing: Preprocessing,
    *,
    batch_size: int = 8,
    crops: int | None = None,
    workers: int | None = None,
    limits: ReadLimits | None = None,
    max_wait: float = 0.2,
    frames: int | None = None,
    fused: Fused | None = None,
) -> Generator[list[Extraction], None, None]:
    """Yield the extractions of `extract` batch by batch.

    fused: extracts and scores in place of the engine. The caller then asks each Extraction for its gpu_score.
    """
    crops = preprocessing.crops if crops is None else crops
    workers = min(8, cores()) if workers is None else workers
    for name, count in (("batch_size", batch_size), ("crops", crops), ("workers", workers)):
        if count < 1:
            raise UsageError(f"{name} must be at least 1, got {count}")
    room = VideoRoom()
    ready = partial(
        prepare, preprocessing=preprocessing, crops=crops, limits=limits or ReadLimits(), frames=frames, room=room
    )
    ahead = max(workers, min(2 * batch_size, 8 * batch_size // crops))
    inputs = partial(_model_inputs, preprocessing=preprocessing, batch_size=batch_size)
    extract_batch = partial(_extract, engine=engine, inputs=inputs)
    if fused is not None:
        extract_batch = partial(_extract_and_score, fused=fused, inputs=inputs)
    return _run(Feed(sources, ready, workers, ahead, room), extract_batch, batch_size, max_wait)


def extract_prepared(
    sources: Iterable[Prepared],
    engine: Engine,
    preprocessing: Preprocessing,
    *,
    batch_size: int = 8,
    fused: Fused | None = None,
) -> Generator[list[Extraction], None, None]:
    """Yield the extractions of sources that are ready, batch by batch, on the calling thread.

    A batch is as in `extract_batches`, and so are `batch_size` and `fused`. With `fused`, the next batch is handed to
    the GPU before the caller may wait for this one.
    """
    inputs = partial(_model_inputs, preprocessing=preprocessing, batch_size=batch_size)
    waiting: list[Extraction] | None = None
    for batch in _filled(sources, batch_size):
        if fused is None:
            yield _extract(batch, engine, inputs)
            continue
        begun = _extract_and_score(batch, fused, inputs)
        if waiting is not None:
            yield waiting
        waiting = begun
    if waiting is not None:
        yield waiting


def _filled(sources: Iterable[Prepared], batch_size: int) -> Iterator[list[Prepared]]:
    """Yield batches of at most batch_size sources, with at most as many crops unless a source is alone."""
    batch: list[Prepared] = []
    free = batch_size
    for prepared in sources:
        if batch and (len(batch) == batch_size or prepared.crops > free):
            yield batch
            batch, free = [], batch_size
        batch.append(prepared)
        free -= prepared.crops
    if batch:
        yield batch


def flat(groups: Generator[Sequence[T], None, None]) -> Generator[T, None, None]:
    """Yield the items of each group."""
    with closing(groups):
        for group in groups:
            yield from group


def _run(
    feed: Feed, extract_batch: ExtractBatch, batch_size: int, max_wait: float
) -> Generator[list[Extraction], None, None]:
    thread = _EngineThread(feed, extract_batch, batch_size, max_wait)
    try:
        thread.start()  # inside the try, because an interrupt may come while threads start
        while (result := thread.next()) is not None:
            yield result
    finally:
        # No thread outlives this, also after an interrupt, an engine's error or a reader that stops early.
        thread.close()


class _EngineThread:
    """Form batches and run them while the caller is busy with the last one."""

    def __init__(self, feed: Feed, extract_batch: ExtractBatch, batch_size: int, max_wait: float) -> None:
        self._feed, self._extract_batch, self._batch_size, self._max_wait = feed, extract_batch, batch_size, max_wait
        self._results: SimpleQueue[list[Extraction] | BaseException | None] = SimpleQueue()
        self._room = threading.Semaphore(1)
        self._closed = False
        self._origin = Origin("stream")
        # Not a daemon: the interpreter must not exit while this thread is inside the runtime. It ends soon after the
        # main thread.
        self._thread = threading.Thread(target=self._run, name="mdmf-engine")

    def start(self) -> None:
        self._feed.start()
        self._thread.start()

    def next(self) -> list[Extraction] | None:
        """Return the next batch, or None after the last.

        Raises the errors of the engine and of the sources, and UsageError in a forked process.
        """
        self._origin.check()
        result = self._results.get()
        self._room.release()
        if isinstance(result, BaseException):
            raise result
        return result

    def close(self) -> None:
        if not self._origin.is_here:
            return
        self._closed = True
        self._room.release()
        self._feed.close()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        result: BaseException | None = None
        try:
            while (batch := self._batch()) and not self._closed:
                extracted = self._extract_batch(batch)
                del batch  # frees its tensors
                while not self._room.acquire(timeout=CHECK_INTERVAL):
                    check_main_thread()
                self._results.put(extracted)
        except BaseException as error:
            result = error
        self._results.put(result)

    def _batch(self) -> list[Prepared]:
        """Return the images that fit, or those ready max_wait after the first. Returns [] at the end."""
        batch: list[Prepared] = []
        free, deadline = self._batch_size, 0.0
        while len(batch) < self._batch_size:
            try:
                prepared = self._feed.peek(max(0.0, deadline - time.perf_counter()) if batch else None)
            except BaseException:  # the source is late, or its error waits until the images before it are done
                if not batch:
                    raise
                break
            if prepared is None or (batch and prepared.crops > free):
                break
            if not batch:
                deadline = time.perf_counter() + self._max_wait
            self._feed.pop()
            batch.append(prepared)
            free -= prepared.crops
        return batch


def _model_inputs(
    ready: list[Prepared], preprocessing: Preprocessing, batch_size: int
) -> Iterator[NDArray[np.float32]]:
    """Yield the crops of a batch, normalised, at most batch_size at a time. There is at least one source.

    Only a source that is alone in its batch may have more crops than batch_size.
    """
    if len(ready) > 1:
        yield np.concatenate([prepared.model_input(preprocessing) for prepared in ready])
        return
    for at in range(0, ready[0].crops, batch_size):
        yield ready[0].model_input(preprocessing, slice(at, at + batch_size))


def _extract(batch: list[Prepared], engine: Engine, inputs: ModelInputs) -> list[Extraction]:
    """Extract a batch. A source with more crops than a batch is given to the engine in parts."""
    ready = [prepared for prepared in batch if prepared.crops]
    if not ready:
        return [prepared.extraction for prepared in batch]
    seconds = 0.0
    parts = []
    for crops in inputs(ready):
        start = time.perf_counter()
        parts.append(engine(crops))
        seconds += time.perf_counter() - start
    ms_engine = 1e3 * seconds / len(ready)
    signatures = np.concatenate(parts)
    at = 0
    extracted = []
    for prepared in batch:
        if not prepared.crops:
            extracted.append(prepared.extraction)
            continue
        # A copy, because a view of one image would keep the whole batch in memory.
        own = signatures[at : at + prepared.crops].copy()
        at += prepared.crops
        extracted.append(replace(prepared.extraction, signatures=own, ms_engine=ms_engine))
    return extracted


def _extract_and_score(batch: list[Prepared], fused: Fused, inputs: ModelInputs) -> list[Extraction]:
    """Hand a batch to the GPU without waiting for it."""
    ready = [prepared for prepared in batch if prepared.crops]
    if not ready:
        return [prepared.extraction for prepared in batch]
    pending = fused(inputs(ready), [prepared.crops for prepared in ready])
    places = itertools.count()
    return [
        prepared.extraction
        if not prepared.crops
        else replace(prepared.extraction, gpu_score=partial(pending.score, next(places)))
        for prepared in batch
    ]
