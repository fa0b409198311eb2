"""A row in words: never more certain than its numbers."""

from __future__ import annotations

import re
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mdmf_deploy.bundle.calibration import Reason, Verdict
from mdmf_deploy.bundle.conformal import p_value
from mdmf_deploy.detection.rows import Row
from mdmf_deploy.images.limits import Note
from mdmf_deploy.images.provenance import Claim
from mdmf_deploy.tasks.report.words import BRIEF, CLAIMS, NOTES, REASONS, meaning, p_value_in_words, share


@given(st.floats(1e-7, 1.0))
def test_a_share_is_never_below_the_rate_and_at_most_a_tenth_above(rate: float) -> None:
    part, whole = (int(number.replace(",", "")) for number in share(rate).split(" in "))
    assert rate <= part / whole + 1e-9
    assert part / whole <= 1.1 * rate + 1e-9
    assert set(str(whole)) <= {"1", "0"}


@pytest.mark.parametrize(
    ("rate", "words"),
    [(0.003, "3 in 1,000"), (0.05, "5 in 100"), (0.07, "7 in 100"), (3 / 136, "23 in 1,000"), (1.0, "100 in 100")],
)
def test_shares_read_well(rate: float, words: str) -> None:
    assert share(rate) == words


def test_three_in_a_thousand() -> None:
    words = p_value_in_words(3 / 1000, 999, "0.5 to 2 MP")
    assert words.headline == "At most 3 in 1,000 photographs of this size score this high."
    assert words.detail.startswith(
        "2 of the 999 calibration photographs of 0.5 to 2 MP score at least as high (p = 0.003)."
    )


def test_at_the_floor_the_words_say_how_few_calibration_photographs_there_are() -> None:
    words = p_value_in_words(1 / 136, 135, "up to 0.5 MP")
    assert words.headline == "At most 1 in 136 photographs of this size scores this high."
    assert words.detail.startswith(
        "None of the 135 calibration photographs of up to 0.5 MP scores this high, so no smaller"
    )


def test_the_lowest_score_is_not_rare() -> None:
    words = p_value_in_words(1.0, 68, "above 2 MP")
    assert words.headline == "All calibration photographs of this size score at least this high."
    assert "All 68 calibration photographs above 2 MP" in words.detail


def test_videos_are_no_photographs_and_all_sizes_are_no_size() -> None:
    assert p_value_in_words(0.25, 19, "videos").headline == "At most 25 in 100 videos score this high."
    assert p_value_in_words(0.25, 19, "all sizes").headline == "At most 25 in 100 photographs score this high."
    assert "photograph" not in p_value_in_words(0.25, 19, "videos").detail
    assert p_value_in_words(0.25, None, None).headline == "At most 25 in 100 photographs score this high."


@given(st.lists(st.floats(0.0, 2.0), min_size=1, max_size=400).map(sorted), st.floats(0.0, 2.0))
def test_the_count_in_words_is_that_of_the_scores(scores: list[float], score: float) -> None:
    detail = p_value_in_words(p_value(score, scores), len(scores), "all sizes").detail
    higher = sum(one >= score for one in scores)
    counted = re.match(r"(None|All|\d+) (?:of the )?(\d+)", detail)
    assert counted is not None
    assert int(counted[2]) == len(scores)
    assert {"None": 0, "All": len(scores)}.get(counted[1]) == higher or counted[1] == str(higher)


def test_every_code_of_a_row_has_words() -> None:
    assert set(get_args(Reason)) <= set(REASONS)
    assert set(get_args(Note)) == set(NOTES)
    assert set(get_args(Claim)) == set(CLAIMS)
    assert set(get_args(Verdict)) == set(BRIEF)


def test_no_verdict_says_more_than_it_may() -> None:
    real = meaning(Row(uri="a", verdict="real"), 0.05)
    assert "not told apart from real photographs" in real.says
    assert "It does not say that a camera took the picture." in real.not_says
    generated = meaning(Row(uri="a", verdict="generated"), 0.05)
    assert "evidence, not proof" in generated.not_says
    assert "up to 5 in 100 real photographs" in generated.not_says
    assert "real photographs get" not in meaning(Row(uri="a", verdict="generated"), None).not_says
    assert meaning(Row(uri="a", verdict="error", status="error"), None).says == "The input could not be scored."
    assert meaning(Row(uri="a", verdict="uncertain", reason="featureless"), 0.05) == REASONS["featureless"]
