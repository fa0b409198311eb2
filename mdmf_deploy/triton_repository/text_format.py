"""Protobuf's text format, as far as config.pbtxt needs it: Triton's own schema is in no package without gRPC."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Message = Mapping[str, Any]
"""Field -> a string, number, bool, Symbol or Message, or a list of one of these for a repeated field."""


@dataclass(frozen=True, slots=True)
class Symbol:
    """The name of an enumeration's value, which is written without quotes."""

    name: str


def text(message: Message) -> str:
    """The message, a field a line, nested ones indented."""
    return "".join(f"{line}\n" for line in _lines(message, ""))


def entries(values: Mapping[str, Any]) -> list[Message]:
    """A map field: one message of key and value each."""
    return [{"key": key, "value": value} for key, value in values.items()]


def _lines(message: Message, indent: str) -> Iterator[str]:
    for name, value in message.items():
        values = value if isinstance(value, list) else [value]
        if values and not isinstance(values[0], Mapping):
            yield f"{indent}{name}: {_list(value) if isinstance(value, list) else _scalar(value)}"
            continue
        for one in values:
            yield f"{indent}{name} {{"
            yield from _lines(one, f"{indent}  ")
            yield f"{indent}}}"


def _list(values: Sequence[Any]) -> str:
    return f"[{', '.join(map(_scalar, values))}]"


def _scalar(value: Any) -> str:
    # JSON's strings, numbers and truth values are the text format's, too, but for characters written as two escapes.
    return value.name if isinstance(value, Symbol) else json.dumps(value, ensure_ascii=False)
