"""Feed: each source read, decoded and cropped as if alone, in order, a bounded number ahead, and ended at once."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from helpers.tiffs import slow_tiff
from PIL import Image

from mdmf_deploy.bundle.recipe import Preprocessing
from mdmf_deploy.detection import feed as feed_module
from mdmf_deploy.detection.feed import Extraction, Feed, Prepared, prepare
from mdmf_deploy.detection.sources import Source
from mdmf_deploy.errors import UsageError
from mdmf_deploy.images import crops, decode
from mdmf_deploy.images.isolation.owners import Ended

PLAN = Preprocessing(crop=28)


def prepared(source: Source, count: int = 1) -> Prepared:
    return prepare(3, source, PLAN, count, decode.ReadLimits())


def picture(width: int, height: int, format: str = "JPEG") -> bytes:
    values = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, format)
    return buffer.getvalue()


@pytest.mark.parametrize("count", [1, 4])
@pytest.mark.parametrize("size", [(120, 90), (28, 28), (20, 100), (9, 9)])
def test_files_bytes_and_pixels_give_the_crops_of_the_whole_image(
    size: tuple[int, int], count: int, tmp_path: Path
) -> None:
    data = picture(*size)
    (tmp_path / "a.jpg").write_bytes(data)
    whole = decode.decode(data).pixels
    wanted = crops.crops(whole, 28, count)
    for source in (tmp_path / "a.jpg", data, whole):
        found = prepared(source, count)
        assert found.tensor is not None
        np.testing.assert_array_equal(found.tensor, crops.normalise(wanted.pixels, PLAN))
        assert found.crops == len(wanted.pixels)
        assert (found.extraction.crop, found.extraction.width, found.extraction.height) == (wanted.kind, *size)


def test_each_stage_has_its_own_time(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    now = 0.0

    def takes(seconds: float, module: object, name: str) -> None:
        call = getattr(module, name)

        def timed(*arguments: object) -> object:
            nonlocal now
            now += seconds
            return call(*arguments)

        monkeypatch.setattr(module, name, timed)

    (tmp_path / "a.jpg").write_bytes(picture(40, 40))
    monkeypatch.setattr(feed_module, "time", SimpleNamespace(perf_counter=lambda: now))
    takes(1, decode, "read_unless_video")
    takes(2, decode, "decode_boxes")
    takes(4, feed_module, "squares")
    takes(8, feed_module, "normalise")
    extraction = prepared(tmp_path / "a.jpg").extraction
    assert (extraction.ms_read, extraction.ms_decode, extraction.ms_crop) == (1000, 2000, 12000)
    extraction = prepared(b"no image").extraction
    assert (extraction.ms_read, extraction.ms_decode, extraction.ms_crop) == (0, 2000, None)
    extraction = prepared(tmp_path / "nowhere.jpg").extraction
    assert (extraction.ms_read, extraction.ms_decode, extraction.ms_crop) == (1000, None, None)


def test_the_hash_of_an_array_tells_shapes_apart() -> None:
    flat = np.zeros((2, 8, 3), np.uint8)
    hashes = [prepared(array).extraction.sha256 for array in (flat, flat.reshape(4, 4, 3), flat + 1, flat.copy())]
    assert len(set(hashes)) == 3
    assert hashes[0] == hashes[3]


def test_unreadable_sources_give_an_error_code(tmp_path: Path) -> None:
    (tmp_path / "text.jpg").write_bytes(b"hello")
    sources: list[Source] = [
        tmp_path / "nowhere.jpg",
        tmp_path,
        tmp_path / "text.jpg",
        np.zeros((4, 4, 2), np.uint8),
        np.zeros((4, 4, 3), np.float32),  # type: ignore[list-item]
        np.zeros((0, 4, 3), np.uint8),
        picture(40, 40, "PNG"),
    ]
    limits = decode.ReadLimits(max_pixels=1000)
    found = [prepare(n, source, PLAN, 1, limits).extraction for n, source in enumerate(sources)]
    assert [one.error.code if one.error else None for one in found] == [
        "missing",
        "not_a_file",
        "unsupported_format",
        "unsupported_mode",
        "unsupported_mode",
        "empty",
        "too_many_pixels",
    ]
    assert [one.sha256 == "" for one in found[:3]] == [True, True, False]
    assert "array:4 is float32 of shape (4, 4, 3)" in str(found[4].error)
    assert all(one.signatures is None for one in found)


def test_a_source_of_another_type_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="source 3 is a int"):
        prepared(7)  # type: ignore[arg-type]


def named(n: int, source: Source) -> Prepared:
    return Prepared(Extraction(f"{n}:{source!r}", ""), None)


def uris(feed: Feed) -> list[str]:
    found = []
    while (prepared := feed.peek()) is not None:
        found.append(prepared.extraction.uri)
        feed.pop()
    return found


def running() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("mdmf-")]


@pytest.mark.parametrize(("workers", "ahead"), [(1, 1), (3, 4), (4, 1)])
def test_order_is_kept_and_the_end_can_be_read_again(workers: int, ahead: int) -> None:
    def unevenly(n: int, source: Source) -> Prepared:
        time.sleep(0.002 * (n % 3))
        return named(n, source)

    feed = Feed([f"{n}" for n in range(20)], unevenly, workers, ahead)
    feed.start()
    assert uris(feed) == [f"{n}:'{n}'" for n in range(20)]
    assert feed.peek() is None
    feed.close()
    assert not running()


def test_no_more_sources_are_taken_than_ahead() -> None:
    taken: list[int] = []

    def endless() -> Iterator[Source]:
        while True:
            taken.append(len(taken))
            yield "x"

    feed = Feed(endless(), named, 2, 3)
    feed.start()
    for popped in range(10):
        feed.peek()
        deadline = time.monotonic() + 10
        while len(taken) < popped + 3:
            assert time.monotonic() < deadline
        time.sleep(0.002)
        assert len(taken) == popped + 3
        feed.pop()
    feed.close()
    assert not running()


def test_a_late_source_is_a_timeout_and_comes_later() -> None:
    come = threading.Event()

    def late() -> Iterator[Source]:
        yield "a"
        assert come.wait(20)
        yield "b"

    feed = Feed(late(), named, 1, 4)
    feed.start()
    assert feed.peek() is not None
    feed.pop()
    with pytest.raises(TimeoutError):
        feed.peek(0.01)
    come.set()
    assert uris(feed) == ["1:'b'"]
    feed.close()


def test_a_timeout_covers_both_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    now, asked, timed_out = 0.0, threading.Event(), threading.Event()

    def clock() -> float:
        asked.set()
        return now

    def late() -> Iterator[Source]:
        nonlocal now
        assert asked.wait(20)
        now = 21.0
        yield "a"

    def slow(n: int, source: Source) -> Prepared:
        timed_out.wait(2)
        return named(n, source)

    monkeypatch.setattr(feed_module, "time", SimpleNamespace(monotonic=clock))
    feed = Feed(late(), slow, 1, 4)
    feed.start()
    with pytest.raises(TimeoutError):
        feed.peek(20)
    timed_out.set()
    assert uris(feed) == ["0:'a'"]
    feed.close()


def test_closing_finishes_sources_in_work_and_drops_waiting_ones() -> None:
    begun, go = threading.Event(), threading.Event()
    made: list[int] = []

    def slow(n: int, source: Source) -> Prepared:
        made.append(n)
        begun.set()
        assert go.wait(20)
        return named(n, source)

    feed = Feed(["a", "b", "c"], slow, 1, 3)
    feed.start()
    assert begun.wait(20)
    threading.Timer(0.05, go.set).start()
    feed.close()
    assert made == [0]
    assert not running()


def test_closing_ends_what_a_child_process_decodes() -> None:
    begun = threading.Event()
    raised: list[type[BaseException]] = []

    def slow(n: int, source: Source) -> Prepared:
        begun.set()
        try:
            decode.decode(slow_tiff(), decode.ReadLimits(max_seconds=60))
        except BaseException as error:
            raised.append(type(error))
        return named(n, source)

    feed = Feed(["a"], slow, 1, 1)
    feed.start()
    assert begun.wait(20)
    feed.close()
    assert raised == [Ended]
    assert not running()
