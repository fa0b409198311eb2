"""Text laid out for people: sentences and labelled lines within 80 columns."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence

WIDTH = 80


def wrapped(text: str, start: str = "", indent: int | None = None) -> list[str]:
    """Return the lines of a text after `start`. Long words, such as paths, and commands in backquotes stay whole.

    indent: spaces before the second line and those after it; by default as wide as `start`.
    """
    below = " " * (len(start) if indent is None else indent)
    whole = re.sub(r"`[^`]*`", lambda command: command[0].replace(" ", "\0"), text)
    lines = textwrap.wrap(
        whole, WIDTH, initial_indent=start, subsequent_indent=below, break_long_words=False, break_on_hyphens=False
    )
    lines = [line.replace("\0", " ") for line in lines]
    return lines or [start.rstrip()]


def joined(names: Sequence[str]) -> str:
    """Return "a", "a and b" or "a, b and c"."""
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))
