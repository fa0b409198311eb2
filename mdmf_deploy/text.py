"""Text from outside, made safe for what shows it: a terminal, JSON on a terminal, a spreadsheet.

File names, error messages of libraries and the manifests of bundles may hold any character. Some of them move a
terminal's cursor, turn text around, or start a formula.
"""

from __future__ import annotations

import os
import re
import unicodedata

# Controls, format characters (bidirectional overrides, zero-width characters, tags), half surrogate pairs, separators.
_UNPRINTABLE = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})

# Places where a spreadsheet may see the beginning of a cell: the text's own, and after a semicolon, which many locales
# take for the separator. The wide characters are those of East Asian keyboards.
_FORMULA = re.compile(r"(?:\A|(?<=;))(?=\s*[=+\-@＝＋－＠]|[\t\r\n'])")
_GUARD = re.compile(r"(?:\A|(?<=;))'")


def is_printable(character: str) -> bool:
    """Return whether a terminal shows a character, and it changes nothing else there."""
    return unicodedata.category(character) not in _UNPRINTABLE


def escaped(character: str) -> str:
    r"""Return a character's bytes in UTF-8, each as `\xNN`. A byte of a name that is no UTF-8 stays that byte."""
    try:
        data = os.fsencode(character)
    except UnicodeEncodeError:  # half of a surrogate pair
        data = character.encode("utf-8", "surrogatepass")
    return "".join(f"\\x{byte:02x}" for byte in data)


def printable(text: str, keep: str = "\n\t") -> str:
    r"""Return a text with every unprintable character as `\xNN`, except for those to keep.

    Unlike mdmf_deploy.images.inputs.uri, it leaves backslashes alone, so nothing gives the text back.
    """
    if text.isprintable():
        return text
    return "".join(one if one in keep or is_printable(one) else escaped(one) for one in text)


def one_line(text: str) -> str:
    """Return a text without unprintable characters, as one line."""
    return printable(" ".join(text.splitlines()), keep="")


def printable_json(document: bytes) -> bytes:
    r"""Return the same JSON document with unprintable characters as `\uNNNN`. JSON's own rule spares most of them."""
    if document.isascii() and b"\x7f" not in document:
        return document
    text = document.decode()
    return "".join(one if one == "\n" or is_printable(one) else _json_escape(one) for one in text).encode()


def cell(value: object) -> object:
    """Return a value for a CSV file. A text that a spreadsheet would take for a formula gets an apostrophe.

    It stands where a cell begins, or follows a semicolon, with =, +, -, @ or their wide forms, perhaps after spaces,
    or with a tab, a line break or an apostrophe. Other values, such as numbers, stay as they are.
    """
    return _FORMULA.sub("'", value) if isinstance(value, str) else value


def from_cell(text: str) -> str:
    """Return the text that `cell` was given, from the text of a cell."""
    return _GUARD.sub("", text)


def _json_escape(character: str) -> str:
    units = character.encode("utf-16-be")
    return "".join(f"\\u{int.from_bytes(units[at : at + 2]):04x}" for at in range(0, len(units), 2))
