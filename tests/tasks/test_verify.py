"""The gate's figures are plain arithmetic, and nothing that is not a number passes it."""

from __future__ import annotations

import dataclasses
from contextlib import closing
from pathlib import Path

import msgspec
import numpy as np
import pytest
from fakes.failing_engines import NanEngine
from helpers.crop_plans import planned
from helpers.handmade import PAIR, make_bundle
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import spearmanr

from mdmf_deploy.bundle.bank import Bank, BankSource
from mdmf_deploy.bundle.bundle import Bundle, write_bundle
from mdmf_deploy.bundle.calibration import Calibration, Scored
from mdmf_deploy.bundle.manifest import PROBES, Verification
from mdmf_deploy.bundle.recipe import GateLimits
from mdmf_deploy.detection.detector import Detector
from mdmf_deploy.errors import BankError, BundleError, GateFailed, ShapeMismatch
from mdmf_deploy.mmd.reference import ReferenceReduction, check_self_term, uniform_bank
from mdmf_deploy.runtime import open_engine
from mdmf_deploy.tasks.bank.compress import compress_bundle
from mdmf_deploy.tasks.calibrate import write_calibration
from mdmf_deploy.tasks.verify import (
    Gate,
    Scale,
    compare,
    environment,
    limits_by_figure,
    rank_correlation,
    record,
    scale_in,
    verify_images,
    verify_probes,
)

GENERATOR = np.random.default_rng(0)
SIGNATURES = GENERATOR.standard_normal((40, 4, 8)).astype(np.float32)
NOISY = SIGNATURES + 0.3 * GENERATOR.standard_normal(SIGNATURES.shape).astype(np.float32)
BANK = uniform_bank(
    GENERATOR.standard_normal((64, 8)).astype(np.float32),
    2.0,
    source=np.zeros(64, np.int32),
    sources=(BankSource("a.jpg", "0" * 64),),
    model_sha256="0" * 64,
)


def judged(
    source: np.ndarray,
    exported: np.ndarray,
    limits: GateLimits | None = None,
    *,
    bank: Bank = BANK,
    reference: str = "test",
    scale: Scale | None = None,
) -> Verification:
    return compare(source, exported, NanEngine(), Gate(bank, limits or GateLimits(), reference, scale))


@given(
    arrays(np.float64, st.shared(st.integers(2, 30), key="n"), elements=st.integers(0, 9)),
    arrays(np.float64, st.shared(st.integers(2, 30), key="n"), elements=st.integers(0, 9)),
)
def test_rank_correlation_is_spearmans(a: np.ndarray, b: np.ndarray) -> None:
    if np.ptp(a) and np.ptp(b):
        assert rank_correlation(a, b) == pytest.approx(spearmanr(a, b).statistic, abs=1e-12)
    else:
        assert rank_correlation(a, b) == (1.0 if not np.ptp(a) and not np.ptp(b) else 0.0)


def test_nothing_changed_passes_with_every_figure_at_its_best() -> None:
    gate = judged(SIGNATURES, SIGNATURES.copy())
    assert gate.passed
    assert gate.reasons == ()
    assert (gate.max_signature_error, gate.max_score_change, gate.flipped_verdicts, gate.fpr_change) == (0, 0, 0, 0)
    assert gate.rank_correlation == pytest.approx(1)


def test_the_figures_are_those_of_plain_arithmetic() -> None:
    gate = judged(SIGNATURES, NOISY)
    before = ReferenceReduction()(SIGNATURES, BANK).mmd2
    after = ReferenceReduction()(NOISY, BANK).mmd2
    threshold = np.quantile(before, 0.95)
    assert gate.images == 40
    assert gate.max_signature_error == pytest.approx(np.abs(NOISY - SIGNATURES).max())
    assert gate.mean_signature_error == pytest.approx(np.abs(NOISY - SIGNATURES).mean(), rel=1e-5)
    assert gate.score_spread == pytest.approx(before.std(), rel=1e-4)
    assert gate.threshold == pytest.approx(threshold, rel=1e-4)
    assert gate.max_score_change == pytest.approx(np.abs(after - before).max() / before.std(), rel=1e-4)
    assert gate.rank_correlation == pytest.approx(spearmanr(before, after).statistic)
    assert gate.flipped_verdicts == np.mean((before > threshold) != (after > threshold)) > 0
    assert gate.fpr_change == pytest.approx(abs((after > threshold).mean() - (before > threshold).mean()))


