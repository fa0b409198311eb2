"""Rows compared with those of the first configuration."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from fakes.fake_time import FakeClock, FakeDetector, subject
from helpers.handmade import GRAPH, bank, make_bundle, manifest

from mdmf_deploy.bundle.bundle import Bundle, write_bundle
from mdmf_deploy.bundle.manifest import BANK, MODEL
from mdmf_deploy.detection.rows import Row
from mdmf_deploy.errors import UsageError
from mdmf_deploy.tasks.benchmark.comparison import drift, measure_drift
from mdmf_deploy.tasks.benchmark.results import Drift
from mdmf_deploy.tasks.verify import Scale

SCALE = Scale(spread=0.1, threshold=0.5)


def rows(*scores: float | None) -> list[Row]:
    return [
        Row(uri=f"{n}.jpg", sha256=None, score=score, bundle_id="0", runtime="r", precision="fp32")
        for n, score in enumerate(scores)
    ]


def test_the_same_scores_have_not_drifted() -> None:
    found = drift(rows(0.1, 0.4, 0.6), rows(0.1, 0.4, 0.6), SCALE, SCALE)
    assert (found.score_change, found.rank_correlation, found.flipped, found.images) == (0, pytest.approx(1), 0, 3)


def test_change_is_in_spreads_and_flips_are_counted_at_the_threshold() -> None:
    found = drift(rows(0.1, 0.4, 0.6, 0.49), rows(0.12, 0.45, 0.48, 0.51), SCALE, SCALE)
    assert found.score_change == pytest.approx(1.2)
    assert found.flipped == 2
    assert drift(rows(0.1, 0.2, 0.3), rows(0.3, 0.2, 0.1), SCALE, SCALE).rank_correlation == pytest.approx(-1)


def test_another_bundle_decides_by_its_own_threshold() -> None:
    theirs = Scale(spread=1.0, threshold=50.0)
    found = drift(rows(0.1, 0.4, 0.6), rows(10.0, 40.0, 60.0), SCALE, theirs)
    assert found.flipped == 0
    assert found.rank_correlation == pytest.approx(1)


def test_without_real_scores_the_rest_still_works() -> None:
    found = drift(rows(0.0, 2.0), rows(0.5, 2.0), None, None)
    assert found.flipped is None
    assert found.spread == pytest.approx(1.0)
    assert found.score_change == pytest.approx(0.5)
    assert "verdicts are not compared" in found.note


def test_images_without_a_score_are_left_out_and_counted() -> None:
    found = drift(rows(0.1, None, 0.3, 0.4), rows(0.1, 0.2, None, 0.4), SCALE, SCALE)
    assert found.images == 2
    assert "2 images without a score" in found.note
    with pytest.raises(UsageError, match="no image got a score"):
        drift(rows(None), rows(0.1), SCALE, SCALE)


def test_a_configuration_alone_has_nothing_to_drift_from() -> None:
    assert measure_drift([subject(FakeDetector(FakeClock(), 0.0))], []) == [None]


class Scored(FakeDetector):
    """A detector whose two images score 0.1 and 0.2."""

    def __init__(self, bundle: Bundle) -> None:
        super().__init__(FakeClock(), 0.0)
        self.bundle = bundle

    def stream(self, sources: Iterable[Path]) -> Iterator[Row]:
        return iter(rows(0.1, 0.2))


def drift_between(bundle: Bundle) -> Drift:
    found = measure_drift([subject(Scored(bundle)), subject(Scored(bundle))], [])[1]
    assert found is not None
    return found


def test_a_bank_of_one_image_knows_no_real_scores(tmp_path: Path) -> None:
    files = {MODEL: GRAPH, BANK: bank(count=1).to_bytes()}
    assert drift_between(write_bundle(tmp_path / "one.mdmf", manifest(), files)).flipped is None
    found = drift_between(make_bundle(tmp_path / "six.mdmf"))
    assert (found.flipped, found.note) == (0, "")
    assert found.spread > 0
