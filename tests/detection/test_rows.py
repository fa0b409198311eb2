"""The row's columns, which every output and every reader of one depends on."""

from __future__ import annotations

import pytest

from mdmf_deploy.detection.rows import COLUMNS, TIMINGS, Row


def test_the_columns_are_those_of_the_design_in_order() -> None:
    assert (
        *("uri", "sha256", "status", "error_code", "error", "score", "p_value", "verdict", "threshold"),
        *("bundle_id", "runtime", "precision", "width", "height", "format", "crop", "ms_decode", "ms_engine", "ms_mmd"),
    ) == COLUMNS
    assert set(TIMINGS) < set(COLUMNS)


def test_a_row_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        Row(uri="a.jpg").score = 1.0  # type: ignore[misc]
