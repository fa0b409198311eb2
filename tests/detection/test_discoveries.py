"""Benjamini-Hochberg over a run's rows: SciPy's adjusted p-values, and a false discovery rate that holds."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from scipy.stats import false_discovery_control

from mdmf_deploy.bundle.calibration import Verdict
from mdmf_deploy.bundle.conformal import p_value
from mdmf_deploy.detection.discoveries import Discoveries, judged_together
from mdmf_deploy.detection.rows import Row
from mdmf_deploy.errors import UsageError

# The p-values of 39 calibration images. Many rows share one.
P_VALUES = st.integers(1, 40).map(lambda k: k / 40)
RATES = st.sampled_from([0.01, 0.05, 0.1, 0.3, 0.9])


def row(p: float | None, fpr: float = 0.25, **facts: object) -> Row:
    """Return a row as a calibration at this rate judges it."""
    verdict: Verdict = "uncertain" if p is None else "generated" if p <= fpr else "real"
    threshold = None if p is None else 0.5
    values = {"uri": "a.jpg", "score": 0.4, "p_value": p, "verdict": verdict, "threshold": threshold}
    return Row(**{**values, **facts})  # type: ignore[arg-type]


@given(st.lists(P_VALUES, min_size=1, max_size=60), RATES)
@example([0.025] * 5 + [0.05], 0.05)
def test_q_values_are_scipys_with_a_p_value_of_1_for_rows_not_generated(values: list[float], rate: float) -> None:
    rows = [row(p) for p in values]
    counted = [p if one.verdict == "generated" else 1.0 for p, one in zip(values, rows, strict=True)]
    wanted = false_discovery_control(counted)
    for before, after, q in zip(rows, judged_together(rows, rate), wanted, strict=True):
        if before.verdict != "generated":
            assert after is before
            continue
        assert after.q_value == pytest.approx(q, rel=1e-12)
        stays = after.q_value is not None and after.q_value <= rate
        assert (after.verdict, after.reason) == (("generated", None) if stays else ("uncertain", "expected_by_chance"))
        assert msgspec.structs.replace(after, q_value=None, verdict="generated", reason=None) == before


@given(st.lists(P_VALUES, min_size=1, max_size=60), RATES)
def test_where_every_row_is_generated_they_are_those_of_the_p_values(values: list[float], rate: float) -> None:
    found = judged_together([row(p, fpr=1.0) for p in values], rate)
    assert [one.q_value for one in found] == pytest.approx(false_discovery_control(values).tolist(), rel=1e-12)


def test_rows_without_a_threshold_do_not_count() -> None:
    others = [row(None), row(0.3, threshold=None, verdict="uncertain"), Row(uri="b", status="error")]
    rows = [row(0.02), *others, row(0.9)]
    assert [one.q_value for one in judged_together(rows, 0.05)] == [0.04, None, None, None, None]
    assert judged_together(others, 0.05) == others


def test_an_unstable_row_counts_with_a_p_value_of_1() -> None:
    unstable = row(0.01, verdict="uncertain", reason="unstable", probes=5)
    kept, other = judged_together([row(0.02), unstable], 0.05)
    assert (kept.q_value, other) == (0.04, unstable)


@pytest.mark.parametrize("groups", [1, 3])
def test_the_false_discovery_rate_holds_for_exchangeable_scores(groups: int) -> None:
    """Real images are like the calibration's, of one or several size groups. On average over draws the rate holds.

    Thresholds alone make far more false discoveries of the same images.
    """
    generator = np.random.default_rng(7)
    rate, real, generated, draws = 0.1, 80, 8, 300
    alone, together, found = [], [], 0
    for _ in range(draws):
        calibrations = [sorted(generator.standard_normal(199).tolist()) for _ in range(groups)]
        scores = [*generator.standard_normal(real), *(generator.standard_normal(generated) + 4.0)]
        rows = [row(p_value(score, calibrations[n % groups]), fpr=0.05) for n, score in enumerate(scores)]
        for judged, shares in ((rows, alone), (judged_together(rows, rate), together)):
            called = [one.verdict == "generated" for one in judged]
            shares.append(sum(called[:real]) / max(1, sum(called)))
        found += sum(called[real:])
    error = np.std(together) / np.sqrt(draws)
    assert np.mean(together) <= rate * real / (real + generated) + 3 * error
    assert np.mean(alone) > 2 * rate
    assert found > 0.5 * generated * draws


@given(st.integers(1, 300), st.integers(1, 300), st.integers(1, 300), RATES)
def test_it_says_how_many_generated_rows_are_needed(rows: int, alarms: int, images: int, rate: float) -> None:
    alarms = min(alarms, rows)
    found = Discoveries(rate)
    for n in range(rows):
        found.add(row(1 / (images + 1), fpr=1.0) if n < alarms else row(1.0, fpr=0.5))
    assert (found.alarms, found.judged.total()) == (alarms, rows)
    assert (found.discovered == alarms) == (alarms >= found.alarms_needed(images))
    assert found.alarms_needed(found.images_needed) == 1
    assert found.images_needed == 0 or found.alarms_needed(found.images_needed - 1) > 1


@pytest.mark.parametrize("rate", [0.0, 1.0, -0.1, 5.0, float("nan")])
def test_a_rate_that_is_no_share_is_refused(rate: float) -> None:
    with pytest.raises(UsageError, match=r"must be between 0 and 1, such as 0\.05"):
        Discoveries(rate)
