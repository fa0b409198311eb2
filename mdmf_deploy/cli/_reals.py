"""What `mdmf bank build` and `mdmf calibrate` share: reading real images, and saying what became of them."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from mdmf_deploy.errors import UsageError

if TYPE_CHECKING:
    from mdmf_deploy.bundle.bundle import Bundle

_SHOWN = 10


@contextmanager
def progress(paths: Sequence[Path], what: str) -> Iterator[Iterator[Path]]:
    """The paths, with a bar on stderr that follows them where stderr is a terminal."""
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bar:
        yield iter(bar.track(paths, description=what))


def destination(bundle: Bundle, output: Path | None) -> Path:
    """Where to write: -o, or the bundle in place.

    Raises UsageError for a bundle shipped in the package, which is not to be changed.
    """
    from mdmf_deploy.bundle.bundle import shipped_name

    target = output or bundle.path
    name = shipped_name(target)
    if name is not None:
        raise UsageError(f"{name!r} is part of the installed package; give -o to write a bundle of your own")
    return target


def tell(lines: Sequence[str], what: str) -> None:
    """The lines on stderr, the first few of them."""
    for line in lines[:_SHOWN]:
        print(f"mdmf: {what}: {line}", file=sys.stderr)
    if len(lines) > _SHOWN:
        print(f"mdmf: {what}: {len(lines) - _SHOWN} more; --json lists them all", file=sys.stderr)


def print_json(value: object) -> None:
    """One JSON document on stdout."""
    import json

    import msgspec

    print(json.dumps(msgspec.to_builtins(value), indent=2))


def print_facts(facts: dict[str, object]) -> None:
    """Name and value in two columns on stdout."""
    width = max(map(len, facts))
    for name, value in facts.items():
        print(f"{name:<{width}}  {value}")