@pytest.mark.parametrize("figure", list(limits_by_figure(GateLimits())))
def test_each_limit_can_fail_the_gate_alone(figure: str) -> None:
    lax = {"max_score_change": 1e9, "min_rank_correlation": -1.0, "max_flipped_verdicts": 1.0, "max_fpr_change": 1.0}
    strict = {"max_score_change": 0.0, "rank_correlation": 1.0, "flipped_verdicts": -1.0, "fpr_change": -1.0}
    name = {
        "max_score_change": "max_score_change",
        "rank_correlation": "min_rank_correlation",
        "flipped_verdicts": "max_flipped_verdicts",
        "fpr_change": "max_fpr_change",
    }[figure]
    assert judged(SIGNATURES, NOISY, GateLimits(**lax)).passed
    gate = judged(SIGNATURES, NOISY, GateLimits(**{**lax, name: strict[figure]}))
    assert not gate.passed
    (reason,) = gate.reasons
    assert reason.startswith(figure)


def test_a_figure_at_its_limit_passes() -> None:
    figures = judged(SIGNATURES, NOISY)
    at = GateLimits(
        max_score_change=figures.max_score_change,
        min_rank_correlation=figures.rank_correlation,
        max_flipped_verdicts=figures.flipped_verdicts,
        max_fpr_change=figures.fpr_change,
    )
    assert judged(SIGNATURES, NOISY, at).passed


def test_a_figure_that_is_not_a_number_fails() -> None:
    lax = GateLimits(max_score_change=1e9)
    gate = judged(SIGNATURES, SIGNATURES + np.float32(1e-6), lax, scale=Scale(np.nan, 0.9))
    assert [reason.split()[:2] for reason in gate.reasons] == [["max_score_change", "nan"]]


def test_values_that_are_not_finite_fail() -> None:
    exported = SIGNATURES.copy()
    exported[3, 1, 2] = np.inf
    gate = judged(SIGNATURES, exported, GateLimits(max_score_change=1e9))
    assert not gate.passed
    assert "not finite" in gate.reasons[0]
    assert np.isfinite(gate.max_signature_error)


def test_copies_of_one_image_leave_no_room_for_a_change() -> None:
    same = np.repeat(SIGNATURES[:1], 5, axis=0)
    assert judged(same, same).passed
    assert not judged(same, same + np.float32(0.1)).passed


@pytest.mark.parametrize("scale", [None, Scale(0.3, 0.9)])
def test_where_all_scores_are_the_same_only_an_unchanged_engine_passes(scale: Scale | None) -> None:
    # Every kernel value but those of a patch with itself underflows to 0.
    blind = uniform_bank(
        BANK.signatures, 1e-3, source=BANK.source, sources=BANK.sources, model_sha256=BANK.model_sha256
    )
    source = SIGNATURES[:, :1]
    gate = judged(source, source + 1, bank=blind, scale=scale)
    assert not gate.passed
    (reason,) = gate.reasons
    assert "cannot tell engines apart" in reason
    assert judged(source, source.copy(), bank=blind, scale=scale).passed


def test_one_image_is_enough_where_the_scale_is_known() -> None:
    one = SIGNATURES[:1]
    assert judged(one, one * np.float32(1 + 1e-6), scale=Scale(0.3, 0.9)).passed


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_source_that_is_not_finite_is_an_error(value: float) -> None:
    source = SIGNATURES.copy()
    source[3, 1, 2] = value
    with pytest.raises(GateFailed, match=r"verification \(itself\): the source's own signatures or scores"):
        judged(source, SIGNATURES, reference="itself")


@pytest.mark.parametrize("change", [{"self_term": -2.0}, {"weights": BANK.weights * 9.0}], ids=str)
def test_a_bank_that_gives_scores_no_image_can_have_is_an_error(change: dict[str, object]) -> None:
    assert judged(SIGNATURES, SIGNATURES).passed
    with pytest.raises(GateFailed, match="are possible; the bank is wrong"):
        judged(SIGNATURES, SIGNATURES, bank=dataclasses.replace(BANK, **change))


