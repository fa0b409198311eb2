"""A bank depends on its images alone, not on their order, their copies, or their folders."""

from __future__ import annotations

import random
import tracemalloc
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from helpers.handmade import FakeExtraction, bank, broken, extracted, make_bundle, manifest
from hypothesis import given
from hypothesis import strategies as st

from mdmf_deploy.bundle.bank import Bank
from mdmf_deploy.bundle.bundle import Bundle, write_bundle
from mdmf_deploy.bundle.manifest import BANK, CALIBRATION
from mdmf_deploy.errors import BankError, BundleError, UsageError
from mdmf_deploy.mmd.compress.stream import Gathering
from mdmf_deploy.mmd.reference import ReferenceReduction
from mdmf_deploy.tasks.bank.build import Duplicate, gather_bank, swap_bank
from mdmf_deploy.tasks.bank.compress import compress_bundle


def images(count: int, patches: int = 4) -> list[FakeExtraction]:
    return [extracted(f"/home/me/reals/{place % 3}/{place}.png", patches) for place in range(count)]


@given(order=st.randoms(use_true_random=False), count=st.integers(1, 12), most=st.integers(0, 60))
def test_order_does_not_matter_to_a_single_byte(order: random.Random, count: int, most: int) -> None:
    shuffled = images(count)
    order.shuffle(shuffled)
    assert gather_bank(manifest(), shuffled, most).bank.to_bytes() == (
        gather_bank(manifest(), images(count), most).bank.to_bytes()
    )


@given(count=st.integers(1, 30), patches=st.integers(1, 9), most=st.integers(1, 200))
def test_thinning_is_even_and_keeps_true_signatures(count: int, patches: int, most: int) -> None:
    taken = images(count, patches)
    report = gather_bank(manifest(), taken, most)
    assert len(report.bank.signatures) == min(most, count * patches)
    assert (report.images, report.signatures) == (count, count * patches)
    # An image may be left with none. It is then no longer in the bank.
    shares = np.bincount(report.bank.source)
    assert len(shares) == len(report.bank.sources) == min(count, most)
    assert shares.min() >= 1
    assert shares.max() - shares.min() <= 1
    by_hash = {image.sha256: image.signatures[0] for image in taken}
    for row, place in zip(report.bank.signatures, report.bank.source, strict=True):
        assert (by_hash[report.bank.sources[place].sha256] == row).all(axis=1).any()
    assert len(np.unique(report.bank.signatures, axis=0)) == len(report.bank.signatures)


def test_thinning_does_not_take_the_first_patches() -> None:
    report = gather_bank(manifest(), images(40, patches=9), 40)
    first = {extracted(f"{place}.png", 9).signatures[0, 0].tobytes() for place in range(40)}
    assert sum(row.tobytes() in first for row in report.bank.signatures) < 20


def test_memory_is_that_of_the_signatures_kept() -> None:
    """200 images have 1.28 MB of signatures. A bank of 100 signatures takes far less."""
    stream = (extracted(f"{place}.png", patches=400) for place in range(200))
    tracemalloc.start()
    try:
        report = gather_bank(manifest(), stream, 100)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (len(report.bank.signatures), report.signatures) == (100, 80_000)
    assert peak < 600_000


def test_without_a_limit_every_signature_is_kept() -> None:
    report = gather_bank(manifest(), images(9), 0)
    assert len(report.bank.signatures) == 36
    for place, source in enumerate(report.bank.sources):
        original = next(image for image in images(9) if image.sha256 == source.sha256)
        assert np.array_equal(report.bank.signatures[report.bank.source == place], original.signatures[0])


