"""Signals that stop a program: raised as one exception, and held back while a file takes its name."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any, NoReturn

# Windows has no SIGHUP. There, SIGTERM comes only from this process itself.
SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))

Handler = Callable[[int, FrameType | None], Any]

_IMPORT = "<frozen importlib._bootstrap>"
_SOON = 0.02  # seconds


class Interrupted(KeyboardInterrupt):
    """A signal other than Ctrl-C that asks the program to stop. Whatever handles Ctrl-C handles it, too."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


def exit_code(interrupt: KeyboardInterrupt) -> int:
    """Return what a shell reports for the signal: 130 for Ctrl-C, 143 for SIGTERM, 129 for SIGHUP."""
    return 128 + (interrupt.number if isinstance(interrupt, Interrupted) else signal.SIGINT)


# How many files or folders are half-written at present.
_at_stake = 0


@contextmanager
def at_stake() -> Iterator[None]:
    """Mark a block that would leave a temporary file or folder behind if the process ended in it."""
    global _at_stake
    _at_stake += 1
    try:
        yield
    finally:
        _at_stake -= 1


@contextmanager
def raised(leave: Callable[[KeyboardInterrupt], NoReturn]) -> Iterator[None]:
    """Raise every signal in SIGNALS in the main thread. A signal that the parent process ignores stays ignored.

    An import that is cut short may fail with another error, or swallow the exception. So a signal during an import
    waits for its end, or `leave` ends the process at once if nothing is at stake.
    In another thread than the main one, this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = _handlers()

    def handle(number: int, frame: FrameType | None) -> None:
        interrupt = KeyboardInterrupt() if number == signal.SIGINT else Interrupted(number)
        if not _importing(frame):
            raise interrupt
        if _at_stake:
            _send_again(number)
        else:
            leave(interrupt)

    hook = sys.unraisablehook
    sys.unraisablehook = _raise_what_was_swallowed(hook)
    try:
        for number in before:
            signal.signal(number, handle)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        sys.unraisablehook = hook


class _HeldBack:
    """See held_back. A class, because a signal between the lines of a generator would leave its handlers in place."""

    def __enter__(self) -> None:
        self._held: list[tuple[int, FrameType | None]] = []
        # Only the main thread is ever interrupted.
        main = threading.current_thread() is threading.main_thread()
        self._before = {n: handler for n, handler in _handlers().items() if callable(handler)} if main else {}
        for number in self._before:
            signal.signal(number, lambda *arguments: self._held.append(arguments))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self._held:
            number, frame = self._held[0]
            self._before[number](number, frame)


def held_back() -> _HeldBack:
    """Hold back the signals in SIGNALS until the block has ended. The first of them is then handled."""
    return _HeldBack()


def _handlers() -> dict[int, Any]:
    """Return the handlers of the signals that are not ignored and were set by Python or by nobody."""
    found = {number: signal.getsignal(number) for number in SIGNALS}
    return {number: handler for number, handler in found.items() if handler not in (signal.SIG_IGN, None)}


def _importing(frame: FrameType | None) -> bool:
    while frame is not None and frame.f_code.co_filename != _IMPORT:
        frame = frame.f_back
    return frame is not None


def _raise_what_was_swallowed(hook: Callable[[Any], Any]) -> Callable[[Any], None]:
    """Return a hook for exceptions in destructors, which Python would print and forget. It keeps interrupts alive."""

    def report(unraisable: Any) -> None:
        error = unraisable.exc_value
        if isinstance(error, KeyboardInterrupt):
            _send_again(exit_code(error) - 128)
        else:
            hook(unraisable)

    return report


def _send_again(number: int) -> None:
    """Send the signal to the main thread a little later."""

    def send() -> None:
        if hasattr(signal, "pthread_kill"):
            signal.pthread_kill(threading.main_thread().ident or 0, number)
        else:
            signal.raise_signal(number)

    timer = threading.Timer(_SOON, send)
    timer.daemon = True
    timer.start()
