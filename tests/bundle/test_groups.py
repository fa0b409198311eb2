"""Thresholds for videos stand beside those for photographs: neither judges the other, and each is kept as it is.

Scores near a threshold are as far from it on both sides.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

import msgspec
import pytest
from helpers.handmade import PAIR, calibration_of, sha
from hypothesis import given
from hypothesis import strategies as st

from mdmf_deploy.bundle.calibration import LEAST_EVIDENCE, Calibration, Judgement, Scored, VideoGroup
from mdmf_deploy.bundle.conformal import p_value
from mdmf_deploy.bundle.groups import NEAR, Group
from mdmf_deploy.errors import CalibrationError

FINITE = st.floats(0, 3, allow_nan=False)


def videos(
    scores: Sequence[float], fpr: float = 0.1, review: float = 0.5, frames: int = 10, evidence: float = LEAST_EVIDENCE
) -> VideoGroup:
    scored = [Scored(sha(f"video {n}"), score, n, evidence) for n, score in enumerate(scores)]
    return VideoGroup.of(scored, frames, [fpr], review, PAIR)


def both(photographs: Sequence[float], group: VideoGroup | None) -> Calibration:
    return msgspec.structs.replace(calibration_of(photographs), videos=group)


def judge_video(calibration: Calibration, score: float, frames: int = 10, evidence: float = 1.0) -> Judgement:
    return calibration.judge_video(score, evidence, frames, PAIR.runtime, PAIR.precision)


@given(st.lists(FINITE, min_size=1, max_size=40), st.lists(FINITE, min_size=1, max_size=40), FINITE)
def test_a_video_is_judged_by_videos_alone(photographs: list[float], scores: list[float], score: float) -> None:
    fpr, review = 0.2, 0.4
    calibration = both(photographs, videos(scores, fpr, review))
    found = judge_video(calibration, score)
    p = p_value(score, sorted(scores))
    if len(scores) < 4:
        assert found == (p, None, "uncertain", "no_calibration_for_this_size", "videos")
        return
    assert (found.p_value, found.size_group) == (p, "videos")
    assert found.verdict == ("generated" if p <= fpr else "uncertain" if p <= review else "real")
    assert found.threshold is not None
    assert (score > found.threshold) == (p <= fpr)
    # A photograph's verdict is that without videos.
    alone = calibration_of(photographs)
    for one in (alone, calibration):
        assert one.judge(score, 1.0, 7, *msgspec.structs.astuple(PAIR)) == alone.judge(
            score, 1.0, 7, PAIR.runtime, PAIR.precision
        )


def test_no_threshold_no_verdict() -> None:
    calibration = both([0.1] * 20, videos([0.1] * 20, evidence=0.5))
    assert judge_video(both([0.1] * 20, None), 5.0) == (None, None, "uncalibrated", "no_video_thresholds", None)
    assert judge_video(calibration, 5.0, frames=9) == (None, None, "uncalibrated", "other_frames", None)
    assert judge_video(calibration, 5.0, evidence=0.49) == (None, None, "uncertain", "featureless", "videos")
    assert calibration.judge_video(5.0, 1.0, 10, "tensorrt", "fp16").reason == "not_verified"
    with pytest.raises(CalibrationError, match="not finite"):
        judge_video(calibration, float("nan"))
    alone = Calibration.from_images(
        [], [0.1], 0.5, bundle_id="b", measured_on=PAIR, holds_for=[PAIR], videos=videos([0.1] * 20)
    )
    assert alone.judge(5.0, 1.0, 7, PAIR.runtime, PAIR.precision).reason == "no_thresholds"
    assert judge_video(alone, 5.0).verdict == "generated"


def test_without_videos_the_bytes_are_those_of_before() -> None:
    calibration = calibration_of([0.1, 0.2])
    assert b"videos" not in calibration.to_bytes()
    assert (calibration.schema, both([0.1], videos([0.2])).schema) == (2, 3)


@given(st.lists(FINITE, min_size=1, max_size=40))
def test_reads_back_to_the_last_bit(scores: list[float]) -> None:
    calibration = both([0.5], videos(scores))
    assert Calibration.from_bytes(calibration.to_bytes(), schema=3) == calibration


@pytest.mark.parametrize(
    "change",
    [
        {"frames": 0},
        {"scores": [0.3, 0.1, 0.2]},
        {"video_sha256": ["a"]},
        {"thresholds": []},
        {"thresholds": [{"fpr": 0.3, "score": 0.1}]},
        {"review": 0.01},
        {"least_evidence": 0.1},
        {"carried": -1.0},
        {"size": 3},
    ],
)
def test_a_file_that_contradicts_itself_is_refused(change: dict[str, object]) -> None:
    data = json.loads(both([0.5], videos([0.1, 0.2, 0.3], 0.3)).to_bytes())
    data["videos"] |= change
    with pytest.raises(CalibrationError, match="is not a calibration"):
        Calibration.from_bytes(json.dumps(data).encode(), schema=3)


@pytest.mark.parametrize(("fpr", "review"), [(0.0, 0.5), (1.0, 0.5), (0.3, 0.2)])
def test_senseless_rates_are_refused(fpr: float, review: float) -> None:
    with pytest.raises(CalibrationError):
        videos([0.1], fpr, review)


def test_the_shortage_says_how_many_are_needed() -> None:
    assert videos([0.1] * 9).shortage is None
    shortage = videos([0.1] * 8).shortage
    assert shortage is not None
    assert "8 calibration videos" in shortage
    assert shortage.endswith(" 9")


@given(st.lists(FINITE, min_size=1, max_size=60), st.sampled_from([0.01, 0.05, 0.1, 0.25, 0.5]), FINITE)
def test_a_score_is_near_the_threshold_by_its_p_value_below_and_by_the_same_distance_above(
    scores: list[float], fpr: float, score: float
) -> None:
    group = Group.of([(one, sha(f"{n}")) for n, one in enumerate(scores)], [fpr])
    if group.decides is None:
        assert group.near is None
        return
    assert group.near is not None
    lowest, highest = group.near
    p = p_value(score, group.scores)
    if fpr < p <= NEAR * fpr and score >= group.scores[0]:
        assert lowest <= score <= highest
    if score < lowest:
        assert p > min(NEAR * fpr, 1.0 - 1.0 / (len(scores) + 1))
    assert highest - group.decides == pytest.approx(group.decides - lowest)


def test_the_nearest_scores_are_those_of_a_few_real_images() -> None:
    group = Group.of([(n / 1000, sha(f"{n}")) for n in range(999)], [0.01])
    assert group.near is not None
    assert sum(group.near[0] <= score <= group.near[1] for score in group.scores) == NEAR * 10
