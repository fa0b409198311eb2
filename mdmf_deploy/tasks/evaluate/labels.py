"""Labelled lists: a CSV or JSON file with the path and the label of each image, and perhaps its generator.

    path,label,generator
    photos/cat.jpg,real,
    flux/0001.png,generated,flux

A path is relative to the list's folder. A label is real, 0, nature or 0_real, or else generated, fake, ai, 1 or 1_fake.
A generated image without a generator belongs to one called "generated". A column called kind may say photographs, art
or screenshots. Other columns are ignored. JSON is an array of objects, and .jsonl one object a line.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from mdmf_deploy.errors import UsageError
from mdmf_deploy.files import failure
from mdmf_deploy.images.inputs import uri

LISTS = (".csv", ".json", ".jsonl")
"""Lower-case suffixes of labelled lists."""

_REAL = frozenset({"real", "0", "nature", "0_real"})
_GENERATED = frozenset({"generated", "fake", "ai", "1", "1_fake"})
_MOST_BYTES = 1 << 30


class Label(NamedTuple):
    """One line of a list.  generator: None for a real image.  kind: as written, None if missing."""

    path: Path
    generator: str | None
    kind: str | None


def read_labels(path: Path) -> list[Label]:
    """Read a labelled list. The images need not exist.

    Raises UsageError naming the line if a column or a label is missing or unknown, and if one class has no image.
    """
    labels = [_label(path, place, row) for place, row in _rows(path)]
    for real, what in ((True, "real"), (False, "generated")):
        if not any((label.generator is None) == real for label in labels):
            raise UsageError(f"{uri(path)}: no image is labelled {what}; a list needs real and generated images")
    return labels


def _rows(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the place in the list, such as "line 3", and the columns of each image."""
    text = _text(path)
    if path.suffix.lower() == ".csv":
        reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
        try:
            _check_columns(path, reader.fieldnames or [])
            for row in reader:
                yield f"line {reader.line_num}", row
        except csv.Error as error:
            raise UsageError(f"{uri(path)} line {reader.line_num} is no CSV ({error}); write it again") from error
        return
    for place, value in _objects(path, text):
        if not isinstance(value, dict):
            raise UsageError(f"{uri(path)} {place} is a {type(value).__name__}; expected an object with path and label")
        _check_columns(path, list(value), place)
        yield place, value


def _objects(path: Path, text: str) -> Iterator[tuple[str, Any]]:
    if path.suffix.lower() == ".jsonl":
        for n, line in enumerate(text.split("\n"), 1):
            if line.strip():
                yield f"line {n}", _parsed(path, line, f"line {n} ")
        return
    value = _parsed(path, text, "")
    if not isinstance(value, list):
        raise UsageError(f"{uri(path)} holds a {type(value).__name__}; expected an array of objects")
    for n, entry in enumerate(value, 1):
        yield f"entry {n}", entry


def _parsed(path: Path, text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{uri(path)} {place}is no JSON ({error}); write it again") from error


def _text(path: Path) -> str:
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise UsageError(f"{uri(path)} is longer than {_MOST_BYTES >> 20} MiB; split the list")
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UsageError(failure(f"the list {uri(path)}", error, "give a file that you can read")) from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{uri(path)} is not UTF-8; save the list as UTF-8") from error


def _check_columns(path: Path, names: list[str] | Any, place: str = "") -> None:
    if not {"path", "label"} <= set(names):
        found = ", ".join(map(repr, names)) or "none"
        where = f" {place}" if place else ""
        raise UsageError(f"{uri(path)}{where}: expected the columns path and label, found {found}; rename them")


def _label(path: Path, place: str, row: Mapping[str, Any]) -> Label:
    name, label = row["path"], row["label"]
    if not isinstance(name, str) or not name.strip() or "\0" in name:
        raise UsageError(f"{uri(path)} {place}: path is {name!r}; expected the path of an image")
    # True is none of the words. It could mean "is real" as well as "is generated".
    word = str(label).strip().lower()
    generator, kind = (row.get(column) for column in ("generator", "kind"))
    for column, value in (("generator", generator), ("kind", kind)):
        if value is not None and not isinstance(value, str):
            raise UsageError(f"{uri(path)} {place}: {column} is {value!r}; expected a text")
    if word in _REAL:
        generator = None
    elif word in _GENERATED:
        generator = (generator or "").strip() or "generated"
    else:
        raise UsageError(f"{uri(path)} {place}: label is {label!r}; expected real or generated (0 or 1)")
    return Label(path.parent / name, generator, (kind or "").strip() or None)
