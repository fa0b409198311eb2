"""A calibration judges by the p-values of an image's own size group, only where it holds, and only with evidence."""

from __future__ import annotations

import json
import math

import pytest
from helpers.handmade import PAIR, calibration_of, sha
from hypothesis import given
from hypothesis import strategies as st

from mdmf_deploy.bundle.calibration import LEAST_EVIDENCE, SIZE_BOUNDS, Calibration, Judgement, Scored
from mdmf_deploy.errors import CalibrationError

FINITE = st.floats(0, 3, allow_nan=False)
MEGAPIXEL = 1_000_000
WHOLE = "all sizes"


def make(images: list[Scored], fprs: tuple[float, ...] = (0.1,), review: float = 0.3, **more: object) -> Calibration:
    return Calibration.from_images(images, fprs, review, bundle_id="b", measured_on=PAIR, holds_for=[PAIR], **more)  # type: ignore[arg-type]


def several(count: int, pixels: int, score: float = 0.0, evidence: float = 0.9) -> list[Scored]:
    return [Scored(sha(f"{pixels} {n}"), score + n / 100, pixels, evidence) for n in range(count)]


def judge(calibration: Calibration, score: float, pixels: int = 10_000, evidence: float = 1.0) -> Judgement:
    return calibration.judge(score, evidence, pixels, PAIR.runtime, PAIR.precision)


@given(
    scores=st.lists(FINITE, min_size=1, max_size=60), score=FINITE, fpr=st.floats(0.01, 0.5), extra=st.floats(0, 0.4)
)
def test_the_verdict_follows_from_p(scores: list[float], score: float, fpr: float, extra: float) -> None:
    review = fpr + extra
    calibration = calibration_of(scores, (fpr,), review)
    for value in [score, *scores]:
        p, limit, verdict, reason, group = judge(calibration, value)
        assert p == (1 + sum(other >= value for other in scores)) / (1 + len(scores))
        assert group == WHOLE
        if 1 / (1 + len(scores)) > fpr:
            assert (limit, verdict, reason) == (None, "uncertain", "no_calibration_for_this_size")
            continue
        assert limit is not None
        assert verdict == ("generated" if p <= fpr else "uncertain" if p <= review else "real")
        assert (verdict == "generated") == (value > limit)
        assert reason == ("borderline" if verdict == "uncertain" else None)


@pytest.mark.parametrize(
    ("pixels", "group"),
    [
        (1, "up to 0.5 MP"),
        (500_000, "up to 0.5 MP"),
        (500_001, "0.5 to 2 MP"),
        (2 * MEGAPIXEL, "0.5 to 2 MP"),
        (8 * MEGAPIXEL, "2 to 8 MP"),
        (8 * MEGAPIXEL + 1, "above 8 MP"),
        (10**9, "above 8 MP"),
    ],
)
def test_an_image_is_calibrated_and_judged_in_the_group_of_its_size(pixels: int, group: str) -> None:
    """Every group has scores of its own, so that only one of them finds this score extreme."""
    sizes = [400_000, MEGAPIXEL, 4 * MEGAPIXEL, 12 * MEGAPIXEL]
    others = [image for size in sizes for image in several(20, size, score=5.0)]
    calibration = make([*others, *several(400, pixels, score=-10.0)])
    judged = judge(calibration, 4.5, pixels)
    assert (judged.verdict, judged.size_group) == ("generated", group)
    assert judged.p_value == pytest.approx(21 / 421)
    others = [judge(calibration, 4.5, size) for size in sizes]
    assert [other.verdict for other in others if other.size_group != group] == ["real"] * 3


def test_a_group_with_too_few_images_gives_no_verdict_whatever_the_score() -> None:
    calibration = make([*several(20, 10_000), *several(3, MEGAPIXEL)])
    for score in (-9.0, 0.0, 9.0):
        assert judge(calibration, score).verdict in ("real", "generated")
        assert judge(calibration, score, 12 * MEGAPIXEL) == (
            *(None, None, "uncertain", "no_calibration_for_this_size"),
            "above 8 MP",
        )
    p = 1 / 4
    assert judge(calibration, 9.0, MEGAPIXEL) == (p, None, "uncertain", "no_calibration_for_this_size", "0.5 to 2 MP")


