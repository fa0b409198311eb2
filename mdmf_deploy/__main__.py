"""The program `mdmf`, also as `python -m mdmf_deploy`: standard streams and signals first, then the command line.

Imports nothing of its own before a signal can end the process cleanly.
"""

from __future__ import annotations

import io
import os
import sys

# Bytes of the least address space. With less, NumPy's OpenBLAS ends the process with exit code 1 when it is imported.
_LEAST = 256 << 20


def _leave(number: int, frame: object) -> None:
    """End the process at once. Before the command begins and after its end, there is nothing to tidy up."""
    try:
        os.write(2, b"mdmf: interrupted\n")
    finally:
        os._exit(128 + number)


try:
    import signal
except KeyboardInterrupt:
    _leave(2, None)


def main() -> None:
    """Run the command line and exit with its exit code."""
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _leave)
    _complete_streams()
    try:
        _check_memory()
        from mdmf_deploy.cli import main as run

        run()
    except KeyboardInterrupt:
        _leave(signal.SIGINT, None)
    except MemoryError:
        # Before the command line could be imported, or while it said so.
        _fail("out of memory; free some, or raise the limit of this process (ulimit -v, or its container's)")


def _check_memory() -> None:
    """End with one line where the limits are too low for any command."""
    try:
        import resource
    except ImportError:  # Windows
        return
    for name, option in (("RLIMIT_AS", "-v"), ("RLIMIT_DATA", "-d")):
        limit = resource.getrlimit(getattr(resource, name))[0]
        if 0 <= limit < _LEAST:
            _fail(f"{limit >> 20} MiB of memory are too few, expected {_LEAST >> 20}; raise ulimit {option}")


def _fail(text: str) -> None:
    os.write(2, f"mdmf: {text}\n".encode())
    os._exit(2)


def _complete_streams() -> None:
    """Open the standard streams that are closed. Name stdout in its errors, and let no error of stderr stop the work.

    Otherwise the next file that is opened would take a closed stream's number, and messages would be written into it.
    """
    # Opened for the wrong direction, stdin and stdout fail when they are used. Messages are just dropped.
    for number, mode in ((0, os.O_WRONLY), (1, os.O_RDONLY), (2, os.O_WRONLY)):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, mode), True)
    # A stream that was closed at the start of Python is None, whatever its type says.
    sys.stdin = sys.stdin or open(0, closefd=False)  # noqa: SIM115
    sys.stdout = sys.stdout or open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = sys.stderr or open(2, "w", closefd=False)  # noqa: SIM115
    if not sys.stdout.isatty():
        results = io.BufferedWriter(_Results(1, "w", closefd=False))
        sys.stdout = io.TextIOWrapper(results, sys.stdout.encoding, sys.stdout.errors)
    if not sys.stderr.isatty():
        messages = io.BufferedWriter(_Messages(2, "w", closefd=False))
        sys.stderr = io.TextIOWrapper(messages, sys.stderr.encoding, "backslashreplace", line_buffering=True)


class _Results(io.FileIO):
    """Standard output, named in its errors."""

    def write(self, data: object, /) -> int:
        try:
            return super().write(data)  # type: ignore[arg-type]
        except OSError as error:
            error.filename = "standard output"
            raise


class _Messages(io.FileIO):
    """Standard error, whose writes never fail: a message is lost if the disk is full or its reader is gone."""

    def write(self, data: object, /) -> int:
        try:
            return super().write(data)  # type: ignore[arg-type]
        except OSError:
            return memoryview(data).nbytes  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
