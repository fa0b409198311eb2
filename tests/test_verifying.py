from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import spearmanr

from mdmf_deploy.bank import Bank, BankSource
from mdmf_deploy.bundle import PROBES, Bundle
from mdmf_deploy.errors import BundleError, ShapeMismatch
from mdmf_deploy.mmd.reference import ReferenceReduction
from mdmf_deploy.recipe import Limits
from mdmf_deploy.runtime import open_engine
from mdmf_deploy.verifying import Scale, compare, limits_by_figure, rank_correlation, record, scale_in, verify_probes

GENERATOR = np.random.default_rng(0)
SIGNED = GENERATOR.standard_normal((40, 4, 8)).astype(np.float32)
BANK = Bank.from_signatures(
    GENERATOR.standard_normal((64, 8)).astype(np.float32),
    2.0,
    source=np.zeros(64, np.int32),
    sources=(BankSource("a.jpg", "0" * 64),),
    model_sha256="0" * 64,
)


class Fake:
    name = "onnxruntime"
    precision = "fp32"

    def __call__(self, images: np.ndarray) -> np.ndarray:
        return np.full((len(images), 4, 8), np.nan, np.float32)

    def close(self) -> None:
        pass


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
    gate = compare(SIGNED, SIGNED.copy(), BANK, Limits(), Fake(), reference="itself")
    assert gate.passed
    assert gate.reasons == ()
    assert (gate.max_signature_error, gate.max_score_change, gate.flipped_verdicts, gate.fpr_change) == (0, 0, 0, 0)
    assert gate.rank_correlation == pytest.approx(1)


def test_the_figures_are_those_of_plain_arithmetic() -> None:
    exported = SIGNED + 0.3 * GENERATOR.standard_normal(SIGNED.shape).astype(np.float32)
    gate = compare(SIGNED, exported, BANK, Limits(), Fake(), reference="noise")
    before = ReferenceReduction()(SIGNED, BANK).mmd2
    after = ReferenceReduction()(exported, BANK).mmd2
    threshold = np.quantile(before, 0.95)
    assert gate.images == 40
    assert gate.max_signature_error == pytest.approx(np.abs(exported - SIGNED).max())
    assert gate.mean_signature_error == pytest.approx(np.abs(exported - SIGNED).mean(), rel=1e-5)
    assert gate.score_spread == pytest.approx(before.std(), rel=1e-4)
    assert gate.threshold == pytest.approx(threshold, rel=1e-4)
    assert gate.max_score_change == pytest.approx(np.abs(after - before).max() / before.std(), rel=1e-4)
    assert gate.rank_correlation == pytest.approx(spearmanr(before, after).statistic)
    assert gate.flipped_verdicts == np.mean((before > threshold) != (after > threshold)) > 0
    assert gate.fpr_change == pytest.approx(abs((after > threshold).mean() - (before > threshold).mean()))


@pytest.mark.parametrize("figure", list(limits_by_figure(Limits())))
def test_each_limit_can_fail_the_gate_alone(figure: str) -> None:
    exported = SIGNED + 0.3 * GENERATOR.standard_normal(SIGNED.shape).astype(np.float32)
    lax = {"max_score_change": 1e9, "min_rank_correlation": -1.0, "max_flipped_verdicts": 1.0, "max_fpr_change": 1.0}
    strict = {"max_score_change": 0.0, "rank_correlation": 1.0, "flipped_verdicts": -1.0, "fpr_change": -1.0}
    name = {
        "max_score_change": "max_score_change",
        "rank_correlation": "min_rank_correlation",
        "flipped_verdicts": "max_flipped_verdicts",
        "fpr_change": "max_fpr_change",
    }[figure]
    assert compare(SIGNED, exported, BANK, Limits(**lax), Fake(), reference="").passed
    gate = compare(SIGNED, exported, BANK, Limits(**{**lax, name: strict[figure]}), Fake(), reference="")
    assert not gate.passed
    (reason,) = gate.reasons
    assert reason.startswith(figure)


def test_values_that_are_not_finite_fail_and_can_still_be_recorded() -> None:
    exported = SIGNED.copy()
    exported[3, 1, 2] = np.inf
    gate = compare(SIGNED, exported, BANK, Limits(max_score_change=1e9), Fake(), reference="overflow")
    assert not gate.passed
    assert "not finite" in gate.reasons[0]
    assert np.isfinite(gate.max_signature_error)


def test_copies_of_one_image_leave_no_room_for_a_change() -> None:
    same = np.repeat(SIGNED[:1], 5, axis=0)
    assert compare(same, same, BANK, Limits(), Fake(), reference="").passed
    assert not compare(same, same + np.float32(0.1), BANK, Limits(), Fake(), reference="").passed


def test_shapes_must_agree() -> None:
    with pytest.raises(ShapeMismatch, match=r"\(40, 4, 8\)"):
        compare(SIGNED, SIGNED[:, :2], BANK, Limits(), Fake(), reference="")
    with pytest.raises(ShapeMismatch):
        compare(SIGNED[:0], SIGNED[:0], BANK, Limits(), Fake(), reference="")


def test_a_bundle_verifies_itself_with_nothing_else(tiny_bundle: Path) -> None:
    bundle = Bundle.open(tiny_bundle)
    gate = verify_probes(bundle, open_engine("onnxruntime", bundle))
    assert gate.passed
    assert gate.images == 16
    assert gate.max_signature_error < 1e-5
    assert "onnxruntime" in gate.environment


def test_a_broken_engine_fails_on_the_probes(tiny_bundle: Path) -> None:
    assert not verify_probes(Bundle.open(tiny_bundle), Fake()).passed


def test_without_calibration_the_banks_own_images_set_the_scale(tiny_bundle: Path) -> None:
    bundle = Bundle.open(tiny_bundle)
    scale = scale_in(bundle)
    (exported,) = bundle.manifest.verification
    assert isinstance(scale, Scale)
    # Both are spreads of real scores: those held back at export, and those in the bank.
    assert 0.2 < scale.spread / exported.score_spread < 5


def test_a_record_is_appended_and_changes_nothing_else(bundle_copy: Path) -> None:
    bundle = Bundle.open(bundle_copy)
    failed = compare(SIGNED, SIGNED + 1, BANK, Limits(), Fake(), reference="failed")
    record(bundle, failed)
    again = Bundle.open(bundle_copy)
    assert again.manifest.verification == (*bundle.manifest.verification, failed)
    assert again.bundle_id == bundle.bundle_id
    assert again.manifest.files == bundle.manifest.files
    assert not again.manifest.covers("onnxruntime", "fp32")


def test_a_bundle_without_probes_says_so(bundle_copy: Path) -> None:
    bundle = Bundle.open(bundle_copy)
    del bundle.manifest.files[PROBES]
    with pytest.raises(BundleError, match=r"probes\.safetensors"):
        verify_probes(bundle, Fake())
