"""Text for the user: results on stdout, messages and progress on stderr.

Everything that a command prints passes through here, because names, messages of libraries and manifests may hold
characters that a terminal obeys (mdmf_deploy.text).
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeVar

import typer

from mdmf_deploy.errors import UsageError
from mdmf_deploy.text import one_line, printable, printable_json

if TYPE_CHECKING:
    from rich.console import Console

    from mdmf_deploy.detection.rows import Row
    from mdmf_deploy.tasks.bank.build import Duplicate, Unreadable

T = TypeVar("T")
_SHOWN = 10
_PACKAGE = logging.getLogger("mdmf_deploy")
_LOG = logging.getLogger("mdmf_deploy.cli")


@dataclass(frozen=True, slots=True)
class Manners:
    """How a command talks.

    quiet: show warnings and errors only, and no bar.
    verbose: show details, too.
    colour: whether to colour. None means only on a terminal that can.
    """

    quiet: bool = False
    verbose: bool = False
    log_file: Path | None = None
    colour: bool | None = None


_manners = Manners()


def behave(manners: Manners = _manners) -> None:
    """Talk in this manner from now on: send the package's log messages to stderr, and to the log file.

    Raises UsageError if the log file cannot be written to, or if the manners contradict each other.
    """
    global _manners
    for handler in list(_PACKAGE.handlers):
        if isinstance(handler, _Stderr | _LogFile):
            _PACKAGE.removeHandler(handler)
            handler.close()
    _manners = manners
    shown = logging.WARNING if manners.quiet else logging.DEBUG if manners.verbose else logging.INFO
    _PACKAGE.addHandler(_Stderr(shown))
    _PACKAGE.setLevel(shown)
    if manners.quiet and manners.verbose:
        raise UsageError("--quiet and --verbose exclude each other; give one of them")
    if manners.log_file is not None:
        try:
            _PACKAGE.addHandler(_LogFile(manners.log_file, encoding="utf-8", errors="backslashreplace"))
        except OSError as error:
            raise UsageError(
                f"--log-file {manners.log_file}: {error.strerror}; choose a file you can write to"
            ) from error
        _PACKAGE.setLevel(logging.DEBUG)


def manners() -> Manners:
    """Return how commands talk at present."""
    return _manners


class _Stderr(logging.Handler):
    """Prints messages on whatever is stderr at the time, without tracebacks."""

    def emit(self, record: logging.LogRecord) -> None:
        print(f"mdmf: {one_line(record.getMessage())}", file=sys.stderr)


class _LogLine(logging.Formatter):
    """A message's time, level, logger and text, in one line, and a traceback below it if there is one."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 (the name is logging's)
        record.message = one_line(record.message)
        return super().formatMessage(record)

    def formatException(self, ei: Any) -> str:  # noqa: N802
        return printable(super().formatException(ei))


class _LogFile(logging.FileHandler):
    """Appends every message with its time. A disk that is full costs messages, not the work."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.setLevel(logging.DEBUG)
        self.setFormatter(_LogLine())

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 (the name is logging's)
        pass

    def flush(self) -> None:
        with suppress(OSError):
            super().flush()

    def close(self) -> None:
        with suppress(OSError):
            super().close()


def log(text: str, level: int | None = None) -> None:
    """Print one line on stderr. With --quiet, only warnings ("warning: ...") and errors are printed."""
    if level is None:
        level = logging.WARNING if text.startswith("warning: ") else logging.INFO
    _LOG.log(level, "%s", text)


def log_details(text: str, *values: object) -> None:
    """Print one line on stderr with --verbose. It always goes into the log file."""
    _LOG.debug(text, *values)


def log_traceback() -> None:
    """Print the traceback of the present exception on stderr, and keep it in the log file."""
    import traceback

    print(printable(traceback.format_exc()), end="", file=sys.stderr)
    for handler in _PACKAGE.handlers:
        if isinstance(handler, _LogFile):
            record = _LOG.makeRecord(_LOG.name, logging.ERROR, "", 0, "bug", (), sys.exc_info())
            handler.handle(record)


def log_written(what: str, path: Path, following: str = "") -> None:
    """Say on stderr, as a command's last line, what it wrote and where, and the command to run next."""
    log(f"wrote {what} to {path}" + (f"; next: {following}" if following else ""))


