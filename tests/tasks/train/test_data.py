"""Splits never leak, and the folders of images say their source and kind."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers.training_data import generated, paths
from hypothesis import given
from hypothesis import strategies as st

from mdmf_deploy.bundle.recipe import Split
from mdmf_deploy.errors import UsageError
from mdmf_deploy.tasks.train.data import LabelledImage, PixelCache, collect, spread

SPLIT = Split(train=0.5, validation=0.4)


def test_copies_count_once_and_never_straddle_parts(training_folder: Path, tmp_path: Path) -> None:
    real = paths(training_folder / "real")
    copies = [Path(shutil.copy(path, tmp_path / f"copy-{path.name}")) for path in real]
    dataset = collect([*real, *copies], generated(training_folder), SPLIT)
    alone = collect(real, generated(training_folder), SPLIT)
    assert dataset.hash() == alone.hash()
    backwards = collect(real[::-1], generated(training_folder), SPLIT)
    assert set(map(part_and_hash, backwards.images)) == set(map(part_and_hash, alone.images))


def part_and_hash(image: LabelledImage) -> tuple[str, str]:
    return image.part, image.sha256


def test_an_unreadable_file_is_left_out_and_reported(training_folder: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"\x89PNG\r\n\x1a\nnot much more")
    dataset = collect([*paths(training_folder / "real"), broken], generated(training_folder), SPLIT)
    assert [path for path, _ in dataset.unreadable] == [broken]


def test_a_class_that_comes_out_empty_is_an_error(training_folder: Path) -> None:
    with pytest.raises(UsageError, match="generated images in the train part"):
        collect(paths(training_folder / "real"), {}, Split(train=0.5, validation=0.4))


@given(total=st.integers(0, 300), count=st.integers(1, 100))
def test_spread_is_even(total: int, count: int) -> None:
    images = [LabelledImage(Path(str(i)), str(i), "real/x", "train") for i in range(total)]
    chosen = [int(image.sha256) for image in spread(images, count)]
    assert len(chosen) == min(total, count)
    steps = np.diff([*chosen, total])
    assert len(chosen) == 0 or steps.max() - steps.min() <= 1


def test_the_pixel_cache_stays_within_its_budget(training_folder: Path) -> None:
    first, second = paths(training_folder / "real")[:2]
    cache = PixelCache(budget=112 * 104 * 3 + 10)
    assert cache(first) is cache(first)
    assert cache(second) is not cache(second)
    np.testing.assert_array_equal(cache(second), cache(second))


def test_the_folder_is_the_source_and_its_name_the_kind(training_folder: Path, tmp_path: Path) -> None:
    photographs = paths(training_folder / "real")
    files = []
    for number, name in enumerate(("photos", "art_old", "art", "screen_linux", "artisans")):
        (tmp_path / name).mkdir()
        files.append(Path(shutil.copy(photographs[number], tmp_path / name)))
    dataset = collect([*photographs[5:], *files], generated(training_folder), SPLIT)
    found = {image.source: image.kind for image in dataset.images if image.path in files}
    assert found == {
        "real/photos": "photograph",
        "real/art_old": "art",
        "real/art": "art",
        "real/screen_linux": "screen",
        "real/artisans": "photograph",
    }
    assert {image.kind for image in dataset.images if image.generator} == {"generated"}


def test_sources_held_out_are_for_testing_alone(training_folder: Path, tmp_path: Path) -> None:
    photographs = paths(training_folder / "real")
    (tmp_path / "rare").mkdir()
    rare = [Path(shutil.copy(path, tmp_path / "rare")) for path in photographs[:4]]
    split = Split(train=0.5, validation=0.4, held_out=("real/rare", "generated/other", "generated/real"))
    dataset = collect([*rare, *photographs[4:]], generated(training_folder), split)
    tested = {image.source for image in dataset.images if image.part == "test"}
    assert {"real/rare", "generated/other"} <= tested
    seen = {image.source for image in dataset.images if image.part != "test"}
    assert seen == {"real/real", "generated/checker"}
