"""The memory that decoding threads share: never above the limit, first come first served, and nothing gets stuck."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from mdmf_deploy.images.budget import SMALL, Budget
from mdmf_deploy.images.isolation.owners import Ended, Owner

MIB = 2**20


class Line:
    """Threads that ask a budget one after another, and hold until they are released."""

    def __init__(self, budget: Budget, most: int) -> None:
        self.budget, self.most = budget, most
        self.began: list[int] = []
        self.ends: list[threading.Event] = []
        self.threads: list[threading.Thread] = []
        self.changed = threading.Condition()

    def ask(self, needed: int) -> int:
        """Start a thread that asks, and return its number once it has begun or waits."""
        number, end, asking = len(self.threads), threading.Event(), threading.Event()

        def work() -> None:
            asking.set()
            with self.budget.held(needed, self.most):
                with self.changed:
                    self.began.append(number)
                    self.changed.notify_all()
                end.wait()

        thread = threading.Thread(target=work)
        self.threads.append(thread)
        self.ends.append(end)
        thread.start()
        asking.wait()
        return number

    def wait(self, number: int) -> None:
        """Wait until a thread has begun."""
        with self.changed:
            assert self.changed.wait_for(lambda: number in self.began, 60)

    def end(self, number: int) -> None:
        self.ends[number].set()
        self.threads[number].join()


@contextmanager
def line(most: int) -> Iterator[Line]:
    found = Line(Budget(), most)
    try:
        yield found
    finally:
        for end in found.ends:
            end.set()
        for thread in found.threads:
            thread.join()


def test_small_requests_never_wait() -> None:
    with line(100 * MIB) as threads:
        threads.wait(threads.ask(100 * MIB))
        threads.ask(100 * MIB)
        for _ in range(20):
            threads.wait(threads.ask(SMALL))


def test_a_request_over_the_limit_waits_for_all_of_it_and_no_longer() -> None:
    with line(100 * MIB) as threads:
        threads.wait(threads.ask(10_000 * MIB))
        later = threads.ask(10_000 * MIB)
        assert later not in threads.began
        threads.end(0)
        threads.wait(later)


def test_a_large_request_is_not_overtaken_for_ever() -> None:
    """Requests that would fit wait behind one that does not. Otherwise a stream of them would starve it."""
    with line(300 * MIB) as threads:
        first = threads.ask(200 * MIB)
        threads.wait(first)
        large = threads.ask(300 * MIB)
        deadline = time.monotonic() + 10
        while not waits(threads.budget, 80 * MIB, 300 * MIB):  # the thread may not stand in line yet
            assert time.monotonic() < deadline
        assert large not in threads.began
        threads.end(first)
        threads.wait(large)


def waits(budget: Budget, needed: int, most: int) -> bool:
    """Whether a budget makes a thread wait, which then gives up."""
    owner = Owner()
    timer = threading.Timer(0.2, owner.end)

    def ask() -> None:
        with budget.held(needed, most):
            pass

    with ThreadPoolExecutor(1, initializer=owner.adopt) as pool:
        timer.start()
        try:
            pool.submit(ask).result()
        except Ended:
            return True
        finally:
            timer.cancel()
            timer.join()
    return False


def test_an_error_gives_the_memory_back() -> None:
    budget = Budget()
    for _ in range(3):
        with pytest.raises(ZeroDivisionError), budget.held(100 * MIB, 100 * MIB):
            raise ZeroDivisionError
    assert not waits(budget, 100 * MIB, 100 * MIB)


def test_an_owner_that_ends_gives_up_its_turn() -> None:
    with line(100 * MIB) as threads:
        threads.wait(threads.ask(100 * MIB))
        assert waits(threads.budget, 100 * MIB, 100 * MIB)
        threads.end(0)
        assert not waits(threads.budget, 100 * MIB, 100 * MIB)


def test_all_together_never_hold_more_than_the_limit() -> None:
    most, held, peak, lock = 500 * MIB, 0, 0, threading.Lock()
    budget, draw = Budget(), random.Random(0)

    def work(needed: int) -> None:
        nonlocal held, peak
        with budget.held(needed, most):
            with lock:
                held += needed
                peak = max(peak, held)
                assert held <= most
            threading.Event().wait(0.001)
            with lock:
                held -= needed

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, (draw.randrange(SMALL + 1, most) for _ in range(200))))
    assert peak > most // 2
    assert not waits(budget, most, most)