def log_list(label: str, lines: Sequence[str]) -> None:
    """Print the first lines of a list on stderr, each with the label in front. Lists labelled note may be silenced."""
    level = logging.INFO if label == "note" else logging.WARNING
    for line in lines[:_SHOWN]:
        log(f"{label}: {line}", level)
    if len(lines) > _SHOWN:
        log(f"{label}: {len(lines) - _SHOWN} more; --json lists them all", level)


def log_unreadable(errors: Iterable[Unreadable]) -> None:
    """Print on stderr which inputs could not be read."""
    log_list("unreadable", [f"{error.uri} ({error.code}): {error.text}" for error in errors])


def log_duplicates(duplicates: Iterable[Duplicate]) -> None:
    """Print on stderr which images were left out because another has the same bytes."""
    log_list("duplicate, left out", [f"{duplicate.uri} is {duplicate.kept}" for duplicate in duplicates])


def print_text(text: str) -> None:
    """Print a text on stdout, a line or several."""
    print(printable(text))


def print_lines(lines: Iterable[str]) -> None:
    """Print lines on stdout. A line stays one, whatever it holds."""
    for line in lines:
        print(one_line(line))


def print_row(row: Row) -> None:
    """Print a row as a line of the table on stdout, coloured if stdout is."""
    from mdmf_deploy.detection.rows import table_line

    print(table_line(row, coloured(sys.stdout)), flush=True)


def print_file(text: str) -> None:
    """Print the text of a file on stdout, unchanged unless stdout is a terminal."""
    typer.echo(printable(text) if sys.stdout.isatty() else text, nl=False)


def print_json(value: object) -> None:
    """Print one JSON document on stdout, in UTF-8 whatever the terminal's encoding."""
    import msgspec

    try:
        document = msgspec.json.format(msgspec.json.encode(value), indent=2)
    except UnicodeEncodeError:
        # A bundle's path need not be UTF-8. Only escapes can hold such a path.
        document = json.dumps(msgspec.to_builtins(value), indent=2).encode()
    typer.echo(printable_json(document))


def print_facts(facts: dict[str, object]) -> None:
    """Print names and values in two columns on stdout. The value None is a dash."""
    width = max(map(len, facts))
    for name, value in facts.items():
        print(one_line(f"{name:<{width}}  {'-' if value is None else value}"))


def coloured(stream: IO[str]) -> bool:
    """Return whether to colour what is printed there.

    --color and --no-color decide, then the variables NO_COLOR and FORCE_COLOR, then whether it is a terminal.
    """
    if _manners.colour is not None:
        return _manners.colour
    if os.environ.get("NO_COLOR"):
        return False
    return os.environ.get("FORCE_COLOR", "0") not in ("", "0") or _redrawable(stream)


def draws_bars() -> bool:
    """Return whether to draw bars on stderr: on a terminal that can move its cursor, unless --quiet."""
    return not _manners.quiet and _redrawable(sys.stderr)


@contextmanager
def progress(items: Iterable[T], description: str, total: int, shown: bool | None = None) -> Iterator[Iterator[T]]:
    """Yield an iterator over the items, with a bar on stderr that follows it and goes when the block ends.

    shown: whether to draw the bar. None means only where `draws_bars` allows it.
    """
    if not (draws_bars() if shown is None else shown):
        yield iter(items)
        return
    # Imported late: most runs show no bar.
    from rich.markup import escape
    from rich.progress import Progress

    with Progress(console=stderr_console(), transient=True) as bar:
        yield iter(bar.track(items, total, description=escape(one_line(description))))


def stderr_console() -> Console:
    """Return a console for bars on stderr."""
    from rich.console import Console

    return Console(stderr=True, no_color=not coloured(sys.stderr))


def _redrawable(stream: IO[str]) -> bool:
    return stream.isatty() and os.environ.get("TERM") != "dumb"
