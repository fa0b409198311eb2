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
from mdmf_deploy.tasks.evaluate.audit import audit
from mdmf_deploy.tasks.evaluate.datasets import KnownImage, find_images


def bundle(bank: Iterable[str] = (), calibration: Iterable[str] | None = None) -> Any:
    calibrated = None if calibration is None else SimpleNamespace(image_sha256=tuple(calibration))
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
