"""Sources -> signatures: decoding, the engine, and whoever takes the results work at the same time, in order.

    mdmf-sources --> mdmf-decode (several) --> mdmf-engine --> the caller
    iterates         read, decode, crop        batches         reduction, rows

Memory does not grow with the number of sources: of prepared ones as many wait as fill two batches if each has all its
crops, or one a decoding thread if that is more, and one batch is with the engine; of batches of signatures two wait.
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
from mdmf_deploy.detection.feed import GLANCE, Feed, check_main_thread
from mdmf_deploy.detection.prepare import Extraction, Prepared, Source, prepare
from mdmf_deploy.errors import UsageError
from mdmf_deploy.hardware.host import cores
from mdmf_deploy.images.decode import ReadLimits
from mdmf_deploy.runtime import Engine

if TYPE_CHECKING:
    from mdmf_deploy.detection.on_gpu import Fused

__all__ = ["Extraction", "Source", "extract", "extract_batches"]

ExtractBatch = Callable[[list[Prepared]], list[Extraction]]


def extract(
    sources: Iterable[Source],
    engine: Engine,
    preprocessing: Preprocessing,
    *,
    batch_size: int = 8,
    crops: int = 1,
    workers: int | None = None,
    limits: ReadLimits | None = None,
    max_wait: float = 0.2,
) -> Generator[Extraction, None, None]:
    """One Signed for every source, in order; an unreadable one costs its own Signed only.

    batch_size: most crops that the engine is given at once.  crops: most that are taken of one image.
    workers: decoding threads, None for one a core (at most 8).
    max_wait: seconds after which a batch goes to the engine though it is not full, counted from its first image.
    Sources are iterated in another thread, the engine is called in a third; all of them have ended when the iterator
    has, also after an error or `close` (but for an iterable that never comes back: Feed.close).
    Raises UsageError for a source of another type, or a count below 1. An error of the engine's is raised as it is.
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
    sources: Iterable[Source],
    engine: Engine,
    preprocessing: Preprocessing,
    *,
    batch_size: int = 8,
    crops: int = 1,
    workers: int | None = None,
    limits: ReadLimits | None = None,
    max_wait: float = 0.2,
    fused: Fused | None = None,
) -> Generator[list[Extraction], None, None]:
    """As `sign`, batch by batch.

    fused: signs and scores batches of one crop an image in the engine's place; whoever takes a batch asks for scores.
    """
    workers = min(8, cores()) if workers is None else workers
    for name, count in (("batch_size", batch_size), ("crops", crops), ("workers", workers)):
        if count < 1:
            raise UsageError(f"{name} must be at least 1, got {count}")
    ready = partial(prepare, preprocessing=preprocessing, crops=crops, limits=limits or ReadLimits())
    ahead = max(workers, 2 * batch_size // crops)
    extract_batch = partial(_extracted, engine=engine, batch_size=batch_size)
    if fused is not None and crops == 1:
        extract_batch = partial(_scored, fused=fused)
    return _running(Feed(sources, ready, workers, ahead), extract_batch, batch_size, max_wait)


def _flat(batches: Generator[list[Extraction], None, None]) -> Generator[Extraction, None, None]:
    with closing(batches):
        for batch in batches:
            yield from batch


def _running(
    feed: Feed, extract_batch: ExtractBatch, batch_size: int, max_wait: float
) -> Generator[list[Extraction], None, None]:
    running = _EngineThread(feed, extract_batch, batch_size, max_wait)
    try:
        running.start()  # here, since an interrupt may come while threads start
        while (result := running.next()) is not None:
            yield result
    finally:
        # Also on an interrupt, an engine's error, or a reader that stops early: no thread outlives this.
        running.close()


class _EngineThread:
    """Forms batches and runs them while the caller is busy with the last."""

    def __init__(self, feed: Feed, extract_batch: ExtractBatch, batch_size: int, max_wait: float) -> None:
        self._feed, self._extract_batch, self._batch_size, self._max_wait = feed, extract_batch, batch_size, max_wait
        self._results: SimpleQueue[list[Extraction] | BaseException | None] = SimpleQueue()
        self._room = threading.Semaphore(1)
        self._closed = False
        # No daemon, which might be inside the runtime when the interpreter goes: it ends soon after the main thread.
        self._thread = threading.Thread(target=self._run, name="mdmf-engine")

    def start(self) -> None:
        self._feed.start()
        self._thread.start()

    def next(self) -> list[Extraction] | None:
        """The next batch; None after the last.  Raises what the engine or the sources did."""
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
                del batch  # its tensors
                while not self._room.acquire(timeout=GLANCE):
                    check_main_thread()
                self._results.put(extracted)
        except BaseException as error:
            result = error
        self._results.put(result)

    def _batch(self) -> list[Prepared]:
        """As many as fit, or are ready max_wait after the first; none at the end."""
        batch: list[Prepared] = []
        free, deadline = self._batch_size, 0.0
        while len(batch) < self._batch_size:
            try:
                prepared = self._feed.peek(max(0.0, deadline - time.perf_counter()) if batch else None)
            except BaseException:  # it is late, or is a source's error, which is told after what came before it
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


def _extracted(batch: list[Prepared], engine: Engine, batch_size: int) -> list[Extraction]:
    """Sign a batch; one image with more crops than batch_size is given to the engine in parts."""
    tensors = [prepared.tensor for prepared in batch if prepared.tensor is not None]
    if not tensors:
        return [prepared.extracted for prepared in batch]
    stacked = np.concatenate(tensors)
    start = time.perf_counter()
    parts = [engine(stacked[at : at + batch_size]) for at in range(0, len(stacked), batch_size)]
    ms_engine = 1e3 * (time.perf_counter() - start) / len(tensors)
    signatures = np.concatenate(parts)
    at = 0
    extracted = []
    for prepared in batch:
        if prepared.tensor is None:
            extracted.append(prepared.extracted)
            continue
        own = signatures[at : at + prepared.crops]
        at += prepared.crops
        # A copy: a view would keep the whole batch alive with whoever keeps one image.
        pooled = own.reshape(-1, own.shape[-1]).copy()
        extracted.append(replace(prepared.extracted, signatures=pooled, ms_engine=ms_engine))
    return extracted


def _scored(batch: list[Prepared], fused: Fused) -> list[Extraction]:
    """Hand a batch of one crop an image to the GPU, without waiting for it."""
    tensors = [prepared.tensor for prepared in batch if prepared.tensor is not None]
    if not tensors:
        return [prepared.extracted for prepared in batch]
    scores = fused(np.concatenate(tensors))
    places = itertools.count()
    return [
        prepared.extracted
        if prepared.tensor is None
        else replace(prepared.extracted, scored=partial(scores.image, next(places)))
        for prepared in batch
    ]
