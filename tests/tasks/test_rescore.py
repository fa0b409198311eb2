"""Stored signatures give the rows of a full run with any bundle of the same model, and are refused for all others."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from helpers.clips import write_clip
from helpers.crop_plans import planned
from helpers.handmade import calibration_of
from helpers.kept import keep
from helpers.rows import timeless

from mdmf_deploy.bundle.bundle import Bundle, write_bundle
from mdmf_deploy.bundle.manifest import BANK, MODEL
from mdmf_deploy.detection.detector import Detector
from mdmf_deploy.detection.feed import Extraction
from mdmf_deploy.detection.outputs import stored as stored_module
from mdmf_deploy.detection.outputs.done import InputKey
from mdmf_deploy.detection.outputs.signatures import Extractor, SignatureKeeper, StoredBatch
from mdmf_deploy.detection.outputs.stored import StoredSignatures
from mdmf_deploy.detection.rows import Row
from mdmf_deploy.errors import UsageError
from mdmf_deploy.mmd.reference import uniform_bank
from mdmf_deploy.tasks.bank.compress import compress_bundle
from mdmf_deploy.tasks.calibrate import write_calibration
from mdmf_deploy.tasks.rescore import Rescorer


@pytest.fixture(scope="module")
def sources(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Photographs, with files between them that cannot be read."""
    folder = tmp_path_factory.mktemp("broken")
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "cut.jpg").write_bytes((photos / "photo00.jpg").read_bytes()[:400])
    good = sorted(photos.iterdir())
    return [folder / "empty.jpg", *good[:6], folder / "cut.jpg", folder / "nowhere.png", *good[6:]]


@pytest.fixture(scope="module")
def ran(tiny_bundle: Path, sources: list[Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Row]]:
    """The signatures of a run with the tiny bundle in parts of four inputs, and its rows."""
    folder = tmp_path_factory.mktemp("kept") / "signatures"
    return folder, keep(folder, tiny_bundle, sources, part_of=4)


def as_it_is(old: Path, new: Path) -> None:
    write_bundle(new, Bundle.open(old).manifest, Bundle.open(old).files())


def other_bank(old: Path, new: Path) -> None:
    bundle = Bundle.open(old)
    chosen = np.arange(0, len(bundle.bank.signatures), 3)
    bank = uniform_bank(
        bundle.bank.signatures[chosen] + np.float32(0.25),
        bundle.bank.sigma,
        source=bundle.bank.source[chosen],
        sources=bundle.bank.sources,
        model_sha256=bundle.bank.model_sha256,
    )
    write_bundle(new, bundle.manifest, {**bundle.files(), BANK: bank.to_bytes()})


def other_calibration(old: Path, new: Path) -> None:
    as_it_is(old, new)
    with Detector(new, "onnxruntime") as detector:
        scores = [row.score or 0.0 for row in detector.detect(sorted(old.parent.glob("*.jpg")))]
    write_calibration(Bundle.open(new), calibration_of(scores, [0.25], 0.6, Bundle.open(new).bundle_id), new)


def compressed(old: Path, new: Path) -> None:
    compress_bundle(Bundle.open(old), new, points=12)


def rescored(folder: Path, bundle: Path, **options: object) -> list[Row]:
    with Rescorer(StoredSignatures.open(str(folder)), Bundle.open(bundle), **options) as rescorer:  # type: ignore[arg-type]
        return [row for rows in rescorer.rows() for row in rows]


@pytest.mark.parametrize("change", [as_it_is, other_bank, other_calibration, compressed])
def test_rows_are_those_of_a_full_run(
    ran: tuple[Path, list[Row]], tiny_bundle: Path, sources: list[Path], tmp_path: Path, change: Callable[..., None]
) -> None:
    folder, before = ran
    new = tmp_path / "new.mdmf"
    change(tiny_bundle, new)
    with Detector(new, "onnxruntime", batch_size=3) as detector:
        full = detector.detect(sources)
    rows = rescored(folder, new, threads=2)
    assert timeless(rows) == timeless(full)
    assert [row.error_code for row in rows if row.status == "error"] == ["empty", "truncated", "missing"]
    assert [(row.ms_decode, row.ms_engine) for row in rows] == [(row.ms_decode, row.ms_engine) for row in before]
    if change is other_calibration:
        assert len({row.verdict for row in rows}) > 2
    if change in (other_bank, compressed):
        assert all(a.score != b.score for a, b in zip(rows, before, strict=True) if a.status == "ok")


