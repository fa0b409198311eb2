"""A calibration judges by its scores, on the pairs it holds for, and reads back as it was written."""

from __future__ import annotations

import json
import math

import pytest
from helpers.handmade import sha
from hypothesis import given
from hypothesis import strategies as st

from mdmf_deploy.bundle.calibration import Calibration, Judgement, Pair
from mdmf_deploy.errors import CalibrationError

PAIR = Pair("onnxruntime", "fp32")
FINITE = st.floats(-1, 3, allow_nan=False)


def make(scores: list[float], fprs: tuple[float, ...] = (0.1,), review: float = 0.3) -> Calibration:
    named = {sha(str(place)): score for place, score in enumerate(scores)}
    return Calibration.from_scores(named, fprs, review, bundle_id="b" * 64, measured_on=PAIR, holds_for=[PAIR])


@given(
    scores=st.lists(FINITE, min_size=1, max_size=60), score=FINITE, fpr=st.floats(0.01, 0.5), extra=st.floats(0, 0.4)
)
def test_the_verdict_follows_from_p(scores: list[float], score: float, fpr: float, extra: float) -> None:
    review = fpr + extra
    calibration = make(scores, (fpr,), review)
    for value in [score, *scores]:
        p, threshold, verdict = calibration.judge(value, "onnxruntime", "fp32")
        assert p == (1 + sum(other >= value for other in scores)) / (1 + len(scores))
        assert verdict == ("generated" if p <= fpr else "uncertain" if p <= review else "real")
        assert (verdict == "generated") == (threshold is not None and value > threshold)


@given(scores=st.lists(FINITE, min_size=1, max_size=30))
def test_reads_back_to_the_last_bit(scores: list[float]) -> None:
    calibration = make(scores, (0.1, 0.01))
    assert Calibration.from_bytes(calibration.to_bytes()) == calibration


def test_each_score_keeps_its_image() -> None:
    named = {sha("high"): 0.9, sha("low"): 0.1}
    calibration = Calibration.from_scores(named, [0.4], 0.4, bundle_id="b", measured_on=PAIR, holds_for=[PAIR])
    assert calibration.scores == (0.1, 0.9)
    assert calibration.image_sha256 == (sha("low"), sha("high"))


@pytest.mark.parametrize("pair", [("openvino", "fp32"), ("onnxruntime", "int8")])
def test_elsewhere_nothing_is_claimed(pair: tuple[str, str]) -> None:
    assert make([0.0] * 20).judge(9.0, *pair) == Judgement(None, None, "uncalibrated")


def test_both_rates_include_their_own_p_value() -> None:
    calibration = make([0.1, 0.2, 0.3, 0.4], (0.2,), 0.4)
    judged = [calibration.judge(score, "onnxruntime", "fp32") for score in (0.41, 0.4, 0.3)]
    assert [(j.p_value, j.verdict) for j in judged] == [(0.2, "generated"), (0.4, "uncertain"), (0.6, "real")]


def test_too_few_images_never_say_generated() -> None:
    calibration = make([0.1, 0.2, 0.3], (0.01,), 0.3)
    assert calibration.thresholds[0].score is None
    assert json.loads(calibration.to_bytes())["thresholds"] == [{"fpr": 0.01, "score": None}]
    assert calibration.judge(99.0, "onnxruntime", "fp32") == Judgement(0.25, None, "uncertain")


@pytest.mark.parametrize("score", [math.nan, math.inf, -math.inf])
def test_a_score_that_is_not_finite_is_never_judged(score: float) -> None:
    with pytest.raises(CalibrationError, match="not finite"):
        make([0.1, 0.2]).judge(score, "onnxruntime", "fp32")


@pytest.mark.parametrize(
    ("scores", "fprs", "review"),
    [
        ([], (0.1,), 0.3),
        ([math.nan], (0.1,), 0.3),
        ([1.0], (), 0.3),
        ([1.0], (0.0,), 0.3),
        ([1.0], (1.0,), 1.0),
        ([1.0], (0.1, 7.0), 0.3),
        ([1.0], (0.1,), 0.05),
        ([1.0], (0.1,), 1.0),
        ([1.0], (math.nan,), 0.3),
    ],
)
def test_what_makes_no_sense_is_refused(scores: list[float], fprs: tuple[float, ...], review: float) -> None:
    with pytest.raises(CalibrationError):
        make(scores, fprs, review)


@pytest.mark.parametrize(
    "change",
    [
        {"scores": [0.2, 0.1, 0.3]},
        {"scores": [0.2, 0.3]},
        {"scores": [0.1, "x", 0.3]},
        {"thresholds": [{"fpr": 0.4, "score": 0.15}]},
        {"thresholds": []},
        {"review": 2},
        {"surprise": 1},
        {"bundle_id": None},
    ],
)
def test_a_file_that_contradicts_itself_is_refused_by_name(change: dict[str, object]) -> None:
    whole = json.loads(make([0.1, 0.2, 0.3], (0.4,), 0.5).to_bytes())
    with pytest.raises(CalibrationError, match=r"here\.json is not a calibration") as caught:
        Calibration.from_bytes(json.dumps({**whole, **change}).encode(), "here.json")
    assert "\n" not in str(caught.value)
