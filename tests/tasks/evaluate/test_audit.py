"""Images that may not be judged."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mdmf_deploy.bundle.recipe import Split, part_of, source_of
from mdmf_deploy.errors import UsageError
from mdmf_deploy.tasks.evaluate.audit import audit, refuse_overlap
from mdmf_deploy.tasks.evaluate.datasets import KnownImage, find_images


def bundle(bank: Iterable[str] = (), calibration: Iterable[str] | None = None) -> Any:
    calibrated = None if calibration is None else SimpleNamespace(image_sha256=tuple(calibration), videos=None)
    return SimpleNamespace(bank=SimpleNamespace(hashes=frozenset(bank)), calibration=calibrated)


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


def test_an_overlap_is_refused_in_one_line_that_counts_it(dataset: Path) -> None:
    images = find_images(dataset)
    hashes = [image.sha256 or "" for image in images]
    refuse_overlap(audit(images, bundle())[1])
    with pytest.raises(UsageError, match=r"3 images .* \(1 are in its bank, 2 in its calibration\), such as .*--allow"):
        refuse_overlap(audit(images, bundle(hashes[:1], hashes[1:3]))[1])


def test_images_of_another_part_are_no_overlap(dataset: Path) -> None:
    images = find_images(dataset)
    split = Split(train=0.5, validation=0.1)
    trained = [image.sha256 or "" for image in images if part_of(image.sha256 or "", split) == "train"]
    assert trained
    _, report = audit(images, bundle(trained), split)
    assert (report.in_bank, report.other_parts >= len(trained)) == ((), True)
    _, report = audit(images, bundle(trained), split, "train")
    assert len(report.in_bank) == len(trained)


def test_a_real_image_beside_two_generators_is_kept_beside_each(dataset: Path) -> None:
    image = find_images(dataset)[0]
    beside = [KnownImage(image.path, image.sha256, None, compared_with=name) for name in "aab"]
    kept, report = audit(beside, bundle())
    assert [one.compared_with for one in kept] == ["a", "b"]
    assert len(report.copies) == 1


def test_videos_of_the_calibration_are_left_out(dataset: Path) -> None:
    images = find_images(dataset)
    made = bundle(calibration=())
    made.calibration.videos = SimpleNamespace(video_sha256=(images[0].sha256,))
    assert audit(images, made)[1].in_calibration == (str(images[0].path),)


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
