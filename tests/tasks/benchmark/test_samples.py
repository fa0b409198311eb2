"""The images that are timed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mdmf_deploy.bundle.probe_images import probe_crops
from mdmf_deploy.errors import UsageError
from mdmf_deploy.images import decode
from mdmf_deploy.tasks.benchmark import samples


def test_generated_images_have_the_sizes_they_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samples, "SIZES", {"0.5 MP": (816, 612, 3), "1 MP": (1200, 900, 1)})
    half, one = samples.generated(tmp_path)
    assert [len(half.paths), len(one.paths)] == [3, 1]
    for sample, size in ((half, (612, 816)), (one, (900, 1200))):
        for path in sample.paths:
            decoded = decode.decode(decode.read(path))
            assert decoded.pixels.shape[:2] == size
            assert decoded.format == "jpeg"
    assert half.about.megapixels == pytest.approx(0.5, abs=0.01)
    assert "generated" in half.about.origin
    assert len({path.read_bytes() for path in half.paths}) == 3


@pytest.mark.parametrize(("width", "height"), [(816, 612), (1000, 1800), (300, 256)])
def test_a_whole_probe_image_lies_in_the_middle_of_each(width: int, height: int) -> None:
    tiles = probe_crops(256, 4)
    mosaic = samples.mosaic(tiles, 2, width, height)
    assert mosaic.shape == (height, width, 3)
    top, left = (height - 256) // 2, (width - 256) // 2
    assert np.array_equal(mosaic[top : top + 256, left : left + 256], tiles[2])


def test_given_images_that_cannot_be_read_are_counted(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 and no more")
    whole = sorted(photos.iterdir())[:3]
    sample = samples.given([*whole, tmp_path / "broken.jpg", tmp_path / "missing.jpg"])
    assert sorted(sample.paths) == whole
    assert (sample.about.images, sample.about.unreadable, sample.about.given) == (3, 2, 5)


def test_no_readable_image_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"none of 1 inputs tried is a readable image \(.*does not exist"):
        samples.given([tmp_path / "missing.jpg"])


def test_only_some_of_many_images_are_decoded_and_timed(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read, whole = [], sorted(photos.iterdir())
    load = decode.read
    monkeypatch.setattr(decode, "read", lambda path: read.append(path) or load(path))
    sample = samples.given(whole, most=4)
    assert (len(whole), sample.about.given, sample.about.images) == (12, 12, 4)
    assert list(sample.paths) == read == [whole[n] for n in (0, 6, 3, 9)]


@pytest.mark.parametrize("count", [1, 7, 256, 10_000])
def test_the_first_few_chosen_are_spread_over_all(count: int) -> None:
    chosen = [int(path.name) for path in samples.evenly_spaced([Path(f"{n:05}") for n in range(count)])]
    assert len(chosen) == len(set(chosen)) == min(count, 256)
    for part in (8, 32, 128):
        if count > part:
            ordered = sorted(chosen[:part])
            gaps = np.diff([*ordered, count + ordered[0]])
            assert gaps.max() <= 2.1 * count / min(part, len(ordered))
