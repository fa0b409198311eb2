"""Rows that two runs can share."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import msgspec

from mdmf_deploy.detection.rows import TIMINGS, Row


def timeless(rows: Iterable[Row]) -> list[Row]:
    """Return the rows without their times, which differ from run to run."""
    return [msgspec.structs.replace(row, **dict.fromkeys(TIMINGS)) for row in rows]


def timeless_lines(lines: str) -> list[dict[str, Any]]:
    """Return the rows of JSON lines, without their timings."""
    return [{**json.loads(line), **dict.fromkeys(TIMINGS)} for line in lines.splitlines()]