def test_rows_do_not_depend_on_how_many_are_read_at_a_time(
    ran: tuple[Path, list[Row]], tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = rescored(ran[0], tiny_bundle)
    monkeypatch.setattr(stored_module, "BATCH_BYTES", 1)
    assert timeless(rescored(ran[0], tiny_bundle, threads=1)) == timeless(whole) == timeless(ran[1])


def test_several_crops_and_every_frame_of_a_video(tiny_bundle: Path, photos: Path, tmp_path: Path) -> None:
    pytest.importorskip("cv2")
    new = planned(tiny_bundle, 4, tmp_path / "plan.mdmf").path
    sources = [write_clip(tmp_path / "clip.mp4", size=(130, 80)), *sorted(photos.iterdir())[:3]]
    keep(tmp_path / "kept", new, sources, frames=3)
    for each_frame in (False, True):
        with Detector(new, "onnxruntime", frames=3) as detector:
            full = detector.detect(sources, each_frame=each_frame)
        assert timeless(rescored(tmp_path / "kept", new, each_frame=each_frame)) == timeless(full)
        assert len(full) == (6 if each_frame else 4)


def test_other_crops_than_the_plan_withhold_verdicts(tiny_bundle: Path, photos: Path, tmp_path: Path) -> None:
    sources = sorted(photos.iterdir())[:2]
    other_calibration(tiny_bundle, tmp_path / "new.mdmf")
    keep(tmp_path / "kept", tiny_bundle, sources, crops=2)
    with Detector(tmp_path / "new.mdmf", "onnxruntime", crops=2) as detector:
        full = detector.detect(sources)
    rows = rescored(tmp_path / "kept", tmp_path / "new.mdmf")
    assert {row.reason for row in rows} == {"other_crops"}
    assert timeless(rows) == timeless(full)


def test_half_precision_changes_scores_alone_and_little(
    ran: tuple[Path, list[Row]], tiny_bundle: Path, sources: list[Path], tmp_path: Path
) -> None:
    keep(tmp_path / "kept", tiny_bundle, sources, "fp16")
    rows = rescored(tmp_path / "kept", tiny_bundle)
    scores = [(a.score, b.score) for a, b in zip(rows, ran[1], strict=True) if a.score is not None and b.score]
    # The kernel's slope is at most 1 / sigma, and a value is off by at most 2^-11 of itself.
    assert 0 < max(abs(a - b) for a, b in scores) < 2e-3
    blank = {"score": None, "p_value": None, "contributions": None}
    assert [msgspec.structs.replace(row, **blank) for row in timeless(rows)] == [
        msgspec.structs.replace(row, **blank) for row in timeless(ran[1])
    ]


def test_another_model_or_plan_is_refused_with_both_names(
    ran: tuple[Path, list[Row]], tiny_bundle: Path, tmp_path: Path
) -> None:
    manifest = Bundle.open(tiny_bundle).manifest
    files = Bundle.open(tiny_bundle).files()
    changed = msgspec.structs.replace(manifest.preprocessing, mean=(0.4, 0.4, 0.4), std=(0.5, 0.5, 0.5))
    write_bundle(tmp_path / "scaled.mdmf", msgspec.structs.replace(manifest, preprocessing=changed), files)
    graph = onnx.load(tiny_bundle / MODEL)
    graph.producer_version = "another"
    write_bundle(tmp_path / "model.mdmf", manifest, {**files, MODEL: graph.SerializeToString()})
    planned(tiny_bundle, 4, tmp_path / "plan.mdmf")
    card = msgspec.structs.replace(manifest.model, opset=99)
    write_bundle(tmp_path / "card.mdmf", msgspec.structs.replace(manifest, model=card), files)
    for name, words in {
        "scaled": ["(0.4, 0.4, 0.4) here", "std (0.229, 0.224, 0.225) there, (0.5, 0.5, 0.5) here"],
        "model": [f"model {manifest.model_sha256[:12]} there, "],
        "plan": ["crops 1 there, 4 here"],
        "card": [f"opset {manifest.model.opset} there, 99 here"],
    }.items():
        with pytest.raises(UsageError) as refused:
            rescored(ran[0], tmp_path / f"{name}.mdmf")
        for word in [*words, str(ran[0]), f"{name}.mdmf"]:
            assert word in str(refused.value)


def facts(n: int, **changes: object) -> Extraction:
    values = np.random.default_rng(n).standard_normal((1, 4, 8)).astype(np.float32)
    found = Extraction(f"{n}.jpg", f"{n:064}", signatures=values, width=100, height=100, evidence=0.9)
    return replace(found, **changes)  # type: ignore[arg-type]


def put(folder: Path, bundle: Path, extractions: list[Extraction], gpu: str | None = None) -> None:
    """Store extractions as one more part, as if this GPU had made them."""
    with Detector(bundle, "onnxruntime") as detector:
        extractor = msgspec.structs.replace(Extractor.of(detector.bundle, detector.runtime, "fp32"), gpu=gpu)
        with SignatureKeeper(str(folder), detector.settings(), extractor, resume=True) as keeper:
            for extraction in extractions:
                keeper.extracted(extraction)
                keeper.add(InputKey(extraction.uri, 0, None, None))


def test_signatures_that_are_not_finite_get_no_verdict(tiny_bundle: Path, tmp_path: Path) -> None:
    broken = np.full((1, 4, 8), np.nan, np.float32)
    put(tmp_path, tiny_bundle, [facts(0), facts(1, signatures=broken), facts(2)])
    rows = rescored(tmp_path, tiny_bundle)
    assert [row.error_code for row in rows] == [None, "not_finite", None]


def test_verification_on_a_gpu_counts_where_that_gpu_extracted(tiny_bundle: Path, tmp_path: Path) -> None:
    """This machine has no such GPU, or another one."""
    new = tmp_path / "new.mdmf"
    other_calibration(tiny_bundle, new)
    bundle = Bundle.open(new)
    records = [
        msgspec.structs.replace(record, environment={**record.environment, "gpu": "Fine GPU"})
        for record in bundle.manifest.verification
    ]
    write_bundle(new, msgspec.structs.replace(bundle.manifest, verification=tuple(records)), bundle.files())
    for n, gpu in enumerate(("Fine GPU", "Other GPU", None)):
        put(tmp_path / "kept", tiny_bundle, [facts(n)], gpu)
    rows = rescored(tmp_path / "kept", new)
    assert [row.reason == "not_verified" for row in rows] == [False, True, True]


def test_the_order_is_that_in_which_runs_stored(
    ran: tuple[Path, list[Row]], tiny_bundle: Path, sources: list[Path], tmp_path: Path
) -> None:
    """Names of parts are hashes, so that the order of names is another one."""
    for n in range(0, 12, 2):
        keep(tmp_path / "kept", tiny_bundle, sources[n : n + 2], resume=bool(n))
    assert timeless(rescored(tmp_path / "kept", tiny_bundle)) == timeless(ran[1][:12])


def test_a_part_that_was_replaced_gives_no_rows(tiny_bundle: Path, tmp_path: Path) -> None:
    """As after a kill between writing a part anew and removing the old one."""
    put(tmp_path, tiny_bundle, [facts(0), facts(1)], "Fine GPU")
    [old] = tmp_path.glob("part-*")
    data = old.read_bytes()
    put(tmp_path, tiny_bundle, [facts(2)])
    with Detector(tiny_bundle, "onnxruntime") as detector:
        extractor = Extractor.of(detector.bundle, detector.runtime, "fp32")
        with SignatureKeeper(str(tmp_path), detector.settings(), extractor, resume=True) as keeper:
            keeper.drop([("0.jpg", 0)])
    old.write_bytes(data)
    assert sorted(row.uri for row in rescored(tmp_path, tiny_bundle)) == ["1.jpg", "2.jpg"]
    # The part that took its place still says which GPU extracted.
    assert {part.extractor.gpu for part in StoredSignatures.open(str(tmp_path)).parts} == {"Fine GPU", None}


@pytest.mark.parametrize("at", ["end", "signatures"])
def test_a_damaged_part_is_named_and_nothing_of_it_is_judged(tiny_bundle: Path, tmp_path: Path, at: str) -> None:
    put(tmp_path, tiny_bundle, [facts(n) for n in range(20)])
    [part] = tmp_path.glob("part-*")
    data = part.read_bytes()
    place = data.index(facts(7).signatures.tobytes()[:16])  # type: ignore[union-attr]
    flipped = data[:place] + bytes([data[place] ^ 0x40]) + data[place + 1 :]
    part.write_bytes(data[: len(data) // 2] if at == "end" else flipped)
    with pytest.raises(UsageError, match=f"{part.name}: cannot be read .*--resume"):
        rescored(tmp_path, tiny_bundle)


def test_other_folders_are_refused(tiny_bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no folder of signatures"):
        rescored(tmp_path / "nowhere", tiny_bundle)
    put(tmp_path / "empty", tiny_bundle, [])
    with pytest.raises(UsageError, match="holds no signatures yet"):
        rescored(tmp_path / "empty", tiny_bundle)
    put(tmp_path / "kept", tiny_bundle, [facts(0)])
    with pytest.raises(UsageError, match="reduction 'gpu' is not known"):
        rescored(tmp_path / "kept", tiny_bundle, reduction="gpu")


def test_a_reader_that_stops_early_leaves_no_thread(
    ran: tuple[Path, list[Row]], tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if parts are slow to come."""
    batches = StoredSignatures.batches

    def slowly(self: StoredSignatures) -> Iterator[tuple[Extractor, StoredBatch]]:
        for n, batch in enumerate(batches(self)):
            time.sleep(0.3 * (n > 1))
            yield batch

    monkeypatch.setattr(StoredSignatures, "batches", slowly)
    before = threading.active_count()
    with Rescorer(StoredSignatures.open(str(ran[0])), Bundle.open(tiny_bundle)) as rescorer:
        rows = rescorer.rows()
        next(rows)
        rows.close()
        assert threading.active_count() == before
