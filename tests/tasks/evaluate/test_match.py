"""Matched files tell nothing about their class, and show the same central pixels."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.bad_inputs import encoded
from helpers.every_format import samples
from helpers.synthetic_photos import synthetic_photo
from PIL import Image

from mdmf_deploy.errors import UsageError
from mdmf_deploy.images.crops import center_crop
from mdmf_deploy.images.decode import decode
from mdmf_deploy.tasks.evaluate.datasets import KnownImage
from mdmf_deploy.tasks.evaluate.facts import Facts, facts_of
from mdmf_deploy.tasks.evaluate.leaks import audit_leaks
from mdmf_deploy.tasks.evaluate.match import LEAST_SIDE, QUALITIES, Matching


def leaking(folder: Path, count: int) -> list[KnownImage]:
    """Write a data set that leaks by format, size, metadata, quality and subsampling."""
    exif = Image.Exif()
    exif[271] = "a maker"
    images = []
    for seed in range(2 * count):
        path, real = folder / f"{seed}.bin", seed < count
        width, height = (70 + seed % 9, 50 + seed % 7) if real else (64, 64 + seed % 3)
        picture = Image.fromarray(synthetic_photo(seed, width, height))
        options: dict[str, Any] = {"quality": 85 + seed % 10, "exif": exif, "subsampling": "4:4:4"}
        path.write_bytes(encoded(picture, "JPEG", **options) if real else encoded(picture, "PNG"))
        images.append(KnownImage(path, str(seed), None if real else "g"))
    return images


def sizes(*shorter: int | None, generator: str | None = None) -> tuple[list[KnownImage], list[Facts | None]]:
    """Return images without files, of which only the shorter sides are known. None is a video."""
    images = [KnownImage(Path(f"{generator}{n}"), str(n), generator) for n in range(len(shorter))]
    facts = [
        Facts(codec="mp4") if side is None else Facts(codec="png", width=side, height=side + 7) for side in shorter
    ]
    return images, list(facts)


def test_a_data_set_that_leaks_does_not_once_it_is_matched(tmp_path: Path) -> None:
    images = leaking(tmp_path, 20)
    assert audit_leaks(images).verdict == "leak"
    matching = Matching.of(images, least=32)
    matched = []
    for image in matching.images:
        data = matching.source(image.path)
        assert isinstance(data, bytes)
        path = tmp_path / f"matched {image.path.name}"
        path.write_bytes(data)
        matched.append(replace(image, path=path))
    audit = audit_leaks(matched)
    assert audit.verdict == "none found"
    assert audit.overall.real == audit.overall.generated == 20
    qualities = set()
    for fact in facts_of(image.path for image in matched):
        assert fact is not None
        qualities.add(fact.quality)
        assert (fact.codec, fact.width, fact.height) == ("jpeg", matching.side, matching.side)
        assert (fact.subsampling, fact.tables, fact.progressive, fact.bit_depth) == ("4:2:0", "standard", False, 8)
        assert not (fact.exif)
        assert not (fact.xmp)
        assert not (fact.icc)
        assert not (fact.c2pa)
        assert not (fact.text)
    assert len(qualities) > 10
    assert QUALITIES[0] <= min(qualities) < max(qualities) <= QUALITIES[1]


@pytest.mark.parametrize(("width", "height"), [(64, 64), (75, 64), (64, 81), (301, 200)])
def test_the_square_holds_the_same_pixels_as_the_detectors_central_crop(
    width: int, height: int, tmp_path: Path
) -> None:
    pixels = synthetic_photo(1, width, height)
    path = tmp_path / "a.png"
    path.write_bytes(encoded(Image.fromarray(pixels), "PNG"))
    data = Matching(64, (), ()).source(path)
    assert isinstance(data, bytes)
    path.write_bytes(data)
    [fact] = facts_of([path])
    assert fact is not None
    square = Image.fromarray(center_crop(pixels, 64).pixels[0])
    assert data == encoded(square, "JPEG", quality=fact.quality, subsampling="4:2:0")


def test_the_bytes_alone_decide_the_result(tmp_path: Path) -> None:
    data = encoded(Image.fromarray(synthetic_photo(2, 70, 70)), "PNG")
    first, second = tmp_path / "real.png", tmp_path / "generated.jpg"
    first.write_bytes(data)
    second.write_bytes(data)
    matching = Matching(64, (), ())
    assert matching.source(first) == matching.source(second) == matching.source(first)


def test_every_format_can_be_matched_and_is_turned_upright(tmp_path: Path) -> None:
    path = tmp_path / "file"
    stills = {
        name: data for name, data in samples().items() if name.split("-")[0] not in ("mp4", "mov", "webm", "mkv", "avi")
    }
    assert len(stills) > 20
    for name, still in stills.items():
        path.write_bytes(still)
        data = Matching(96, (), ()).source(path)
        assert isinstance(data, bytes), name
        square = center_crop(decode(still).pixels, 96).pixels[0].astype(float)
        found = np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(float)
        assert np.abs(found - square).mean() < 12, name


def test_files_that_cannot_be_decoded_are_left_to_the_detector(tmp_path: Path) -> None:
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"\xff\xd8\xff")
    images, facts = sizes(300, 300)
    fakes, fake_facts = sizes(300, generator="g")
    unreadable = KnownImage(broken, "x", None)
    matching = Matching.of([*images, unreadable, *fakes], [*facts, None, *fake_facts])
    assert unreadable in matching.images
    assert matching.source(broken) == broken


def test_the_square_is_the_largest_that_fits_nearly_all_images_of_each_source() -> None:
    real, real_facts = sizes(*range(400, 440))
    fakes, fake_facts = sizes(*range(300, 340), generator="g")
    others, other_facts = sizes(900, 250, 900, generator="h")
    matching = Matching.of([*real, *fakes, *others], [*real_facts, *fake_facts, *other_facts])
    # The smallest of 3 is more than one in 20 of them.
    assert (matching.side, matching.left_out) == (250, ())
    matching = Matching.of([*real, *fakes], [*real_facts, *fake_facts])
    assert matching.side == 302
    assert matching.left_out == tuple(fakes[:2])
    assert matching.images == (*real, *fakes[2:])
    assert matching.line() == (
        "matched: the central 302 x 302 pixels of every image, as a JPEG of quality 60 to 90; 2 smaller ones and "
        "videos left out (g 2)"
    )


def test_the_square_is_never_smaller_than_the_least_side_and_videos_are_left_out() -> None:
    real, real_facts = sizes(100, 500, 500, None)
    fakes, fake_facts = sizes(500, 100, generator="g")
    matching = Matching.of([*real, *fakes], [*real_facts, *fake_facts])
    assert matching.side == LEAST_SIDE
    assert matching.left_out == (real[0], real[3], fakes[1])
    assert matching.line().endswith("3 smaller ones and videos left out (real 2, g 1)")
    assert Matching.of([*real, *fakes], [*real_facts, *fake_facts], least=100).side == 100


@pytest.mark.parametrize(("real", "generated", "missing"), [(100, 500, "real"), (500, None, "generated")])
def test_a_class_that_is_too_small_is_an_error(real: int, generated: int | None, missing: str) -> None:
    images, facts = sizes(real)
    fakes, fake_facts = sizes(generated, generator="g")
    with pytest.raises(UsageError, match=rf"--match: no {missing} image has \d+ pixels or more on both sides; give"):
        Matching.of([*images, *fakes], [*facts, *fake_facts])
