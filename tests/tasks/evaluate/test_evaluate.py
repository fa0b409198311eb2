"""The audit of a data set, the conditions, and the tables of an evaluation, with a stand-in for the detector."""

from __future__ import annotations

import hashlib
import io
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import msgspec
import numpy as np
import pytest
from PIL import Image

from mdmf_deploy.bundle.recipe import Split, part_of, source_of
from mdmf_deploy.detection.rows import Row
from mdmf_deploy.errors import UsageError
from mdmf_deploy.tasks.evaluate.evaluate import Condition, KnownImage, audit, find_images, judge, tabulate, unscored


def bundle(bank: Iterable[str] = (), calibration: Iterable[str] | None = None) -> Any:
    calibrated = None if calibration is None else SimpleNamespace(image_sha256=tuple(calibration))
    return SimpleNamespace(bank=SimpleNamespace(hashes=frozenset(bank)), calibration=calibrated)


@pytest.fixture
def dataset(photos: Path, tmp_path: Path) -> Path:
    """A data set of 6 real images, one of them in a sub-folder, 4 of generator a and 2 of generator b."""
    names = sorted(photos.iterdir())
    for folder, files in {
        "real": names[:5],
        "real/deeper": names[5:6],
        "generated/b": names[6:8],
        "generated/a": names[8:],
    }.items():
        (tmp_path / folder).mkdir(parents=True)
        for file in files:
            shutil.copy(file, tmp_path / folder)
    return tmp_path


def row(score: float | None, verdict: Literal["real", "generated", "uncertain", "uncalibrated", "error"]) -> Row:
    return Row(uri="x", score=score, verdict=verdict, status="error" if score is None else "ok")


def pairs(generator: str | None, *rows: Row) -> list[tuple[KnownImage, Row]]:
    return [(KnownImage(Path("x"), "0", generator), row) for row in rows]


def test_finds_classes_by_folder(dataset: Path) -> None:
    images = find_images(dataset)
    assert [image.generator for image in images] == [None] * 6 + ["a"] * 4 + ["b"] * 2
    assert all(s.sha256 == hashlib.sha256(s.path.read_bytes()).hexdigest() for s in images)


