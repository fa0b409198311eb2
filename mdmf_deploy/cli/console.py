"""Text for the user: results on stdout, messages and progress on stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import typer

if TYPE_CHECKING:
    from mdmf_deploy.tasks.bank.build import Duplicate, Unreadable

T = TypeVar("T")
_SHOWN = 10


def log(text: str) -> None:
    """Print one line on stderr."""
    print(f"mdmf: {text}", file=sys.stderr)


def log_written(what: str, path: Path, following: str = "") -> None:
    """Say on stderr, as a command's last line, what it wrote and where, and the command to run next."""
    log(f"wrote {what} to {path}" + (f"; next: {following}" if following else ""))


def log_list(label: str, lines: Sequence[str]) -> None:
    """Print the first lines of a list on stderr, each with the label in front."""
    for line in lines[:_SHOWN]:
        log(f"{label}: {line}")
    if len(lines) > _SHOWN:
        log(f"{label}: {len(lines) - _SHOWN} more; --json lists them all")


def log_unreadable(errors: Iterable[Unreadable]) -> None:
    """Print on stderr which inputs could not be read."""
    log_list("unreadable", [f"{error.uri} ({error.code}): {error.text}" for error in errors])


def log_duplicates(duplicates: Iterable[Duplicate]) -> None:
    """Print on stderr which images were left out because another has the same bytes."""
    log_list("duplicate, left out", [f"{duplicate.uri} is {duplicate.kept}" for duplicate in duplicates])


def print_json(value: object) -> None:
    """Print one JSON document on stdout, in UTF-8 whatever the terminal's encoding."""
    import msgspec

    try:
        typer.echo(msgspec.json.format(msgspec.json.encode(value), indent=2))
    except UnicodeEncodeError:
        # A bundle's path need not be UTF-8. Only escapes can hold such a path.
        typer.echo(json.dumps(msgspec.to_builtins(value), indent=2))


def print_facts(facts: dict[str, object]) -> None:
    """Print names and values in two columns on stdout. The value None is a dash."""
    width = max(map(len, facts))
    for name, value in facts.items():
        print(f"{name:<{width}}  {'-' if value is None else value}")


@contextmanager
def progress(items: Iterable[T], description: str, total: int, shown: bool | None = None) -> Iterator[Iterator[T]]:
    """Yield an iterator over the items, with a bar on stderr that follows it and goes when the block ends.

    shown: whether to draw the bar. None means only if stderr is a terminal.
    """
    if not (sys.stderr.isatty() if shown is None else shown):
        yield iter(items)
        return
    # Imported late: most runs show no bar.
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        yield iter(bar.track(items, total, description=description))
