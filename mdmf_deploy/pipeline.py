"""Sources -> signatures: read, decode, crop and normalise in threads, batch by batch through the engine, in order.

Memory does not grow with the number of sources: one batch is with the engine while at most one more is made.
"""

from __future__ import annotations

import hashlib
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mdmf_deploy import images
from mdmf_deploy.cgroups import cores
from mdmf_deploy.errors import ImageError, UsageError
from mdmf_deploy.images import Limits
from mdmf_deploy.inputs import uri
from mdmf_deploy.recipe import Preprocessing
from mdmf_deploy.runtime import Engine

Source = str | Path | bytes | NDArray[np.uint8]
"""The path of an image file, the bytes of one, or its pixels, (H, W, 3) RGB."""


@dataclass(frozen=True, slots=True)
class Signed:
    """What became of one source.

    uri: of a path, as mdmf_deploy.inputs.uri writes it, else "bytes:<n>" or "array:<n>", the nth source from 0.
    sha256: of the file's bytes; of an array's pixels and shape; "" where nothing could be read.
    signatures: (N, d), of all crops, one after the other; None where error says why.
    width, height, format, crop, ms_decode, ms_engine: as in mdmf_deploy.rows.Row; None where it did not come to that.
    """

    uri: str
    sha256: str
    error: ImageError | None = None
    signatures: NDArray[np.float32] | None = None
    width: int | None = None
    height: int | None = None
    format: str | None = None
    crop: str | None = None
    ms_decode: float | None = None
    ms_engine: float | None = None


@dataclass(frozen=True, slots=True)
class _Prepared:
    """A source on its way to the engine.  tensor: (n, 3, S, S), None where signed holds an error."""

    signed: Signed
    tensor: NDArray[np.float32] | None


def sign(
    sources: Iterable[Source],
    engine: Engine,
    preprocessing: Preprocessing,
    *,
    batch_size: int = 32,
    crops: int = 1,
    workers: int | None = None,
    limits: Limits | None = None,
) -> Iterator[Signed]:
    """One Signed for every source, in order; an unreadable one costs its own Signed only.

    batch_size: most crops that the engine is given at once.  crops: most that are taken of one image.
    workers: decoding threads, None for one a core (at most 8).
    Raises UsageError for a source of another type, or a count below 1. An error of the engine's is raised as it is.
    """
    workers = min(8, cores()) if workers is None else workers
    for name, count in (("batch_size", batch_size), ("crops", crops), ("workers", workers)):
        if count < 1:
            raise UsageError(f"{name} must be at least 1, got {count}")
    return _sign(sources, engine, preprocessing, batch_size, crops, workers, limits or Limits())


def _sign(
    sources: Iterable[Source],
    engine: Engine,
    preprocessing: Preprocessing,
    batch_size: int,
    crops: int,
    workers: int,
    limits: Limits,
) -> Iterator[Signed]:
    pool = ThreadPoolExecutor(workers, thread_name_prefix="mdmf-decode")
    try:
        waiting = enumerate(sources)
        ahead: deque[Future[_Prepared]] = deque()
        most = max(workers, batch_size // crops)

        def refill() -> None:
            for n, source in islice(waiting, most - len(ahead)):
                ahead.append(pool.submit(_prepare, n, source, preprocessing, crops, limits))

        refill()
        while ahead:
            batch: list[_Prepared] = []
            free = batch_size
            while ahead and len(batch) < batch_size:
                size = _size(ahead[0].result())
                if batch and size > free:
                    break
                batch.append(ahead.popleft().result())
                free -= size
                refill()  # here, so that the next batch is made while the engine runs
            yield from _run(batch, engine, batch_size)
    finally:
        # Also on an interrupt, an engine's error, or a reader that stops early: no thread outlives this.
        pool.shutdown(wait=True, cancel_futures=True)


def _size(prepared: _Prepared) -> int:
    return 0 if prepared.tensor is None else len(prepared.tensor)


def _run(batch: list[_Prepared], engine: Engine, batch_size: int) -> Iterator[Signed]:
    """Sign a batch; one image with more crops than batch_size is given to the engine in parts."""
    tensors = [prepared.tensor for prepared in batch if prepared.tensor is not None]
    if not tensors:
        yield from (prepared.signed for prepared in batch)
        return
    stacked = np.concatenate(tensors)
    start = time.perf_counter()
    parts = [engine(stacked[at : at + batch_size]) for at in range(0, len(stacked), batch_size)]
    ms_engine = 1e3 * (time.perf_counter() - start) / len(tensors)
    signatures = np.concatenate(parts)
    at = 0
    for prepared in batch:
        if prepared.tensor is None:
            yield prepared.signed
            continue
        own = signatures[at : at + len(prepared.tensor)]
        at += len(prepared.tensor)
        # A copy: a view would keep the whole batch alive with whoever keeps one image.
        pooled = own.reshape(-1, own.shape[-1]).copy()
        yield replace(prepared.signed, signatures=pooled, ms_engine=ms_engine)


def _prepare(n: int, source: Source, preprocessing: Preprocessing, crops: int, limits: Limits) -> _Prepared:
    start = time.perf_counter()
    name, sha256 = _name(n, source), ""
    try:
        if isinstance(source, np.ndarray):
            _check_array(source, name)
            sha256 = hashlib.sha256(repr(source.shape).encode() + source.tobytes()).hexdigest()
            image = images.Decoded(source, source.shape[1], source.shape[0], "array")
        else:
            data = source if isinstance(source, bytes) else images.read(source, limits)
            sha256 = hashlib.sha256(data).hexdigest()
            image = images.decode(data, limits)
    except ImageError as error:
        return _Prepared(Signed(name, sha256, error, ms_decode=_since(start)), None)
    crop = images.crops(image.pixels, preprocessing.crop, crops)
    tensor = images.normalise(crop.pixels, preprocessing)
    signed = Signed(
        name,
        sha256,
        width=image.width,
        height=image.height,
        format=image.format,
        crop=crop.kind,
        ms_decode=_since(start),
    )
    return _Prepared(signed, tensor)


def _name(n: int, source: Source) -> str:
    if isinstance(source, str | Path):
        return uri(source)
    if isinstance(source, bytes):
        return f"bytes:{n}"
    if isinstance(source, np.ndarray):
        return f"array:{n}"
    raise UsageError(f"source {n} is a {type(source).__name__}; give a path, bytes, or an (H, W, 3) uint8 array")


def _check_array(pixels: NDArray[np.uint8], name: str) -> None:
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
        raise ImageError(
            "unsupported_mode", f"{name} is {pixels.dtype} of shape {pixels.shape}; expected (H, W, 3) uint8, RGB"
        )
    if pixels.size == 0:
        raise ImageError("empty", f"{name} has shape {pixels.shape}: it holds no pixels")


def _since(start: float) -> float:
    return 1e3 * (time.perf_counter() - start)