def test_a_group_needs_as_many_images_as_the_deciding_rate_asks_for() -> None:
    assert make(several(9, 10_000)).groups[0].decides is not None
    assert make(several(8, 10_000)).groups[0].decides is None
    assert make(several(9, 10_000), (0.1, 0.01)).groups[0].decides is not None
    assert make(several(9, 10_000), (0.01, 0.1)).groups[0].decides is None
    few = make(several(8, 10_000))
    assert few.undecided == tuple(group.name for group in few.groups)
    assert few.shortage is not None
    assert few.shortage.startswith(
        "8 calibration images are too few for a false positive rate of 0.1: each size needs 9,"
    )
    enough = make(several(9, 10_000))
    assert (enough.shortage, len(enough.undecided)) == (None, len(enough.groups) - 1)


@pytest.mark.parametrize("score", [-9.0, 0.1, 9.0])
def test_too_little_evidence_is_uncertain_whatever_the_score(score: float) -> None:
    calibration = make(several(20, 10_000, evidence=0.4))
    assert calibration.least_evidence == 0.4
    assert judge(calibration, score, evidence=0.4).reason != "featureless"
    for evidence in (0.0, math.nextafter(0.4, 0.0), math.nan):
        assert judge(calibration, score, evidence=evidence) == (
            *(None, None, "uncertain", "featureless"),
            "up to 0.5 MP",
        )


def test_the_least_evidence_is_never_below_its_floor() -> None:
    images = [*several(20, 10_000), Scored(sha("smooth"), 0.0, 10_000, 0.01)]
    assert make(images).least_evidence == LEAST_EVIDENCE


@given(scores=st.lists(FINITE, min_size=1, max_size=30))
def test_reads_back_to_the_last_bit(scores: list[float]) -> None:
    calibration = calibration_of(scores, (0.1, 0.01), bounds=SIZE_BOUNDS)
    assert Calibration.from_bytes(calibration.to_bytes()) == calibration


def test_each_score_keeps_its_image() -> None:
    images = [Scored(sha("high"), 0.9, 100, 0.9), Scored(sha("low"), 0.1, 100, 0.9), Scored(sha("big"), 0.5, 10**8, 1)]
    calibration = make(images)
    assert calibration.groups[0].scores == (0.1, 0.9)
    assert calibration.groups[0].image_sha256 == (sha("low"), sha("high"))
    assert calibration.groups[-1].image_sha256 == (sha("big"),)
    assert calibration.scores == (0.1, 0.5, 0.9)
    assert calibration.image_sha256 == {sha("low"), sha("high"), sha("big")}


@pytest.mark.parametrize("pair", [("openvino", "fp32"), ("onnxruntime", "int8")])
def test_other_pairs_are_uncalibrated(pair: tuple[str, str]) -> None:
    judged = calibration_of([0.0] * 20).judge(9.0, 1.0, 100, *pair)
    assert judged == Judgement(None, None, "uncalibrated", "not_verified", None)


def test_a_p_value_equal_to_a_rate_counts_as_within_it() -> None:
    calibration = calibration_of([0.1, 0.2, 0.3, 0.4], (0.2,), 0.4)
    judged = [judge(calibration, score) for score in (0.41, 0.4, 0.3)]
    assert [(j.p_value, j.verdict) for j in judged] == [(0.2, "generated"), (0.4, "uncertain"), (0.6, "real")]


@pytest.mark.parametrize("score", [math.nan, math.inf, -math.inf])
def test_a_score_that_is_not_finite_is_never_judged(score: float) -> None:
    with pytest.raises(CalibrationError, match="not finite"):
        judge(calibration_of([0.1, 0.2]), score)


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
def test_senseless_values_are_refused(scores: list[float], fprs: tuple[float, ...], review: float) -> None:
    with pytest.raises(CalibrationError):
        calibration_of(scores, fprs, review)