def test_a_self_term_that_is_off_by_more_than_rounding_is_an_error() -> None:
    check_self_term(BANK, "b")
    off = dataclasses.replace(BANK, self_term=BANK.self_term + 1e-5)
    with pytest.raises(BankError, match="b: its self term is"):
        check_self_term(off, "b")


@pytest.mark.parametrize("value", [1e20, 3e38, -3e38, np.inf, -np.inf, np.nan])
def test_every_figure_of_a_broken_engine_can_be_read_back(value: float) -> None:
    exported = SIGNATURES.copy()
    exported[3, 1, 2] = value
    gate = judged(SIGNATURES, exported)
    assert not gate.passed
    assert msgspec.json.decode(msgspec.json.encode(gate), type=Verification) == gate


def test_scores_are_compared_image_by_image() -> None:
    crops = [1, 4, 2, 3, 10, 20]
    gate = compare(SIGNATURES, NOISY, NanEngine(), Gate(BANK, GateLimits(), "test"), crops)
    parts = np.split(np.arange(40), np.cumsum(crops)[:-1])
    before, after = (
        np.array([scores[part].mean() for part in parts])
        for scores in (ReferenceReduction()(SIGNATURES, BANK).mmd2, ReferenceReduction()(NOISY, BANK).mmd2)
    )
    assert gate.images == 6
    assert gate.max_signature_error == pytest.approx(np.abs(NOISY - SIGNATURES).max())
    assert gate.score_spread == pytest.approx(before.std(), rel=1e-4)
    assert gate.max_score_change == pytest.approx(np.abs(after - before).max() / before.std(), rel=1e-4)
    assert gate.rank_correlation == pytest.approx(spearmanr(before, after).statistic)


def test_images_are_verified_by_the_plan_of_the_bundle(tiny_bundle: Path, photos: Path, tmp_path: Path) -> None:
    bundle = planned(tiny_bundle, 4, tmp_path / "planned.mdmf")
    with closing(open_engine("onnxruntime", bundle)) as engine:
        ((gate,), _) = verify_images(bundle, [engine], engine, sorted(photos.iterdir())[:6])
    with Detector(bundle.path) as detector:
        scores = [row.score for row in detector.detect(sorted(photos.iterdir())[:6])]
    assert (gate.passed, gate.images) == (True, 6)
    # The bank, of one crop an image, is no scale for them.
    assert gate.score_spread == pytest.approx(np.std(scores), rel=1e-6)


def test_shapes_must_agree() -> None:
    with pytest.raises(ShapeMismatch, match=r"\(40, 4, 8\)"):
        judged(SIGNATURES, SIGNATURES[:, :2])
    with pytest.raises(ShapeMismatch):
        judged(SIGNATURES[:0], SIGNATURES[:0])


def test_a_bundle_verifies_itself_with_nothing_else(tiny_bundle: Path) -> None:
    bundle = Bundle.open(tiny_bundle)
    gate = verify_probes(bundle, open_engine("onnxruntime", bundle))
    assert gate.passed
    assert gate.images == 16
    assert gate.max_signature_error < 1e-5
    assert "onnxruntime" in gate.environment


def test_a_record_names_the_machine_that_made_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mdmf_deploy.tasks.verify.this_cpu", lambda: ("EPYC", ("avx2", "avx512_vnni")))
    monkeypatch.setattr("mdmf_deploy.tasks.verify.cores", lambda: 3)
    found = environment("onnxruntime")
    assert (found["processor"], found["cpu"], found["cores"]) == ("EPYC", "avx2 avx512_vnni", "3")
    assert found.keys() == {"python", "machine", "system", "processor", "cpu", "cores", "numpy", "onnxruntime"}


def test_a_broken_engine_fails_on_the_probes(tiny_bundle: Path) -> None:
    assert not verify_probes(Bundle.open(tiny_bundle), NanEngine()).passed


def test_without_calibration_the_banks_own_images_set_the_scale(tiny_bundle: Path) -> None:
    bundle = Bundle.open(tiny_bundle)
    scale = scale_in(bundle)
    (exported,) = bundle.manifest.verification
    assert isinstance(scale, Scale)
    # Both are spreads of real scores: those held back at export, and those in the bank.
    assert 0.2 < scale.spread / exported.score_spread < 5


