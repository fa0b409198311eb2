"""Rows that are held back: all are written in order, judged together, and none is lost when a run ends early."""

from __future__ import annotations

import errno
import tempfile
from pathlib import Path

import msgspec
import pytest

from mdmf_deploy.detection.discoveries import judged_together
from mdmf_deploy.detection.outputs.held_rows import HeldRows
from mdmf_deploy.detection.rows import Row

P_VALUES = [0.01, 0.9, 0.2, 0.01, 0.02, 0.6]


def rows() -> list[Row]:
    return [
        Row(
            uri=f"{n}\u2028é.jpg",
            score=n / 7,
            p_value=p,
            threshold=0.5,
            size_group="all sizes",
            verdict="generated" if p <= 0.2 else "real",
            contributions=(n / 3,) * 3,
        )
        for n, p in enumerate(P_VALUES)
    ]


def kept(found: list[Row]) -> list[Row]:
    """Rows as they are written: without their contributions."""
    return [msgspec.structs.replace(row, contributions=None) for row in found]


def test_rows_are_written_in_order_once_all_are_there() -> None:
    written: list[Row] = []
    with HeldRows(written.append, 0.1) as held:
        for row in rows():
            held.write(row)
        assert written == []
        assert list(held.release()) == written
    assert written == kept(judged_together(rows(), 0.1))
    assert [row.verdict for row in written] == ["generated", "real", "uncertain", "generated", "generated", "real"]


def run(held: HeldRows, given: list[Row], released: int | None, error: type[BaseException] | None) -> None:
    """Hold rows back and release some of them, or all if it is None. Then end with an error."""
    with held:
        for row in given:
            held.write(row)
        coming = held.release() if released is None or released else iter(())
        for _ in coming if released is None else range(released):
            next(coming, None)
        if error is not None:
            raise error


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_rows_of_a_run_that_ends_early_are_those_of_their_own_p_values(error: type[BaseException]) -> None:
    written: list[Row] = []
    with pytest.raises(error):
        run(HeldRows(written.append, 0.1), rows()[:4], 0, error)
    assert written == kept(rows()[:4])


@pytest.mark.parametrize("count", range(1, len(P_VALUES) + 1))
def test_an_interrupt_while_rows_are_written_loses_none(count: int) -> None:
    written: list[Row] = []
    with pytest.raises(KeyboardInterrupt):
        run(HeldRows(written.append, 0.1), rows(), count, KeyboardInterrupt)
    assert written == kept(judged_together(rows(), 0.1))


def test_an_output_that_refused_a_row_gets_no_other() -> None:
    written: list[Row] = []

    def write(row: Row) -> None:
        written.append(row)
        if len(written) == 2:
            raise OSError(errno.ENOSPC, "full")

    with pytest.raises(OSError, match="full"):
        run(HeldRows(write, 0.1), rows(), None, None)
    assert len(written) == 2


def test_nothing_is_left_in_the_folder_of_temporary_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with HeldRows(lambda row: None, 0.1) as held:
        for row in rows():
            held.write(row)
        assert list(held.release())
    assert list(tmp_path.iterdir()) == []