@pytest.mark.parametrize("bounds", [(0.0,), (-1.0, 2.0), (2.0, 0.5), (2.0, 2.0), (math.inf,), (math.nan, 2.0)])
def test_size_bounds_must_ascend(bounds: tuple[float, ...]) -> None:
    with pytest.raises(CalibrationError, match="expected finite megapixels above 0, ascending"):
        make(several(9, 100), bounds=bounds)


def group(**changes: object) -> dict[str, object]:
    whole = json.loads(calibration_of([0.1, 0.2, 0.3], (0.4,), 0.5).to_bytes())["groups"][0]
    return {**whole, **changes}


@pytest.mark.parametrize(
    "change",
    [
        {"groups": []},
        {"groups": [group(scores=[0.2, 0.1, 0.3])]},
        {"groups": [group(scores=[0.2, 0.3])]},
        {"groups": [group(scores=[0.1, "x", 0.3])]},
        {"groups": [group(scores=[], image_sha256=[], thresholds=[{"fpr": 0.4, "score": None}])]},
        {"groups": [group(thresholds=[{"fpr": 0.4, "score": 0.15}])]},
        {"groups": [group(thresholds=[])]},
        {"groups": [group(up_to=2.0)]},
        {"groups": [group(above=0.5)]},
        {"groups": [group(up_to=2.0), group(above=1.0)]},
        {"groups": [group(up_to=2.0, thresholds=[]), group(above=2.0)]},
        {"least_evidence": 0.2},
        {"least_evidence": 1.5},
        {"review": 2},
        {"surprise": 1},
        {"bundle_id": None},
    ],
)
def test_a_file_that_contradicts_itself_is_refused_by_name(change: dict[str, object]) -> None:
    whole = json.loads(calibration_of([0.1, 0.2, 0.3], (0.4,), 0.5).to_bytes())
    with pytest.raises(CalibrationError, match=r"here\.json is not a calibration") as caught:
        Calibration.from_bytes(json.dumps({**whole, **change}).encode(), "here.json")
    assert "\n" not in str(caught.value)


SCHEMA_1 = {
    "bundle_id": "b" * 64,
    "measured_on": {"runtime": "onnxruntime", "precision": "fp32"},
    "scores": [0.1, 0.2, 0.3],
    "image_sha256": ["c" * 64, "a" * 64, "b" * 64],
    "thresholds": [{"fpr": 0.4, "score": 0.3}, {"fpr": 0.01, "score": None}],
    "review": 0.5,
    "holds_for": [{"runtime": "onnxruntime", "precision": "fp32"}],
}


def test_a_calibration_of_schema_1_is_one_group_for_all_sizes() -> None:
    read = Calibration.from_bytes(json.dumps({**SCHEMA_1, "carried": 0.5}).encode(), schema=1)
    assert (read.least_evidence, read.review, read.carried, read.fprs) == (LEAST_EVIDENCE, 0.5, 0.5, (0.4, 0.01))
    assert read.groups[0].image_sha256 == ("c" * 64, "a" * 64, "b" * 64)
    for pixels in (1, MEGAPIXEL, 10**9):
        assert judge(read, 0.31, pixels) == (0.25, 0.3, "generated", None, WHOLE)
        assert judge(read, 0.3, pixels) == (0.5, 0.3, "uncertain", "borderline", WHOLE)
        assert judge(read, 0.1, pixels, evidence=0.2).reason == "featureless"
    assert Calibration.from_bytes(read.to_bytes()) == read


@pytest.mark.parametrize(
    ("change", "schema"),
    [
        ({}, 2),
        ({"groups": []}, 1),
        ({"scores": [0.3, 0.2, 0.1]}, 1),
        ({"scores": [], "image_sha256": [], "thresholds": [{"fpr": 0.4, "score": None}]}, 1),
        ({"thresholds": []}, 1),
    ],
)
def test_schemas_are_not_mixed_and_schema_1_is_checked_too(change: dict[str, object], schema: int) -> None:
    with pytest.raises(CalibrationError, match="is not a calibration"):
        Calibration.from_bytes(json.dumps({**SCHEMA_1, **change}).encode(), schema=schema)