def squeezed(bundle: Bundle, path: Path, records: tuple[Verification, ...]) -> Bundle:
    """The bundle with these records and a bank of 5 points."""
    manifest = msgspec.structs.replace(bundle.manifest, verification=records)
    bundle = write_bundle(path / "whole", manifest, bundle.files())
    return compress_bundle(bundle, path / "small", points=5).bundle


def test_a_compressed_bank_takes_the_newest_records_scale(tiny_bundle: Path, tmp_path: Path) -> None:
    bundle = Bundle.open(tiny_bundle)
    (exported, *_) = bundle.manifest.verification
    older, newer, blind = (
        msgspec.structs.replace(exported, score_spread=spread, threshold=2.0 * spread) for spread in (0.25, 0.5, 0.0)
    )
    small = squeezed(bundle, tmp_path, (older, newer, blind))
    # The pass that could not be carried over is gone, and its scale is still there.
    assert small.manifest.verification == ()
    assert scale_in(small) == Scale(0.5, 1.0)
    assert verify_probes(small, open_engine("onnxruntime", small)).score_spread == 0.5
    again = compress_bundle(small, tmp_path / "smaller", points=3).bundle
    assert scale_in(again) == Scale(0.5, 1.0)
    assert scale_in(record(again, older)) == Scale(0.25, 0.5)


def test_a_bank_compressed_before_any_record_keeps_its_scale(tiny_bundle: Path, tmp_path: Path) -> None:
    bundle = Bundle.open(tiny_bundle)
    assert scale_in(squeezed(bundle, tmp_path, ())) == scale_in(bundle)


def test_a_compressed_bank_alone_has_no_scale(tiny_bundle: Path, photos: Path, tmp_path: Path) -> None:
    small = squeezed(Bundle.open(tiny_bundle), tmp_path, ())
    # As banks were written that kept none.
    compression = {name: value for name, value in small.bank.compression.items() if name != "scale"}
    bare = dataclasses.replace(small.bank, compression=compression).to_bytes()
    small = write_bundle(small.path, small.manifest, {**small.files(), "bank.safetensors": bare})
    engine = open_engine("onnxruntime", small)
    with pytest.raises(BankError, match="and `mdmf bank compress` last, or verify with --checkpoint"):
        verify_probes(small, engine)
    # Real images bring a scale of their own.
    ((gate,), _) = verify_images(small, [engine], engine, sorted(photos.iterdir()))
    assert gate.passed
    assert gate.score_spread > 0.0


def test_a_record_is_appended_and_changes_nothing_else(bundle_copy: Path) -> None:
    bundle = Bundle.open(bundle_copy)
    failed = judged(SIGNATURES, SIGNATURES + 1)
    record(bundle, failed)
    again = Bundle.open(bundle_copy)
    assert again.manifest.verification == (*bundle.manifest.verification, failed)
    assert again.bundle_id == bundle.bundle_id
    assert again.manifest.files == bundle.manifest.files
    assert not again.covers("onnxruntime", "fp32")


def test_a_bundle_without_probes_is_an_error(bundle_copy: Path) -> None:
    bundle = Bundle.open(bundle_copy)
    del bundle.manifest.files[PROBES]
    with pytest.raises(BundleError, match=r"probes\.safetensors"):
        verify_probes(bundle, NanEngine())


def test_the_scale_of_a_calibrated_bundle_is_that_of_all_its_sizes(tmp_path: Path) -> None:
    """With 20 images, p <= 0.1 above the second highest score, whatever group it is in."""
    bundle = make_bundle(tmp_path / "b.mdmf")
    images = [Scored(f"{n:064}", n / 10, 10**6 * (1 + 9 * (n % 2)), 0.9) for n in range(20)]
    calibration = Calibration.from_images(
        images, [0.1], 0.5, bundle_id=bundle.bundle_id, measured_on=PAIR, holds_for=[PAIR]
    )
    scale = scale_in(write_calibration(bundle, calibration, bundle.path))
    assert scale.threshold == 1.8
    assert scale.spread == pytest.approx(np.std(np.arange(20) / 10))
