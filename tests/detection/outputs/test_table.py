"""The table: one line a row, columns aligned under their names, the path last and whole."""

from __future__ import annotations

from mdmf_deploy.detection.outputs.table import HEADER, text
from mdmf_deploy.detection.rows import Row

LONG = "a/" * 60 + "name.jpg"
ROWS = [
    Row(uri=LONG, score=0.1234567, p_value=1e-5, threshold=0.1, verdict="generated", width=12000, height=9000),
    Row(uri="b.png", score=-0.01, verdict="uncalibrated", width=1, height=1),
    Row(uri="c.gif", status="error", error_code="empty", error="the input holds no bytes"),
]


def test_columns_end_under_their_names() -> None:
    for row in ROWS:
        line = text(row)
        for name in ("score", "p ", "threshold", "size"):
            end = HEADER.index(name) + len(name.strip())
            assert line[end - 1] != " "
            assert line[end] == " "
        assert line.startswith(row.verdict)
        assert line[HEADER.index("image") :].startswith(row.uri)


def test_values() -> None:
    assert text(ROWS[0]).split() == ["generated", "0.123457", "1e-05", "0.100000", "12000x9000", LONG]
    assert text(ROWS[1]).split() == ["uncalibrated", "-0.010000", "-", "-", "1x1", "b.png"]
    assert text(ROWS[2]).endswith("c.gif  (empty: the input holds no bytes)")


def test_colour_changes_nothing_but_the_colour() -> None:
    for row in ROWS:
        coloured = text(row, colour=True)
        assert coloured.startswith("\x1b[")
        start, end = coloured.index("m") + 1, coloured.index("\x1b[0m")
        assert coloured[start:end] + coloured[end + 4 :] == text(row)
