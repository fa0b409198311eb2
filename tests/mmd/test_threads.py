"""Work shared among threads is done once, stops at the first error, and leaves BLAS as it was."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from threadpoolctl import ThreadpoolController, threadpool_limits

from mdmf_deploy.mmd.threads import one_blas_thread, share_out


def blas_threads() -> set[int]:
    """Return the thread counts of NumPy's BLAS. SciPy's wheels bring another."""
    found = ThreadpoolController().select(user_api="blas").info()
    numpys = [library for library in found if "numpy" in library["filepath"]]
    return {library["num_threads"] for library in numpys or found}


@pytest.fixture(autouse=True)
def _three_blas_threads() -> Iterator[None]:
    with threadpool_limits(3, user_api="blas"):
        if blas_threads() != {3}:
            pytest.skip("no BLAS here whose threads can be counted")
        yield


def test_blas_has_one_thread_inside_and_its_own_number_after() -> None:
    with one_blas_thread():
        assert blas_threads() == {1}
        with one_blas_thread():
            assert blas_threads() == {1}
        assert blas_threads() == {1}
    assert blas_threads() == {3}


def test_blas_has_its_threads_back_after_an_error() -> None:
    with pytest.raises(KeyboardInterrupt), one_blas_thread():
        raise KeyboardInterrupt
    assert blas_threads() == {3}


def test_the_limit_holds_until_the_last_of_several_leaves() -> None:
    first_left, second_may_leave = threading.Event(), threading.Event()
    entered = threading.Barrier(3)

    def hold(until: threading.Event | None) -> None:
        with one_blas_thread():
            entered.wait(5)
            if until:
                until.wait(5)
        first_left.set()

    with ThreadPoolExecutor(2) as pool:
        futures = [pool.submit(hold, None), pool.submit(hold, second_may_leave)]
        entered.wait(5)
        assert first_left.wait(5)
        assert blas_threads() == {1}
        second_may_leave.set()
        for future in futures:
            future.result()
    assert blas_threads() == {3}


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("count", [0, 1, 4, 100])
def test_every_task_is_done_once(count: int, threads: int) -> None:
    done: list[int] = []
    share_out(count, threads, lambda tasks: done.extend(tasks))
    assert sorted(done) == list(range(count))


def test_several_threads_work_at_once() -> None:
    meeting = threading.Barrier(3)

    def worker(tasks: Iterator[int]) -> None:
        for _ in tasks:
            meeting.wait(5)

    share_out(3, 3, worker)


@pytest.mark.parametrize("fails_on_the_caller", [False, True])
def test_an_error_stops_all_threads_and_is_raised(fails_on_the_caller: bool) -> None:
    caller = threading.current_thread()
    failed = threading.Event()
    done: list[int] = []

    def worker(tasks: Iterator[int]) -> None:
        for task in tasks:
            if (threading.current_thread() is caller) == fails_on_the_caller:
                failed.set()
                raise ValueError("as planned")
            failed.wait(5)
            done.append(task)

    with pytest.raises(ValueError, match="as planned"):
        share_out(1_000_000, 2, worker)
    # How many were done meanwhile is chance, but the rest was dropped.
    assert len(done) < 900_000
