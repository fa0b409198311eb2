"""extract: one Extraction per source, in order, independent of its batch, in bounded memory, with no thread left."""

from __future__ import annotations

import hashlib
import io
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from fakes.quadrants import CROP, Quadrants
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from mdmf_deploy.bundle.recipe import Preprocessing
from mdmf_deploy.detection import pipeline
from mdmf_deploy.detection.pipeline import extract
from mdmf_deploy.detection.sources import Source
from mdmf_deploy.errors import ImageError, UsageError
from mdmf_deploy.images import crops as crops_module
from mdmf_deploy.images import decode as decode_module
from mdmf_deploy.images.crops import Box
from mdmf_deploy.images.decode import ReadLimits

Place = Callable[[int, int], Sequence[Box]]
PREPROCESSING = Preprocessing(crop=CROP)


def pixels(seed: int, width: int = 20, height: int = 24) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def png(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("mdmf-")]


def alone(source: Source, crops: int) -> np.ndarray | None:
    """The signatures of one source's crops without the pipeline, or None if it cannot be read."""
    try:
        array = source if isinstance(source, np.ndarray) else decode_module.decode(source).pixels
    except ImageError:
        return None
    squares = crops_module.crops(array, CROP, crops).pixels
    return Quadrants()(crops_module.normalise(squares, PREPROCESSING))


SOURCES: list[Source] = [
    pixels(0),
    png(pixels(1, 70, 20)),
    b"",
    png(pixels(2, 9, 9)),
    b"not an image",
    pixels(3, 90, 90),
    png(pixels(4))[:60],
]


@settings(deadline=None, max_examples=60)
@example(which=[5, 0, 5, 4, 3, 1, 2], batch_size=9, crops=3, workers=2)
@example(which=[0, 5, 0], batch_size=2, crops=12, workers=1)
@given(
    which=st.lists(st.integers(0, len(SOURCES) - 1), max_size=25),
    batch_size=st.integers(1, 9),
    crops=st.integers(1, 12),
    workers=st.integers(1, 4),
)
def test_every_source_gives_the_signatures_it_gives_alone(
    which: list[int], batch_size: int, crops: int, workers: int
) -> None:
    engine = Quadrants()
    sources = [SOURCES[n] for n in which]
    extracted = list(extract(sources, engine, PREPROCESSING, batch_size=batch_size, crops=crops, workers=workers))
    assert len(extracted) == len(sources)
    for n, (source, got) in enumerate(zip(sources, extracted, strict=True)):
        wanted = alone(source, crops)
        assert got.uri == f"{'bytes' if isinstance(source, bytes) else 'array'}:{n}"
        assert (got.signatures is None) == (got.error is not None) == (wanted is None)
        if wanted is not None:
            np.testing.assert_array_equal(got.signatures, wanted)
    assert max(engine.batches, default=0) <= batch_size
    assert sum(engine.batches) == sum(len(s.signatures) for s in extracted if s.signatures is not None)
    assert not threads()


def test_batches_are_full_if_enough_sources_are_ready() -> None:
    engine = Quadrants()
    list(extract([pixels(n) for n in range(20)], engine, PREPROCESSING, batch_size=8, max_wait=60))
    assert engine.batches == [8, 8, 4]
    engine = Quadrants()
    list(extract([pixels(n, 90, 90) for n in range(12)], engine, PREPROCESSING, batch_size=32, crops=5, max_wait=60))
    assert engine.batches == [30, 30]


def test_each_extraction_holds_the_facts_of_its_image(tmp_path: Path) -> None:
    path = tmp_path / "photo.png"
    path.write_bytes(png(pixels(5, 40, 30)))
    for source in (path, str(path)):
        [extracted] = extract([source], Quadrants(), PREPROCESSING)
        assert (extracted.uri, extracted.width, extracted.height) == (path.as_posix(), 40, 30)
        assert (extracted.format, extracted.crop, extracted.error) == ("png", "center", None)
        assert extracted.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
        for stage in (extracted.ms_read, extracted.ms_decode, extracted.ms_crop, extracted.ms_engine):
            assert stage is not None
            assert stage > 0
    [array] = extract([pixels(5, 40, 30)], Quadrants(), PREPROCESSING)
    assert (array.format, array.width, array.height) == ("array", 40, 30)
    assert array.signatures is not None
    np.testing.assert_array_equal(array.signatures, extracted.signatures)
    [small] = extract([pixels(5, 9, 30)], Quadrants(), PREPROCESSING)
    assert small.crop == "reflected"
    [large] = extract([pixels(5, 90, 90)], Quadrants(), PREPROCESSING, crops=4)
    assert large.crop == "grid 2x2"


