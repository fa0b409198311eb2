"""Rows that two runs can share."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from mdmf_deploy.detection.rows import TIMINGS, Row


def timeless(rows: Iterable[Row]) -> list[Row]:
    """Return the rows without their times, which differ from run to run."""
    return [msgspec.structs.replace(row, **dict.fromkeys(TIMINGS)) for row in rows]