def test_folder_names_are_literal_and_hidden_folders_are_no_generators(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (dataset / "generated/a").rename(dataset / "generated/[a]*")
    (dataset / "generated/.cache").mkdir()
    shutil.copytree(dataset, tmp_path / "@set")
    monkeypatch.chdir(tmp_path)
    for folder in (dataset, Path("@set")):
        assert [image.generator for image in find_images(folder)] == [None] * 6 + ["[a]*"] * 4 + ["b"] * 2


def test_a_generator_that_lost_every_image_is_named(dataset: Path) -> None:
    images = find_images(dataset)
    gone = [image.sha256 or "" for image in images if image.generator == "b"]
    kept, report = audit(images, bundle(gone[:1], gone[1:]))
    assert report.left_out == ("b",)
    assert unscored(kept, []) == []
    assert audit(images, bundle(gone[:1]))[1].left_out == ()
    broken = [*pairs(None, row(0.1, "real")), *pairs("a", row(0.2, "real")), *pairs("b", row(None, "error"))]
    whole = [*broken, *pairs("b", row(0.3, "real"))]
    tables = [tabulate("x", judged, resamples=2) for judged in (whole, broken)]
    assert unscored([image for image, _ in whole], tables[:1]) == []
    assert unscored([image for image, _ in whole], tables) == ["b"]


@pytest.mark.parametrize("folders", [[], ["real"], ["generated/a"], ["real", "generated"]])
def test_another_layout_is_an_error(folders: list[str], tmp_path: Path) -> None:
    for folder in folders:
        (tmp_path / folder).mkdir(parents=True)
    with pytest.raises(UsageError, match="expected"):
        find_images(tmp_path)


def test_images_that_shaped_the_bundle_are_left_out(dataset: Path) -> None:
    shutil.copy(dataset / "generated/a/photo08.jpg", dataset / "generated/b/copy.jpg")
    images = find_images(dataset)
    banked, calibrated = images[0], images[7]
    assert banked.sha256
    assert calibrated.sha256
    kept, report = audit(images, bundle([banked.sha256], [calibrated.sha256]))
    assert report.in_bank == (str(banked.path),)
    assert report.in_calibration == (str(calibrated.path),)
    assert report.copies == (str(dataset / "generated/b/copy.jpg"),)
    assert (report.judged, report.other_parts) == (10, 0) == (len(kept), 0)
    assert not {banked, calibrated} & set(kept)


def test_an_image_cannot_be_real_and_generated(dataset: Path) -> None:
    shutil.copy(dataset / "generated/a/photo08.jpg", dataset / "real/other.jpg")
    with pytest.raises(UsageError, match=r"other\.jpg and .*photo08\.jpg are the same bytes"):
        audit(find_images(dataset), bundle())


def test_the_split_keeps_one_part_and_all_of_held_out_generators(dataset: Path) -> None:
    split = Split(train=0.5, validation=0.2, held_out=("b",))
    images = find_images(dataset)
    seen: list[KnownImage] = []
    for part in ("train", "validation", "test"):
        kept, report = audit(images, bundle(), split, part)
        assert all(part_of(image.sha256 or "", split, source_of(image.path, image.generator)) == part for image in kept)
        assert report.other_parts == len(images) - len(kept)
        assert ("b" in {image.generator for image in kept}) == (part == "test")
        seen += kept
    assert sorted(seen, key=str) == sorted(images, key=str)


def test_unreadable_files_are_kept_for_a_row_of_their_own(tmp_path: Path) -> None:
    gone = KnownImage(tmp_path / "gone.jpg", None, None)
    kept, report = audit([gone, gone], bundle(), Split())
    assert kept == [gone, gone]
    assert report.copies == ()


@pytest.mark.parametrize(
    "text", ["", "jpeg", "jpeg:0", "jpeg:101", "jpeg:7.5", "resize:0", "resize:9", "jpeg:75,blur:2"]
)
def test_unknown_conditions_are_errors(text: str) -> None:
    with pytest.raises(UsageError, match="expected 'as is', jpeg:QUALITY"):
        Condition.parse(text)


def test_a_condition_changes_the_image_step_by_step(photos: Path) -> None:
    path = photos / "photo01.png"
    original = np.asarray(Image.open(path))
    assert Condition.parse("as is").source(path) == path
    halved = Condition.parse("resize:0.5").source(path)
    assert isinstance(halved, np.ndarray)
    assert halved.shape == (original.shape[0] // 2, original.shape[1] // 2, 3)
    data = Condition.parse("jpeg:75").source(path)
    assert isinstance(data, bytes)
    expected = io.BytesIO()
    Image.fromarray(original).save(expected, "JPEG", quality=75, subsampling=2)
    assert data == expected.getvalue()
    both = Condition.parse("resize:0.5, jpeg:75").source(path)
    assert isinstance(both, bytes)
    assert Image.open(io.BytesIO(both)).size == (halved.shape[1], halved.shape[0])
    last = Condition.parse("jpeg:10,resize:1").source(path)
    assert isinstance(last, np.ndarray)
    assert not np.array_equal(last, original)


def test_a_file_that_cannot_be_decoded_is_left_to_the_detector(tmp_path: Path) -> None:
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"\xff\xd8\xff")
    assert Condition.parse("jpeg:75").source(broken) == broken


def test_rows_name_the_file_not_the_changed_image(dataset: Path) -> None:
    class Detector:
        def stream(self, sources: Iterable[object]) -> Iterator[Row]:
            for i, source in enumerate(sources):
                assert isinstance(source, bytes)
                yield Row(uri="bytes", sha256=hashlib.sha256(source).hexdigest(), score=float(i))

    images = find_images(dataset)
    judged = list(judge(Detector(), images, Condition.parse("jpeg:50")))  # type: ignore[arg-type]
    assert [image for image, _ in judged] == images
    assert [(row.uri, row.sha256) for _, row in judged] == [(str(s.path), s.sha256) for s in images]
    assert [row.score for _, row in judged] == list(range(12))


def test_tables_show_the_worst_generator_first() -> None:
    real = [row(0.1, "real"), row(0.2, "real"), row(0.3, "uncertain"), row(0.6, "generated")]
    judged = [
        *pairs("easy", row(0.8, "generated"), row(0.9, "generated")),
        *pairs(None, *real),
        *pairs("hard", row(0.05, "uncertain"), row(0.7, "generated"), row(None, "error")),
    ]
    table = tabulate("as is", judged, resamples=50)
    assert list(table.generators) == ["hard", "easy"]
    assert [figure.images for figure in table.generators.values()] == [2, 2]
    assert table.fpr is not None
    assert table.fpr.value == 0.25
    hard, easy = table.generators.values()
    assert hard.tpr
    assert easy.acc
    assert (hard.auroc.value, hard.tpr.value, easy.auroc.value, easy.acc.value) == (0.5, 0.5, 1.0, 0.875)
    assert table.mean == {"auroc": 0.75, "ap": (hard.ap.value + 1) / 2, "acc": 0.75, "tpr": 0.75}
    assert (table.pooled.images, table.pooled.auroc.value, table.worst_auroc) == (4, 0.75, 0.5)
    assert table.unreadable == ("x",)
    assert (table.real_uncertain, hard.uncertain, easy.uncertain, table.pooled.uncertain) == (1, 1, 0, 1)


def test_uncalibrated_verdicts_give_no_rates() -> None:
    judged = [*pairs(None, row(0.1, "uncalibrated")), *pairs("g", row(0.2, "uncalibrated"))]
    table = tabulate("as is", judged, resamples=10)
    assert (table.fpr, table.pooled.acc, table.pooled.tpr, table.mean["tpr"]) == (None, None, None, None)
    assert (table.real_uncertain, table.pooled.uncertain) == (None, None)
    assert table.pooled.auroc.value == 1


def test_sizes_that_no_verdict_can_fire_for_give_no_rates() -> None:
    """An FPR or a TPR of 0 would look like a finding."""
    unsized = msgspec.structs.replace(row(0.2, "uncertain"), reason="no_calibration_for_this_size")
    judged = [*pairs(None, row(0.1, "real"), unsized), *pairs("small", row(0.3, "generated")), *pairs("large", unsized)]
    table = tabulate("as is", judged, resamples=10)
    assert table.fpr is not None
    assert table.generators["small"].tpr is not None
    assert (table.generators["large"].tpr, table.generators["large"].acc, table.mean["tpr"]) == (None, None, None)
    nothing = tabulate("as is", [*pairs(None, unsized), *pairs("small", row(0.3, "generated"))], resamples=10)
    assert (nothing.fpr, nothing.pooled.tpr) == (None, None)


@pytest.mark.parametrize(("generator", "missing"), [(None, "generated"), ("g", "real")])
def test_one_class_alone_cannot_be_judged(generator: str | None, missing: str) -> None:
    with pytest.raises(UsageError, match=f"no {missing} image"):
        tabulate("as is", pairs(generator, row(0.1, "real")))
