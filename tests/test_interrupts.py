"""Interrupts: every signal that asks to stop is one exception, and none gets lost or comes at a bad time."""

from __future__ import annotations

import importlib
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest

from mdmf_deploy.interrupts import SIGNALS, at_stake, exit_code, held_back, raised

pytestmark = pytest.mark.skipif(os.name != "posix", reason="Windows has no such signals")


class Left(Exception):
    """The process would have ended here."""


def leave(interrupt: KeyboardInterrupt) -> NoReturn:
    raise Left(exit_code(interrupt))


def wait_after(act: Callable[[], object]) -> None:
    act()
    end = time.monotonic() + 10
    while time.monotonic() < end:
        time.sleep(0.01)


@pytest.mark.parametrize("number", SIGNALS)
def test_every_signal_is_an_interrupt_with_the_shells_exit_code(number: int) -> None:
    before = [signal.getsignal(one) for one in SIGNALS]
    with pytest.raises(KeyboardInterrupt) as caught, raised(leave):
        signal.raise_signal(number)
    assert exit_code(caught.value) == 128 + number
    assert [signal.getsignal(one) for one in SIGNALS] == before


@pytest.mark.parametrize("number", SIGNALS)
def test_an_ignored_signal_stays_ignored(number: int) -> None:
    before = signal.signal(number, signal.SIG_IGN)
    try:
        with raised(leave):
            signal.raise_signal(number)
    finally:
        signal.signal(number, before)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_block_that_holds_back_is_finished_first(number: int) -> None:
    finished = []

    def work() -> None:
        signal.raise_signal(number)
        signal.raise_signal(signal.SIGINT)
        finished.append(True)

    with pytest.raises(KeyboardInterrupt) as caught, raised(leave), held_back():
        work()
    assert finished
    assert exit_code(caught.value) == 128 + number


@pytest.fixture
def swallowing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Imports a module that is interrupted by SIGTERM, and takes that for a failure of its own."""
    (tmp_path / "swallowing.py").write_text(
        "import signal\ntry:\n    signal.raise_signal(signal.SIGTERM)\nexcept BaseException:\n    raise ImportError\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "swallowing", raising=False)
    return lambda: importlib.import_module("swallowing") and None


def test_an_interrupt_waits_for_the_end_of_an_import_if_a_file_is_half_written(
    swallowing: Callable[[], None],
) -> None:
    with pytest.raises(KeyboardInterrupt) as caught, raised(leave), at_stake():
        wait_after(swallowing)
    assert exit_code(caught.value) == 143


def test_an_interrupt_of_an_import_ends_the_process_if_nothing_is_at_stake(
    swallowing: Callable[[], None],
) -> None:
    left = []

    def note(interrupt: KeyboardInterrupt) -> NoReturn:
        left.append(exit_code(interrupt))
        raise Left

    with pytest.raises(ImportError), raised(note):
        swallowing()
    assert left == [143]


def test_an_interrupt_in_a_destructor_is_not_lost() -> None:
    class Interrupting:
        def __del__(self) -> None:
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(KeyboardInterrupt) as caught, raised(leave):
        wait_after(Interrupting)
    assert exit_code(caught.value) == 143
