"""JSON documents that anyone may have written, read within bounds.

Whoever sends a bundle can compute all of its hashes again, so a hash says nothing about the values. Every reader here
bounds the size and the depth first. Then it checks the type and the range of each value.
"""

from __future__ import annotations

import json
import re
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta

from mdmf_deploy.text import one_line

PSEUDONYM = "hmac-"
"""The beginning of what stands for a photograph's hash in an anonymous bank or calibration."""

T = TypeVar("T")
_PATTERN = re.compile(r"matching regex '.*'(?= - |$)", re.DOTALL)

MOST_JSON = 16 << 20
"""Bytes of the longest JSON that is read: 150,000 calibration images, or the names of as many images of a bank."""

# A value of a type below is checked when it is read. Values that the package computes are in range by their formulas.
# No control characters, and none that turns text around or is invisible.
Line = Annotated[
    str, Meta(max_length=2000, pattern=r"\A[^\x00-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u206f]*\Z")
]
Name = Annotated[
    str, Meta(max_length=200, pattern=r"\A[^\x00-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u206f]*\Z")
]
Sha256 = Annotated[str, Meta(pattern=r"\A[0-9a-f]{64}\Z")]
Sha256OrNone = Annotated[str, Meta(pattern=r"\A([0-9a-f]{64})?\Z")]
# The hash of a photograph, or what stands for it in an anonymous bank or calibration.
ImageHash = Annotated[str, Meta(pattern=r"\A(hmac-)?[0-9a-f]{64}\Z")]
Count = Annotated[int, Meta(ge=1, le=10**12)]
Bytes = Annotated[int, Meta(ge=0, le=2**53)]
Rate = Annotated[float, Meta(ge=0.0, le=1.0)]
Bandwidth = Annotated[float, Meta(ge=1e-6, le=1e6)]


def read_json(data: bytes, kind: type[T], most: int = MOST_JSON) -> T:
    """Read one JSON document in UTF-8 as a value of this type.

    Raises ValueError, in one line, if it is longer than `most` bytes, nested too deeply, or not JSON, if an object has
    a key twice, or if a value has another type or is out of its range.
    """
    return converted(decoded(data, most), kind)


def converted(tree: Any, kind: type[T]) -> T:
    """Check the type and range of each value of a decoded document. Raises ValueError, in one line."""
    try:
        return msgspec.convert(tree, kind)
    except msgspec.ValidationError as error:
        # A regular expression says less than the documentation, and an unknown key may have any length.
        text = _PATTERN.sub("in the form that docs/bundle.md gives", str(error))
        raise ValueError(one_line(text if len(text) <= 300 else f"{text[:150]}...{text[-100:]}")) from error
    except (OverflowError, RecursionError) as error:  # an integer beyond all floats
        raise ValueError("a number is too large") from error


def decoded(data: bytes, most: int = MOST_JSON) -> Any:
    """Return a JSON document as Python values. Raises ValueError as read_json does, but for types and ranges."""
    if len(data) > most:
        raise ValueError(f"{len(data)} bytes of JSON; expected at most {most}")
    try:
        return json.loads(data.decode(), object_pairs_hook=_unique, parse_constant=_refuse)
    except RecursionError:
        raise ValueError("its values are nested too deeply") from None
    except ValueError as error:
        if "sys.set_int_max_str_digits" in str(error):
            raise ValueError("a number has too many digits") from None
        raise


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    # Two readers may take different ones of two equal keys, so that one checks what the other does not use.
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in found if keys.count(key) > 1)
        raise ValueError(f"key {twice[:40]!r} comes twice")
    return found


def _refuse(constant: str) -> float:
    raise ValueError(f"{constant} is no JSON number")
