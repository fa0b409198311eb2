"""A compressed bundle keeps what the error bound allows, and names what it lost."""

from __future__ import annotations

import math
from pathlib import Path

import msgspec
import numpy as np
import pytest
from helpers import handmade
from helpers.handmade import GRAPH, PAIR, WIDTH, calibration_of, make_bundle, manifest, record, schema_1
from hypothesis import given, settings
from hypothesis import strategies as st

from mdmf_deploy.bundle.bank import Bank, BankSource
from mdmf_deploy.bundle.bundle import Bundle, write_bundle
from mdmf_deploy.bundle.calibration import Calibration, Scored
from mdmf_deploy.bundle.conformal import p_value
from mdmf_deploy.bundle.manifest import BANK, CALIBRATION, MODEL
from mdmf_deploy.errors import BankError
from mdmf_deploy.mmd.compress.bank_rows import MemoryRows
from mdmf_deploy.mmd.compress.fit import compress
from mdmf_deploy.mmd.reference import ReferenceReduction, uniform_bank
from mdmf_deploy.tasks.bank.compress import carry_calibration, carry_verification, compress_bundle


def bundle_at(path: Path, sigma: float, scores: tuple[float, ...] = ()) -> Bundle:
    """A bundle of this bandwidth, calibrated with these scores."""
    model = msgspec.structs.replace(manifest().model, sigma=sigma)
    bank = uniform_bank(
        np.random.default_rng(0).standard_normal((80, WIDTH)).astype(np.float32),
        sigma,
        source=np.zeros(80, np.int32),
        sources=(BankSource("photo.png", "0" * 64),),
        model_sha256=manifest().model_sha256,
    )
    bundle = write_bundle(path, manifest(model=model), {MODEL: GRAPH, BANK: bank.to_bytes()})
    if not scores:
        return bundle
    calibration = calibration_of(scores, [0.5], 0.5, bundle.bundle_id)
    return write_bundle(path, bundle.manifest, {**bundle.files(), CALIBRATION: calibration.to_bytes()})


@pytest.mark.parametrize(
    ("sigma", "words"), [(1e-3, "too small for this bank: its"), (1e4, "too large for this bank: its"), (3.0, None)]
)
def test_a_useless_bandwidth_is_one_line_of_warning(tmp_path: Path, sigma: float, words: str | None) -> None:
    report = compress_bundle(bundle_at(tmp_path / "b", sigma), tmp_path / "c", points=10)
    assert [words in warning for warning in report.warnings] == ([True] if words else [])


def test_images_that_all_score_the_same_leave_no_spread(tmp_path: Path) -> None:
    with pytest.raises(BankError, match="there is no spread; give --points"):
        compress_bundle(bundle_at(tmp_path / "b", 3.0, (0.2, 0.2)), tmp_path / "c", max_error=0.1)


def test_the_error_is_in_spreads_of_mmd_not_of_its_square(tmp_path: Path) -> None:
    bundle = bundle_at(tmp_path / "b", 3.0, (0.01, 0.25))
    report = compress_bundle(bundle, tmp_path / "c", max_error=0.2)
    assert report.spread == pytest.approx(0.2)
    assert 0.03 < report.max_mmd_change <= 0.04


def test_a_weight_that_is_not_a_number_is_an_error(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "b")
    data = bytearray((bundle.path / BANK).read_bytes())
    good = np.full(3, 1 / 24).tobytes()
    at = data.index(good)
    data[at : at + 8] = np.array([np.nan]).tobytes()
    broken = write_bundle(bundle.path, bundle.manifest, {**bundle.files(), BANK: bytes(data)})
    with pytest.raises(BankError, match="not finite"):
        compress_bundle(broken, tmp_path / "c", points=3)
    assert not (tmp_path / "c").exists()


def test_the_notes_name_what_was_carried_and_what_was_lost(tmp_path: Path) -> None:
    lost = msgspec.structs.replace(record(runtime="openvino"), max_score_change=0.1)
    bundle = bundle_at(tmp_path / "b", 3.0)
    verified = msgspec.structs.replace(
        bundle.manifest, verification=(record(), record(passed=False, runtime="x"), lost)
    )
    bundle = write_bundle(bundle.path, verified, bundle.files())
    report = compress_bundle(bundle, tmp_path / "c", points=70)
    assert (report.carried, report.dropped) == (1, 1)
    verify = f"`mdmf verify {tmp_path / 'c'} --runtime all`"
    carried, dropped = report.notes
    assert carried.startswith("1 verification records carried over, their score change raised by the error bound")
    assert carried.endswith(f"rank, flips and rate not measured again: {verify} does")
    assert dropped == "1 verification records no longer hold"


