"""Compressing a bundle: what it says about bandwidths, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest
from handmade import GRAPH, WIDTH, make_bundle, manifest, record

from mdmf_deploy.bundle.bank import BankSource
from mdmf_deploy.bundle.bundle import Bundle, write_bundle
from mdmf_deploy.bundle.calibration import Calibration, Pair
from mdmf_deploy.bundle.manifest import BANK, CALIBRATION, MODEL
from mdmf_deploy.compressing import compress_bundle
from mdmf_deploy.errors import BankError
from mdmf_deploy.mmd.reference import uniform_bank


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
    pair = Pair("onnxruntime", "fp32")
    by_hash = {f"{place:064}": score for place, score in enumerate(scores)}
    calibration = Calibration.from_scores(
        by_hash, [0.5], 0.5, bundle_id=bundle.bundle_id, measured_on=pair, holds_for=[pair]
    )
    return write_bundle(path, bundle.manifest, {**bundle.files(), CALIBRATION: calibration.to_bytes()})


@pytest.mark.parametrize(
    ("sigma", "words"), [(1e-3, "too small for this bank: its"), (1e4, "too large for this bank: its"), (3.0, None)]
)
def test_a_bandwidth_that_says_nothing_is_one_line(tmp_path: Path, sigma: float, words: str | None) -> None:
    report = compress_bundle(bundle_at(tmp_path / "b", sigma), tmp_path / "c", points=10)
    assert [words in warning for warning in report.warnings] == ([True] if words else [])


def test_images_that_all_score_the_same_set_no_scale(tmp_path: Path) -> None:
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


def test_what_was_carried_and_what_was_lost_is_told(tmp_path: Path) -> None:
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
    assert carried.startswith("1 verification records carried over, their score change raised by the certificate")
    assert carried.endswith(f"rank, flips and rate not measured again: {verify} does")
    assert dropped == f"1 verification records no longer hold; run {verify}"


def test_a_bank_that_stays_as_it_is_says_why(tmp_path: Path) -> None:
    # Signatures that do not see each other: none can stand for another.
    bundle = bundle_at(tmp_path / "b", 1e-3, (0.01, 0.25))
    few = compress_bundle(bundle, tmp_path / "c", max_error=0.01)
    many = compress_bundle(bundle, tmp_path / "d", points=80)
    assert few.points == many.points == 80
    assert few.notes == ("the bank stays as it is: none of fewer than its 80 signatures certifies so small a change",)
    assert many.notes == ("the bank stays as it is: it has 80 signatures, no more than asked for",)
    assert few.bundle.bundle_id == many.bundle.bundle_id == bundle.bundle_id


@pytest.mark.parametrize(
    ("sigma", "candidates", "looked_at", "remedy"),
    [
        (3.0, 3, 100, "more --candidates"),
        (3.0, 3, 3, "a larger --max-error"),
        (3.0, 99, 100, "a larger --max-error"),
        # The few that are named explain all others.
        (1e4, 70, 100, "a larger --max-error"),
    ],
)
def test_more_candidates_are_advised_only_where_there_are_more(
    tmp_path: Path, sigma: float, candidates: int, looked_at: int, remedy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("fitting", "bundles"):
        monkeypatch.setattr(f"mdmf_deploy.compressing.{module}.SAMPLE", looked_at)
    bundle = bundle_at(tmp_path / "b", sigma, (0.01, 0.25))
    with pytest.raises(BankError, match=f"give {remedy}$"):
        compress_bundle(bundle, tmp_path / "c", max_error=1e-9, candidates=candidates)
