"""A sample is the same every time, and treats generators and real images as the evaluation does."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mdmf_deploy.tasks.evaluate.datasets import KnownImage
from mdmf_deploy.tasks.evaluate.sample import sample


def known(name: str, generator: str | None, compared_with: str | None = None, sha256: str | None = "") -> KnownImage:
    return KnownImage(Path(name), f"{name:0>8}"[::-1] if sha256 == "" else sha256, generator, None, compared_with)


def test_a_sample_has_so_many_of_each_generator_and_as_many_real_ones() -> None:
    images = [known(f"{n}{name}", name) for name in ("a", "b", "c") for n in range(10)]
    images += [known(f"{n}r", None) for n in range(40)]
    chosen = sample(images, 4)
    counts = {name: sum(image.generator == name for image in chosen) for name in ("a", "b", "c", None)}
    assert counts == {"a": 4, "b": 4, "c": 4, None: 12}
    assert chosen == [image for image in images if image in chosen]


def test_a_larger_sample_holds_the_smaller_one_whatever_the_order() -> None:
    images = [known(f"{n}{name}", name) for name in (None, "a") for n in range(30)]
    small, large = sample(images, 5), sample(images, 9)
    assert set(map(id, small)) < set(map(id, large))
    assert set(sample(images[::-1], 5)) == set(small)
    assert sample(images, 100) == images


def test_a_sample_has_real_images_for_each_generator_that_has_its_own() -> None:
    images = [known(f"{n}{name}", name) for name in ("a", "b") for n in range(6)]
    images += [known(f"{n}real{name}", None, name) for name in ("a", "b") for n in range(6)]
    chosen = sample(images, 2)
    assert [sum(image.compared_with == name for image in chosen) for name in ("a", "b")] == [2, 2]


def test_a_sample_takes_readable_files_first() -> None:
    images = [known("x", "a", sha256=None), known("1", "a"), known("2", "a")]
    assert sample(images, 2) == images[1:]
    assert sample(images, 3) == images


def test_a_sample_of_a_splits_part_favours_no_held_out_source() -> None:
    """A part is a range of the hash's first digits. Held-out sources have hashes outside that range as well."""
    digits = np.random.default_rng(0).integers(0, 16, (400, 64))
    hashes = ["".join(f"{digit:x}" for digit in row) for row in digits]
    images = [KnownImage(Path(f"{n}"), "f" + one[1:] if n % 2 else one, "a") for n, one in enumerate(hashes)]
    held_out = sum(int(image.path.name) % 2 == 0 for image in sample(images, 100))
    assert 35 < held_out < 65
