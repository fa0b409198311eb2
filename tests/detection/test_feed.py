"""Feed: in order, only so far ahead, and ended at once whatever the sources do."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from mdmf_deploy.detection import feed as feeding
from mdmf_deploy.detection.feed import Feed
from mdmf_deploy.detection.prepare import Extraction, Prepared, Source


def named(n: int, source: Source) -> Prepared:
    return Prepared(Extraction(f"{n}:{source!r}", ""), None)


def uris(feed: Feed) -> list[str]:
    found = []
    while (prepared := feed.peek()) is not None:
        found.append(prepared.extracted.uri)
        feed.pop()
    return found


def running() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("mdmf-")]


@pytest.mark.parametrize(("workers", "ahead"), [(1, 1), (3, 4), (4, 1)])
def test_order_is_kept_and_the_end_stays_the_end(workers: int, ahead: int) -> None:
    def unevenly(n: int, source: Source) -> Prepared:
        time.sleep(0.002 * (n % 3))
        return named(n, source)

    feed = Feed([f"{n}" for n in range(20)], unevenly, workers, ahead)
    feed.start()
    assert uris(feed) == [f"{n}:'{n}'" for n in range(20)]
    assert feed.peek() is None
    feed.close()
    assert not running()


def test_no_more_are_taken_than_ahead() -> None:
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


def test_a_source_that_is_late_is_a_timeout_and_then_comes() -> None:
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


def test_a_timeout_is_spent_once(monkeypatch: pytest.MonkeyPatch) -> None:
    now, asked, told = 0.0, threading.Event(), threading.Event()

    def clock() -> float:
        asked.set()
        return now

    def late() -> Iterator[Source]:
        nonlocal now
        assert asked.wait(20)
        now = 21.0
        yield "a"

    def slow(n: int, source: Source) -> Prepared:
        told.wait(2)
        return named(n, source)

    monkeypatch.setattr(feeding, "time", SimpleNamespace(monotonic=clock))
    feed = Feed(late(), slow, 1, 4)
    feed.start()
    with pytest.raises(TimeoutError):
        feed.peek(20)
    told.set()
    assert uris(feed) == ["0:'a'"]
    feed.close()


def test_closing_finishes_what_is_in_work_and_drops_what_waits() -> None:
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