def test_a_bank_that_stays_as_it_is_says_why(tmp_path: Path) -> None:
    # The kernel values between these signatures are 0, so none can stand for another.
    bundle = bundle_at(tmp_path / "b", 1e-3, (0.01, 0.25))
    few = compress_bundle(bundle, tmp_path / "c", max_error=0.01)
    many = compress_bundle(bundle, tmp_path / "d", points=80)
    assert few.points == many.points == 80
    assert few.notes == ("the bank stays as it is: fewer than its 80 signatures cannot keep the change so small",)
    assert many.notes == ("the bank stays as it is: it has 80 signatures, no more than asked for",)
    assert few.bundle.bundle_id == many.bundle.bundle_id == bundle.bundle_id


@pytest.mark.parametrize(
    ("sigma", "candidates", "looked_at", "remedy"),
    [
        (3.0, 3, 100, "more --candidates"),
        (3.0, 3, 3, "a larger --max-error"),
        (3.0, 99, 100, "a larger --max-error"),
        # The few candidates explain all other signatures.
        (1e4, 70, 100, "a larger --max-error"),
    ],
)
def test_more_candidates_are_advised_only_where_there_are_more(
    tmp_path: Path, sigma: float, candidates: int, looked_at: int, remedy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("mmd.compress.fit", "tasks.bank.compress"):
        monkeypatch.setattr(f"mdmf_deploy.{module}.SAMPLE", looked_at)
    bundle = bundle_at(tmp_path / "b", sigma, (0.01, 0.25))
    with pytest.raises(BankError, match=f"give {remedy}$"):
        compress_bundle(bundle, tmp_path / "c", max_error=1e-9, candidates=candidates)


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
    carried = carry_calibration(calibration_of(old[:25]), fitted.mmd, "new")
    exact = calibration_of(new[:25])
    assert carried.bundle_id == "new"
    assert carried.carried == fitted.mmd
    assert carried.groups[0].image_sha256 == calibration_of(old[:25]).groups[0].image_sha256
    for score in new[25:]:
        assert p_value(score, carried.scores) >= p_value(score, exact.scores)
    decided = carried.groups[0].decides, exact.groups[0].decides
    assert decided[0] is not None
    assert decided[1] is not None
    assert decided[0] >= decided[1]


def test_carrying_again_adds_up() -> None:
    twice = carry_calibration(carry_calibration(calibration_of(np.array([-1e-9, 0.04])), 0.1, "b" * 64), 0.2, "c" * 64)
    assert twice.carried == pytest.approx(0.3)
    assert twice.scores == pytest.approx((0.09, 0.25))
    assert Calibration.from_bytes(twice.to_bytes()) == twice


def test_a_calibration_of_its_own_bank_reads_as_before() -> None:
    own = calibration_of(np.array([0.1, 0.2]))
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


def test_signatures_far_apart_change_the_bound_by_at_most_a_root_of_two() -> None:
    record = msgspec.structs.replace(handmade.record(), max_signature_error=1e6)
    (kept,) = carry_verification(handmade.manifest(verification=(record,)), 1e-4, 0.5)
    change = record.max_score_change * record.score_spread + 2e-4 * math.sqrt(2.0)
    assert kept.max_score_change == pytest.approx(change / kept.score_spread)


@pytest.mark.parametrize(("mmd", "error"), [(1e-2, 10.0), (0.05, 1e-6)])
def test_a_record_is_dropped_where_the_bound_does_not_meet_the_limit(mmd: float, error: float) -> None:
    record = msgspec.structs.replace(handmade.record(), max_signature_error=error)
    assert carry_verification(handmade.manifest(verification=(record,)), mmd, 0.5) == ()


def test_compressing_twice_adds_one_remark_to_the_reference() -> None:
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
    # An older pass that does not survive costs only itself.
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


def test_every_size_group_is_carried_over(tmp_path: Path) -> None:
    images = [Scored(f"{n:064}", n / 10, 10**6 * (1 + n % 3 * 4), 0.5) for n in range(30)]
    old = Calibration.from_images(images, [0.2], 0.4, bundle_id="old", measured_on=PAIR, holds_for=[PAIR])
    new = carry_calibration(old, 0.1, "new")
    assert [len(group.scores) for group in new.groups] == [0, 10, 10, 10]
    for before, after in zip(old.groups, new.groups, strict=True):
        assert (after.above, after.up_to, after.image_sha256) == (before.above, before.up_to, before.image_sha256)
        assert after.scores == pytest.approx([(score**0.5 + 0.1) ** 2 for score in before.scores])
    assert new.least_evidence == 0.5


def test_a_bundle_of_schema_1_gets_the_new_schema_with_its_bank(tmp_path: Path) -> None:
    old = schema_1(bundle_at(tmp_path / "b", 3.0), [0.01, 0.25], 0.5, 0.25)
    new = compress_bundle(old, tmp_path / "c", points=10).bundle
    assert new.manifest.schema_version == 2
    assert Bundle.open(new.path).calibration.groups[0].decides >= 0.25  # type: ignore[union-attr,operator]
    # Nothing is rewritten if the bank is small enough.
    assert compress_bundle(old, tmp_path / "d", points=100).bundle.manifest.schema_version == 1
    assert Bundle.open(tmp_path / "d").calibration == old.calibration
