"""Files made to cost much: each gets its code, and never takes more memory than the bound that we document."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from helpers.cost import Cost, costs
from helpers.costly import KINDS, NEEDS, animated_webp, group
from helpers.every_format import can_write

BOUND = 2**30 + 300 * 2**20
"""Bytes: what decoding may take by default, and what Python, the libraries and the file take."""


def assert_bounded(found: dict[str, Cost]) -> None:
    if sys.platform == "linux":
        assert {name: cost.peak for name, cost in found.items() if (cost.peak or BOUND) >= BOUND} == {}


@pytest.mark.parametrize("format", sorted({group(name) for name in KINDS}))
def test_a_costly_file_costs_its_code_within_the_bound_on_memory(format: str, tmp_path: Path) -> None:
    if format in NEEDS:
        pytest.importorskip(NEEDS[format])
    if format in ("avif", "jpeg2000") and not can_write(format.upper()):
        pytest.skip(f"this Pillow has no {format}")
    paths = []
    for name, kind in KINDS.items():
        if group(name) == format:
            paths.append(tmp_path / name)
            paths[-1].write_bytes(kind.make(0.04))
    found, messages = costs(paths)
    rows = {path.name: cost for path, cost in zip(paths, found, strict=False)}
    assert {name: cost.code for name, cost in rows.items() if cost.code not in KINDS[name].codes} == {}
    assert len(found) == len(paths)
    assert_bounded(rows)
    assert messages == ""


def test_threads_share_the_bound_on_memory(tmp_path: Path) -> None:
    paths = [tmp_path / f"{n}.webp" for n in range(4)]
    for path in paths:
        path.write_bytes(animated_webp(9_000, 5_000))
    found, _ = costs(paths, threads=4)
    rows = {path.name: cost for path, cost in zip(paths, found, strict=True)}
    assert {cost.code for cost in found} <= {"ok", "too_much_memory"}
    assert_bounded(rows)