def test_the_signatures_of_all_crops_count() -> None:
    taken = [extracted(f"/r/{place}.png", crops=place + 1) for place in range(3)]
    report = gather_bank(manifest(), taken)
    assert (report.images, report.signatures) == (3, 24)
    wanted = np.concatenate([image.signatures.reshape(24 // 6 * (n + 1), -1) for n, image in enumerate(taken)])
    assert {row.tobytes() for row in report.bank.signatures} == {row.tobytes() for row in wanted}


def test_copies_count_once_and_are_reported() -> None:
    copies = [extracted("/r/b/1.png"), extracted("/r/a/1.png"), extracted("/r/c/2.png"), extracted("/r/c/1.png")]
    report = gather_bank(manifest(), copies)
    assert report.duplicates == (Duplicate("/r/b/1.png", "/r/a/1.png"), Duplicate("/r/c/1.png", "/r/a/1.png"))
    assert report.bank.to_bytes() == gather_bank(manifest(), reversed(copies)).bank.to_bytes()
    assert len(report.bank.sources) == 2


def test_unreadable_images_are_listed_and_cost_nothing_else() -> None:
    report = gather_bank(manifest(), [broken("/r/x.png"), *images(2), broken("/r/y.png")])
    assert [error.code for error in report.errors] == ["truncated", "truncated"]
    assert report.errors[0].uri == "/r/x.png"
    assert report.bank.to_bytes() == gather_bank(manifest(), images(2)).bank.to_bytes()


def test_a_bank_does_not_carry_its_makers_folders() -> None:
    report = gather_bank(manifest(), images(4))
    assert {source.uri for source in report.bank.sources} == {f"reals/{i % 3}/{i}.png" for i in range(4)}


@pytest.mark.parametrize("uris", [["a.png", "b.png"], ["x/a.png", "/y/b.png"], ["/a.png"], ["../q/a.png", "b.png"]])
def test_any_uri_will_do(uris: list[str]) -> None:
    report = gather_bank(manifest(), [extracted(uri) for uri in uris])
    assert len({source.uri for source in report.bank.sources}) == len(uris)


@pytest.mark.parametrize("inputs", [[], [broken("a.png")]])
def test_nothing_readable_is_an_error(inputs: list[FakeExtraction]) -> None:
    with pytest.raises(BankError, match="none of the"):
        gather_bank(manifest(), inputs)


def test_a_bank_whose_self_term_takes_hours_says_what_to_do_instead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mdmf_deploy.tasks.bank.build.MAX_EXACT", 11)
    with pytest.raises(BankError, match=r"12 signatures takes hours.* `mdmf bank build --points 2048` compress"):
        gather_bank(manifest(), images(3))
    assert len(gather_bank(manifest(), images(3), 11).bank.signatures) == 11
    assert len(gather_bank(manifest(), images(3), points=5).bank.signatures) == 5


def without_scale(bank: Bank) -> bytes:
    """The bank's bytes but for the scale of real scores, which both measure in their own way."""
    compression = {name: value for name, value in bank.compression.items() if name != "scale"}
    return replace(bank, compression=compression).to_bytes()


@pytest.mark.parametrize("points", [1, 17, 47, 48, 60])
def test_points_of_a_bank_that_fits_into_a_block_are_those_of_bank_compress(tmp_path: Path, points: int) -> None:
    exact = swap_bank(make_bundle(tmp_path / "b"), gather_bank(manifest(), images(12)).bank, tmp_path / "b")
    compressed = without_scale(compress_bundle(exact, tmp_path / "c", points=points).bundle.bank)
    for seed in range(3):
        shuffled = images(12)
        random.Random(seed).shuffle(shuffled)
        report = gather_bank(manifest(), shuffled, points=points)
        assert without_scale(report.bank) == compressed
        assert (report.images, report.signatures) == (12, 48)


def test_a_bank_of_few_points_keeps_the_scale_of_its_images_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mdmf_deploy.tasks.bank.build.SCALE_IMAGES", 7)
    taken = images(30)
    built = gather_bank(manifest(), taken, points=20).bank
    chosen = sorted(taken, key=lambda image: image.sha256)[:7]
    scores = ReferenceReduction()(np.concatenate([image.signatures for image in chosen]), built).mmd2
    expected = [np.std(scores), np.quantile(scores, 0.95)]
    assert built.compression["scale"] == pytest.approx(expected, abs=1e-6)
    taken.reverse()
    assert gather_bank(manifest(), taken, points=20).bank.compression["scale"] == built.compression["scale"]


def test_copies_and_broken_images_count_once_in_any_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mdmf_deploy.tasks.bank.build.Gathering", partial(Gathering, block=20, per_block=5))
    taken = images(30)
    met = [*taken, broken("/home/me/reals/x.png"), extracted("/home/me/reals/0/0 again.png"), *taken]
    copied = [*met, taken[0]._replace(uri="/home/me/reals/0/-.png")]
    report = gather_bank(manifest(), copied, points=5)
    once = gather_bank(manifest(), [*taken, met[31]], points=5)
    assert report.bank.signatures.tobytes() == once.bank.signatures.tobytes()
    assert (report.images, report.signatures, len(report.errors)) == (31, 124, 1)
    assert len(report.duplicates) == 31
    assert len(report.bank.signatures) <= 5 < len(report.bank.sources) == 31
    assert {source.uri for source in report.bank.sources} >= {"reals/0/-.png", "reals/1/1.png"}
    by_hash = {image.sha256: image.signatures[0] for image in [*taken, met[31]]}
    for row, place in zip(report.bank.signatures, report.bank.source, strict=True):
        assert (by_hash[report.bank.sources[place].sha256] == row).all(axis=1).any()


def test_thinning_and_points_exclude_each_other() -> None:
    with pytest.raises(UsageError, match="either --points or --max-signatures"):
        gather_bank(manifest(), images(3), 8, points=4)
    with pytest.raises(BankError, match="points: expected 1 or more, got 0"):
        gather_bank(manifest(), images(3), points=0)


def test_signatures_that_are_not_finite_are_refused() -> None:
    bad = extracted("a.png")._replace(signatures=np.full((1, 4, 4), np.nan, np.float32))
    for points in (None, 2):
        with pytest.raises(BankError, match="not finite"):
            gather_bank(manifest(), [bad], points=points)


def test_swapping_keeps_the_model_and_drops_calibration_and_records(tmp_path: Path) -> None:
    old = make_bundle(tmp_path / "b")
    old = write_bundle(old.path, old.manifest, {**old.files(), CALIBRATION: b"{}", "probes.safetensors": b"p"})
    new = swap_bank(old, gather_bank(manifest(), images(3)).bank, tmp_path / "new")
    opened = Bundle.open(new.path)
    assert set(opened.manifest.files) == {"model.onnx", "probes.safetensors", BANK}
    assert opened.manifest.model_sha256 == old.manifest.model_sha256
    assert opened.bundle_id != old.bundle_id
    assert opened.calibration is None
    assert opened.covered == ()
    assert len(opened.bank.sources) == 3
    assert Bundle.open(old.path).bundle_id == old.bundle_id


def test_a_bank_of_another_model_is_not_swapped_in(tmp_path: Path) -> None:
    old = make_bundle(tmp_path / "b")
    with pytest.raises(BundleError, match="another model"):
        swap_bank(old, bank(model_sha256="1" * 64), old.path)
    assert Bundle.open(old.path).bundle_id == old.bundle_id
