"""The page itself: a Jinja2 template, a style and a script become one file that loads nothing.

A policy in the page forbids every request, and every script and style but the page's own, which it names by hash. The
rows are JSON, which no browser runs, and the script writes text alone. So nothing in a file's name or metadata acts.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from typing import Any, BinaryIO, NamedTuple

import msgspec
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from mdmf_deploy.text import printable_json

_SCRIPTS = ("table.js", "row.js", "start.js")
VERDICTS = ("generated", "uncertain", "real", "uncalibrated", "error")


class PageTable(NamedTuple):
    """A table of texts.  rows: each has as many as the header.  caption: above it, or ""."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""


class Page:
    """The page's parts, read at birth: an installation that changes during a long run must not cost its report."""

    def __init__(self) -> None:
        self._style, self._script = _part("style.css"), _script()
        self._template = _environment().from_string(_part("page.html"))

    def write(
        self, file: BinaryIO, context: Mapping[str, Any], data: Mapping[str, Any], pictures: Iterable[bytes | None]
    ) -> None:
        """Write the whole page.

        context: the variables of page.html.
        data: what the script reads before it shows anything.
        pictures: JSON for each row, or None. They come last, so that the table works before they are read.
        """
        parts = self._template.generate(
            **context,
            order=VERDICTS,
            style=Markup(self._style),
            script=Markup(self._script),
            policy=_policy(self._style, self._script),
            data=in_script(msgspec.json.encode(data)),
            drawn=((n, in_script(one)) for n, one in enumerate(pictures) if one is not None),
        )
        for part in parts:
            file.write(part.encode())


def in_script(document: bytes) -> Markup:
    r"""Return the same JSON document for a <script> element: <, > and & are escapes, so that nothing can end it.

    So are all characters that are invisible or turn text around, such as U+2028.
    """
    text = printable_json(document).decode()
    return Markup(text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e"))


def _environment() -> Environment:
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["thousands"] = "{:,}".format
    environment.filters["base64"] = lambda data: base64.b64encode(data).decode()
    return environment


def _script() -> str:
    """Return the parts of the script as one, in a block, so that their names are not the window's."""
    return "\n".join(('"use strict";', "{", *map(_part, _SCRIPTS), "}", ""))


def _policy(style: str, script: str) -> str:
    """Return the page's Content-Security-Policy (W3C, level 3)."""
    return (
        f"default-src 'none'; img-src data:; style-src {_hash(style)}; script-src {_hash(script)}; "
        "base-uri 'none'; form-action 'none'"
    )


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _part(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")
