"""Sources to signatures, in order: decoding, the engine and the caller work at the same time.

    mdmf-sources --> mdmf-decode (several) --> mdmf-engine --> the caller
    iterates         read, decode, crop        batches         reduction, rows

Memory does not grow with the number of sources. At most two batches of signatures wait for the caller and one batch is
with the engine. The prepared sources that wait fill two batches if each has one crop, and never more than eight. There
is always room for one per decoding thread.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Generator, Iterable
from contextlib import closing
from dataclasses import replace
from functools import partial
from queue import SimpleQueue
from typing import TYPE_CHECKING

import numpy as np

from mdmf_deploy.bundle.recipe import Preprocessing
from mdmf_deploy.detection.feed import CHECK_INTERVAL, Extraction, Feed, Prepared, check_main_thread, prepare
from mdmf_deploy.detection.sources import Source, Taken
from mdmf_deploy.errors import UsageError
from mdmf_deploy.hardware.host import cores
from mdmf_deploy.images.decode import ReadLimits
from mdmf_deploy.runtime import Engine

if TYPE_CHECKING:
    from mdmf_deploy.detection.on_gpu import Fused

ExtractBatch = Callable[[list[Prepared]], list[Extraction]]


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
) -> Generator[Extraction, None, None]:
    """Yield one Extraction per source, in order. An unreadable source costs only its own.

    batch_size: the most crops given to the engine at once.
    crops: the most crops taken of one image. None means the preprocessing's.
    workers: decoding threads. None means one per core, at most 8.
    max_wait: seconds after its first image at which a batch goes to the engine, full or not.
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
    )
    return _flat(batches)


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
    ready = partial(prepare, preprocessing=preprocessing, crops=crops, limits=limits or ReadLimits())
    ahead = max(workers, min(2 * batch_size, 8 * batch_size // crops))
    extract_batch = partial(_extract, engine=engine, batch_size=batch_size)
    if fused is not None:
        extract_batch = partial(_extract_and_score, fused=fused, batch_size=batch_size)
    return _run(Feed(sources, ready, workers, ahead), extract_batch, batch_size, max_wait)


def _flat(batches: Generator[list[Extraction], None, None]) -> Generator[Extraction, None, None]:
    with closing(batches):
        for batch in batches:
            yield from batch


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
        # Not a daemon: the interpreter must not exit while this thread is inside the runtime. It ends soon after the
        # main thread.
        self._thread = threading.Thread(target=self._run, name="mdmf-engine")

    def start(self) -> None:
        self._feed.start()
        self._thread.start()

    def next(self) -> list[Extraction] | None:
        """Return the next batch, or None after the last. Raises the errors of the engine and of the sources."""
        result = self._results.get()
        self._room.release()
        if isinstance(result, BaseException):
            raise result
        return result

    def close(self) -> None:
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


def _extract(batch: list[Prepared], engine: Engine, batch_size: int) -> list[Extraction]:
    """Extract a batch. An image with more crops than batch_size is given to the engine in parts."""
    tensors = [prepared.tensor for prepared in batch if prepared.tensor is not None]
    if not tensors:
        return [prepared.extraction for prepared in batch]
    stacked = np.concatenate(tensors)
    start = time.perf_counter()
    parts = [engine(stacked[at : at + batch_size]) for at in range(0, len(stacked), batch_size)]
    ms_engine = 1e3 * (time.perf_counter() - start) / len(tensors)
    signatures = np.concatenate(parts)
    at = 0
    extracted = []
    for prepared in batch:
        if prepared.tensor is None:
            extracted.append(prepared.extraction)
            continue
        # A copy, because a view of one image would keep the whole batch in memory.
        own = signatures[at : at + prepared.crops].copy()
        at += prepared.crops
        extracted.append(replace(prepared.extraction, signatures=own, ms_engine=ms_engine))
    return extracted


def _extract_and_score(batch: list[Prepared], fused: Fused, batch_size: int) -> list[Extraction]:
    """Hand a batch to the GPU without waiting for it."""
    tensors = [prepared.tensor for prepared in batch if prepared.tensor is not None]
    if not tensors:
        return [prepared.extraction for prepared in batch]
    pending = fused(tensors, batch_size)
    places = itertools.count()
    return [
        prepared.extraction
        if prepared.tensor is None
        else replace(prepared.extraction, gpu_score=partial(pending.score, next(places)))
        for prepared in batch
    ]
