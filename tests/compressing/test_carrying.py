"""A carried calibration never says less than a new one would; a carried record never claims more than it may."""

from __future__ import annotations

import math

import handmade
import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mdmf_deploy.bundle import conformal
from mdmf_deploy.bundle.bank import Bank
from mdmf_deploy.bundle.calibration import Calibration, Pair
from mdmf_deploy.compressing import MemoryRows, compress
from mdmf_deploy.compressing.carrying import carry_calibration, carry_verification
from mdmf_deploy.mmd.reference import ReferenceReduction

PAIR = Pair("onnxruntime", "fp32")


def calibration(scores: np.ndarray, fpr: float = 0.1) -> Calibration:
    by_hash = {f"{place:064}": float(score) for place, score in enumerate(scores)}
    return Calibration.from_scores(by_hash, [fpr, 0.3], 0.4, bundle_id="old", measured_on=PAIR, holds_for=[PAIR])


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10**6), points=st.integers(1, 20), sigma=st.floats(0.3, 6.0))
def test_p_values_are_at_least_those_of_a_new_calibration(seed: int, points: int, sigma: float) -> None:
    generator = np.random.default_rng(seed)
    bank = handmade.bank(8, sigma=sigma)
    fitted = compress(MemoryRows(bank.signatures, bank.weights), sigma, bank.self_term, points=points)
    small = Bank(
        fitted.signatures,
        fitted.weights,
        sigma,
        fitted.self_term,
        bank.source[fitted.places],
        bank.sources,
        bank.model_sha256,
    )
    spread = generator.uniform(0.2, 4.0, (40, 1, 1))
    images = (spread * generator.standard_normal((40, 3, handmade.WIDTH))).astype(np.float32)
    old, new = (ReferenceReduction()(images, one).mmd2 for one in (bank, small))
    carried = carry_calibration(calibration(old[:25]), fitted.mmd, "new")
    exact = calibration(new[:25])
    assert carried.bundle_id == "new"
    assert carried.carried == fitted.mmd
    assert carried.image_sha256 == calibration(old[:25]).image_sha256
    for score in new[25:]:
        assert conformal.p_value(score, carried.scores) >= conformal.p_value(score, exact.scores)
    decided = carried.thresholds[0].score, exact.thresholds[0].score
    assert decided[0] is not None
    assert decided[1] is not None
    assert decided[0] >= decided[1]


def test_carrying_again_adds_up() -> None:
    twice = carry_calibration(carry_calibration(calibration(np.array([-1e-9, 0.04])), 0.1, "b"), 0.2, "c")
    assert twice.carried == pytest.approx(0.3)
    assert twice.scores == pytest.approx((0.09, 0.25))
    assert Calibration.from_bytes(twice.to_bytes()) == twice


def test_a_calibration_of_its_own_bank_reads_as_before() -> None:
    own = calibration(np.array([0.1, 0.2]))
    assert b"carried" not in own.to_bytes()
    assert Calibration.from_bytes(own.to_bytes()).carried == 0.0
    with pytest.raises(ValueError, match="carried nan"):
        msgspec.structs.replace(own, carried=math.nan)


def test_a_record_is_kept_with_the_bound_added_while_it_meets_the_limit() -> None:
    manifest = handmade.manifest()
    record, limit = handmade.record(), manifest.limits.max_score_change
    (kept,) = carry_verification(manifest, 1e-3, 0.5)
    apart = 2.0 * record.max_signature_error / handmade.SIGMA
    spread = record.score_spread - 1e-3 * (2.0 * (1.0 + math.sqrt(0.5)) + 1e-3)
    assert kept.max_score_change == pytest.approx(
        (record.max_score_change * record.score_spread + 2e-3 * apart) / spread
    )
    assert record.max_score_change < kept.max_score_change <= limit
    assert kept.score_spread == pytest.approx(spread)
    assert "measured before the bank was compressed" in kept.reference


@pytest.mark.parametrize(("mmd", "error"), [(1e-2, 10.0), (0.05, 1e-6)])
def test_a_record_is_dropped_where_the_bound_does_not_meet_the_limit(mmd: float, error: float) -> None:
    record = msgspec.structs.replace(handmade.record(), max_signature_error=error)
    assert carry_verification(handmade.manifest(verification=(record,)), mmd, 0.5) == ()


def test_compressing_twice_says_so_once() -> None:
    once = carry_verification(handmade.manifest(), 1e-4, 0.5)
    (twice,) = carry_verification(handmade.manifest(verification=once), 1e-4, 0.5)
    assert twice.reference == once[0].reference
    assert twice.max_score_change > once[0].max_score_change


FAILED = msgspec.structs.replace(handmade.record(passed=False), score_spread=0.0)
UNSURE = msgspec.structs.replace(handmade.record(), max_signature_error=10.0)


def test_failed_records_are_kept_as_they_are_even_without_a_spread() -> None:
    assert carry_verification(handmade.manifest(verification=(FAILED,)), 0.05, 0.5) == (FAILED,)


def test_no_older_pass_comes_back() -> None:
    """The newest record of a pair decides before and after."""
    manifest = handmade.manifest(verification=(handmade.record(), FAILED))
    carried = carry_verification(manifest, 1e-3, 0.5)
    assert [record.passed for record in carried] == [True, False]
    assert handmade.manifest(verification=carried).covered(None) == ()
    assert carry_verification(handmade.manifest(verification=(handmade.record(), UNSURE)), 1e-2, 0.5) == ()


def test_a_pair_is_decided_on_its_own() -> None:
    other = handmade.record(runtime="openvino")
    manifest = handmade.manifest(verification=(FAILED, handmade.record(), UNSURE, other))
    carried = carry_verification(manifest, 1e-2, 0.5)
    assert [record.runtime for record in carried] == ["openvino"]
    # An older pass that cannot be carried costs only itself.
    older = handmade.manifest(verification=(UNSURE, FAILED, handmade.record()))
    assert [record.passed for record in carry_verification(older, 1e-2, 0.5)] == [False, True]


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10**6), error=st.floats(1e-4, 2.0))
def test_the_bound_on_two_engines_difference_holds(seed: int, error: float) -> None:
    generator = np.random.default_rng(seed)
    bank = handmade.bank(8)
    fitted = compress(MemoryRows(bank.signatures, bank.weights), bank.sigma, bank.self_term, points=4)
    small = Bank(
        fitted.signatures,
        fitted.weights,
        bank.sigma,
        fitted.self_term,
        bank.source[fitted.places],
        bank.sources,
        bank.model_sha256,
    )
    source = generator.standard_normal((5, 3, handmade.WIDTH)).astype(np.float32)
    exported = source + generator.uniform(-error, error, source.shape).astype(np.float32)
    largest = float(np.abs(source.astype(np.float64) - exported).max())
    old, new = (
        np.abs(ReferenceReduction()(source, one).mmd2 - ReferenceReduction()(exported, one).mmd2)
        for one in (bank, small)
    )
    apart = math.sqrt(handmade.WIDTH) * largest / bank.sigma
    assert (new <= old + 2.0 * fitted.mmd * apart + 1e-12).all()
