"""Files made to cost much: each gets its code, and never takes more memory than the bound that we document."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from helpers.cost import Cost, costs
from helpers.costly import KINDS, NEEDS, animated_webp, group
from helpers.every_format import can_write

OPTIONAL = {"avif", "jpeg2000", *NEEDS}
"""Formats that not every environment reads."""

BOUND = 2**30 + 300 * 2**20
"""Bytes: what decoding may take by default, and what Python, the libraries and the file take."""


def assert_bounded(found: dict[str, Cost]) -> None:
    if sys.platform == "linux":
        assert {name: cost.peak for name, cost in found.items() if (cost.peak or BOUND) >= BOUND} == {}


def test_costly_files_cost_their_codes_within_the_bound_on_memory(tmp_path: Path) -> None:
    assert_their_codes([name for name in KINDS if group(name) not in OPTIONAL], tmp_path)


def test_costly_files_that_take_an_extra_library_to_read(tmp_path: Path) -> None:
    readable = {format for format in OPTIONAL if find_spec(NEEDS.get(format, "PIL"))}
    readable -= {format for format in ("avif", "jpeg2000") if not can_write(format.upper())}
    if not readable:
        pytest.skip("this environment reads none of them")
    assert_their_codes([name for name in KINDS if group(name) in readable], tmp_path)


def assert_their_codes(names: list[str], folder: Path) -> None:
    """Decode these kinds one after the other in one process."""
    paths = [folder / name for name in names]
    for path in paths:
        path.write_bytes(KINDS[path.name].make(0.005))
    found, messages = costs(paths, seconds=180.0, cpu=120)
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
