"""A row cannot be changed, and its line in the table is aligned, with the path last and complete."""

from __future__ import annotations

import json

import pytest

from mdmf_deploy.detection.rows import COLUMNS, TABLE_HEADER, Row, json_line, table_line

LONG = "a/" * 60 + "name.jpg"
ROWS = [
    Row(uri=LONG, score=0.1234567, p_value=1e-5, threshold=0.1, verdict="generated", width=12000, height=9000),
    Row(uri="b.png", score=-0.01, verdict="uncalibrated", width=1, height=1),
    Row(uri="d.png", score=0.5, verdict="uncertain", reason="featureless", width=1, height=1),
    Row(uri="c.gif", status="error", error_code="empty", error="the input holds no bytes"),
]


def test_a_row_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        Row(uri="a.jpg").score = 1.0  # type: ignore[misc]


def test_a_rows_dictionary_holds_what_the_files_do() -> None:
    for row in ROWS:
        found = row.to_dict()
        assert tuple(found) == COLUMNS
        assert found == json.loads(json_line(row))


def test_the_text_of_a_row_is_short() -> None:
    row = Row(uri="a.jpg", verdict="real", score=0.25, p_value=0.5, contributions=(0.25,) * 196)
    assert repr(row) == "Row(uri='a.jpg', verdict='real', score=0.25, p_value=0.5)"
    assert repr(ROWS[3]) == "Row(uri='c.gif', verdict='error', error_code='empty')"


def test_table_columns_end_under_their_names() -> None:
    for row in ROWS:
        line = table_line(row)
        for name in ("score", "p ", "threshold", "size"):
            end = TABLE_HEADER.index(name) + len(name.strip())
            assert line[end - 1] != " "
            assert line[end] == " "
        assert line.startswith(row.verdict)
        assert line[TABLE_HEADER.index("image") :].startswith(row.uri)


def test_table_values() -> None:
    assert table_line(ROWS[0]).split() == ["generated", "0.123457", "1e-05", "0.100000", "12000x9000", LONG]
    assert table_line(ROWS[1]).split() == ["uncalibrated", "-0.010000", "-", "-", "1x1", "b.png"]
    assert table_line(ROWS[2]).endswith("1x1  d.png  (featureless)")
    assert table_line(ROWS[3]).endswith("c.gif  (empty: the input holds no bytes)")


def test_colour_changes_nothing_else_in_the_table() -> None:
    for row in ROWS:
        coloured = table_line(row, colour=True)
        assert coloured.startswith("\x1b[")
        start, end = coloured.index("m") + 1, coloured.index("\x1b[0m")
        assert coloured[start:end] + coloured[end + 4 :] == table_line(row)
