"""docs/provenance.md lists what is read and what it claims."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

from mdmf_deploy.images.provenance import Claim
from mdmf_deploy.images.provenance.source_types import SOURCE_TYPES
from mdmf_deploy.images.provenance.texts import KEYWORDS

PAGE = (Path(__file__).parents[3] / "docs" / "provenance.md").read_text(encoding="utf-8")


def rows(title: str) -> list[list[str]]:
    """Return the cells of the table below a heading."""
    section = PAGE[PAGE.index(f"## {title}\n") + 3 :].partition("\n## ")[0]
    found = re.findall(r"^\|(.*)\|$", section, re.MULTILINE)
    return [[cell.strip() for cell in row.split("|")] for row in found[2:]]


def names(cell: str) -> set[str]:
    return set(re.findall(r"`([\w-]+)`", cell))


def test_every_claim_is_explained() -> None:
    assert {name for row in rows("Claims") for name in names(row[0])} == set(get_args(Claim))


def test_every_source_type_stands_beside_its_claim() -> None:
    listed = {name: row[0].strip("`") for row in rows("Source types") for name in names(row[1])}
    assert listed == SOURCE_TYPES


def test_every_keyword_of_a_png_is_listed() -> None:
    png = [row[0].partition("EXIF")[0] for row in rows("Other places") if row[0].startswith("PNG")]
    assert {name for cell in png for name in names(cell)} == KEYWORDS