def test_images_get_the_crops_of_the_preprocessing() -> None:
    [image] = extract([pixels(5, 90, 90)], Quadrants(), Preprocessing(crop=CROP, crops=6))
    assert (image.crop, len(image.signatures)) == ("grid 2x3", 6)


def test_the_time_of_a_batch_is_divided_evenly_among_its_images(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0

    def two_seconds() -> None:
        nonlocal now
        now += 2.0

    monkeypatch.setattr(pipeline, "time", SimpleNamespace(perf_counter=lambda: now))
    sources: list[Source] = [pixels(0, 90, 90), b"", pixels(1), pixels(2)]
    extracted = list(extract(sources, Quadrants(two_seconds), PREPROCESSING, crops=3))
    assert [s.ms_engine for s in extracted] == [pytest.approx(2000 / 3), None, *[pytest.approx(2000 / 3)] * 2]


def test_signatures_do_not_keep_their_batch_in_memory() -> None:
    for extracted in extract([pixels(0), pixels(1)], Quadrants(), PREPROCESSING):
        assert extracted.signatures is not None
        assert extracted.signatures.base is None


@pytest.mark.parametrize(("batch_size", "crops"), [(4, 1), (4, 4), (4, 16)])
def test_sources_are_taken_only_as_needed(batch_size: int, crops: int) -> None:
    taken = 0

    def endless() -> Iterator[Source]:
        nonlocal taken
        while True:
            taken += 1
            yield pixels(taken)

    extracted = extract(endless(), Quadrants(), PREPROCESSING, batch_size=batch_size, crops=crops, workers=2)
    for done in range(1, 30):
        next(extracted)
        # One batch each with the caller, waiting for it and with the engine, and the sources ahead of those.
        assert taken - done <= 3 * batch_size + max(2, min(2 * batch_size, 8 * batch_size // crops))
    extracted.close()
    assert not threads()


def test_order_is_kept_when_threads_finish_out_of_order(monkeypatch: pytest.MonkeyPatch) -> None:
    later = threading.Event()
    decode = decode_module.decode_boxes

    def uneven(data: bytes, place: Place, limits: ReadLimits) -> decode_module.DecodedBoxes:
        if data == first:
            assert later.wait(10)
        else:
            later.set()
        return decode(data, place, limits)

    first, second = png(pixels(0)), png(pixels(1))
    monkeypatch.setattr(decode_module, "decode_boxes", uneven)
    extracted = list(extract([first, second], Quadrants(), PREPROCESSING, workers=2))
    assert [s.sha256 for s in extracted] == [hashlib.sha256(data).hexdigest() for data in (first, second)]


def test_the_next_batch_is_made_while_the_engine_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    decoded = threading.Semaphore(0)
    decode = decode_module.decode_boxes

    def counted(data: bytes, place: Place, limits: ReadLimits) -> decode_module.DecodedBoxes:
        decoded.release()
        return decode(data, place, limits)

    def until_four_are_decoded() -> None:
        if not engine.batches:
            assert all(decoded.acquire(timeout=10) for _ in range(4))

    monkeypatch.setattr(decode_module, "decode_boxes", counted)
    engine = Quadrants(until_four_are_decoded)
    assert len(list(extract([png(pixels(n)) for n in range(4)], engine, PREPROCESSING, batch_size=2, workers=1))) == 4


@pytest.mark.parametrize("raised", [RuntimeError("out of memory"), KeyboardInterrupt()])
def test_an_error_of_the_engine_ends_the_stream_and_its_threads(
    raised: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared = 0
    prepare = pipeline.prepare

    def counted(*arguments: object, **options: object) -> object:
        nonlocal prepared
        prepared += 1
        return prepare(*arguments, **options)  # type: ignore[arg-type]

    def fail() -> None:
        raise raised

    monkeypatch.setattr(pipeline, "prepare", counted)
    extracted = extract([pixels(n) for n in range(500)], Quadrants(fail), PREPROCESSING, batch_size=8, workers=2)
    with pytest.raises(type(raised)):
        list(extracted)
    assert not threads()
    assert prepared <= 32


def test_sources_waiting_to_be_decoded_are_dropped_after_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    prepared = 0
    prepare = pipeline.prepare

    def slowly(n: int, *arguments: object, **options: object) -> object:
        nonlocal prepared
        prepared += 1
        if n >= 8:
            assert failing.wait(10)
            time.sleep(0.2)
        return prepare(n, *arguments, **options)  # type: ignore[arg-type]

    def fail() -> None:
        failing.set()
        raise RuntimeError

    failing = threading.Event()
    monkeypatch.setattr(pipeline, "prepare", slowly)
    with pytest.raises(RuntimeError):
        list(extract([pixels(n) for n in range(16)], Quadrants(fail), PREPROCESSING, batch_size=8, workers=1))
    assert 8 <= prepared <= 12


def test_wrong_arguments_are_usage_errors_at_once() -> None:
    for wrong in ({"batch_size": 0}, {"crops": 0}, {"workers": 0}):
        with pytest.raises(UsageError, match=f"{next(iter(wrong))} must be at least 1, got 0"):
            extract([], Quadrants(), PREPROCESSING, **wrong)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="source 1 is a int"):
        list(extract([pixels(0), 7], Quadrants(), PREPROCESSING))  # type: ignore[list-item]


def test_no_sources_give_no_extractions() -> None:
    assert list(extract([], Quadrants(), PREPROCESSING)) == []


class Slow:
    """Sources that come one per release of `next`. `ended` is set once they are no longer iterated."""

    def __init__(self, sources: list[Source]) -> None:
        self.next, self.ended = threading.Semaphore(0), threading.Event()
        self._sources = sources

    def __iter__(self) -> Iterator[Source]:
        try:
            for source in self._sources:
                assert self.next.acquire(timeout=20)
                yield source
        finally:
            self.ended.set()


def test_an_extraction_does_not_wait_for_a_late_source() -> None:
    sources = Slow([pixels(n) for n in range(4)])
    engine = Quadrants()
    extracted = extract(sources, engine, PREPROCESSING, batch_size=8, max_wait=0.01)
    for n in range(3):
        sources.next.release()
        assert next(extracted).uri == f"array:{n}"
    extracted.close()
    sources.next.release()  # the iterable comes back, the feed is closed, and so its thread ends
    assert sources.ended.wait(10)
    assert engine.batches == [1, 1, 1]
    while threads():
        time.sleep(0.01)


def test_a_slow_source_does_not_delay_those_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    decode, seen = decode_module.decode_boxes, threading.Event()

    def slow(data: bytes, place: Place, limits: ReadLimits) -> decode_module.DecodedBoxes:
        assert data != last or seen.wait(20)
        return decode(data, place, limits)

    monkeypatch.setattr(decode_module, "decode_boxes", slow)
    first, last = png(pixels(0)), png(pixels(1))
    extracted = extract([first, last], Quadrants(), PREPROCESSING, batch_size=8, max_wait=0.01, workers=2)
    assert next(extracted).uri == "bytes:0"
    seen.set()
    assert next(extracted).uri == "bytes:1"


def test_the_engine_runs_while_the_caller_is_busy() -> None:
    engine = Quadrants()
    extracted = extract([pixels(n) for n in range(12)], engine, PREPROCESSING, batch_size=2, max_wait=60)
    next(extracted)
    deadline = time.monotonic() + 10
    # One batch is with the caller, one waits for it, and one waits to be handed over.
    while len(engine.batches) < 3:
        assert time.monotonic() < deadline
    time.sleep(0.05)
    assert len(engine.batches) == 3
    extracted.close()
    assert not threads()


@pytest.mark.parametrize("at", [0, 1, 5])
@pytest.mark.parametrize("kind", [TimeoutError, SystemExit])
def test_an_error_of_the_sources_comes_after_the_sources_before_it(at: int, kind: type[BaseException]) -> None:
    def failing() -> Iterator[Source]:
        for n in range(at):
            yield pixels(n)
        raise kind("the share is gone")

    extracted = extract(failing(), Quadrants(), PREPROCESSING, batch_size=2)
    assert [next(extracted).uri for _ in range(at)] == [f"array:{n}" for n in range(at)]
    with pytest.raises(kind, match="the share is gone"):
        next(extracted)
    assert not threads()


@pytest.mark.skipif(os.name != "posix", reason="needs SIGINT")
def test_an_interrupt_ends_the_threads_once_the_engine_returns() -> None:
    called, going_on = threading.Event(), threading.Event()

    def long() -> None:
        called.set()
        assert going_on.wait(20)

    def interrupt() -> None:
        assert called.wait(20)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.1)  # the caller is interrupted while the engine still runs
        going_on.set()

    interrupter = threading.Thread(target=interrupt)
    interrupter.start()
    with pytest.raises(KeyboardInterrupt):
        list(extract([pixels(n) for n in range(50)], Quadrants(long), PREPROCESSING, batch_size=2))
    assert not threads()  # so it waited for the engine
    interrupter.join()
