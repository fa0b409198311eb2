"""Golden scores hold a head trained elsewhere to the scores of its own code."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from mdmf_deploy.bundle.recipe import Head, Preprocessing
from mdmf_deploy.errors import GateFailed, UsageError
from mdmf_deploy.images.crops import center_crop, normalise
from mdmf_deploy.images.decode import decode, read
from mdmf_deploy.tasks.export.golden import check_golden

PREPROCESSING = Preprocessing(crop=56)
SIGMA0 = 0.3


class QuadrantMeans:
    """Four signatures of three numbers an image: the means of its quadrants."""

    name, precision = "quadrants", "fp32"

    def __call__(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        halves = images.reshape(len(images), 3, 2, 28, 2, 28).mean(axis=(3, 5))
        return halves.reshape(len(images), 3, 4).transpose(0, 2, 1)

    def close(self) -> None:
        pass


def their_score(image: Path, bank: list[Path]) -> float:
    """The biased squared MMD as the lineage writes it, with exp(-d^2 / sigma0)."""

    def signatures(paths: list[Path]) -> NDArray[np.float64]:
        crops = [center_crop(decode(read(path)).pixels, 56).pixels for path in paths]
        extracted = QuadrantMeans()(normalise(np.concatenate(crops), PREPROCESSING))
        return extracted.reshape(-1, 3).astype(np.float64)

    def kernel(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
        return float(np.exp(-((a[:, None] - b) ** 2).sum(-1) / SIGMA0).mean())

    x, r = signatures([image]), signatures(bank)
    return kernel(x, x) + kernel(r, r) - 2 * kernel(x, r)


def check(path: Path, sigma: float, reals: list[Path] | None = None, kernel: str = "mmd-mp") -> float:
    key_map = {"sigma": "s"}
    head = Head(pool=2, hidden=(), signature=3, kernel=kernel, key_map=key_map)  # type: ignore[arg-type]
    return check_golden(path, QuadrantMeans(), sigma, head, PREPROCESSING, reals or [])


@pytest.fixture
def golden(photos: Path, tmp_path: Path) -> Path:
    """A golden file whose bank is a folder beside it."""
    files = sorted(photos.iterdir())
    (tmp_path / "reals").symlink_to(photos)
    for file in files[:3]:
        (tmp_path / file.name).write_bytes(file.read_bytes())
    scores = [{"image": file.name, "score": their_score(file, files)} for file in files[:3]]
    path = tmp_path / "golden.json"
    path.write_text(json.dumps({"bank": ["reals"], "scores": scores}))
    return path


def test_scores_of_the_converted_bandwidth_agree(golden: Path) -> None:
    assert check(golden, math.sqrt(SIGMA0 / 2)) < 1e-5


def test_the_images_for_the_bundles_bank_are_the_bank_if_the_file_names_none(golden: Path, photos: Path) -> None:
    content = json.loads(golden.read_text())
    del content["bank"]
    golden.write_text(json.dumps(content))
    assert check(golden, math.sqrt(SIGMA0 / 2), sorted(photos.iterdir())) < 1e-5


@pytest.mark.parametrize(
    ("kernel", "sigma", "other"),
    [("gaussian", SIGMA0, "mmd-mp"), ("mmd-mp", math.sqrt(math.sqrt(SIGMA0 / 2) / 2), "gaussian")],
)
def test_the_wrong_kernel_is_refused_with_the_right_one(golden: Path, kernel: str, sigma: float, other: str) -> None:
    with pytest.raises(GateFailed, match=rf'\.jpg scores .* here, expected .*kernel = "{other}" instead of') as caught:
        check(golden, sigma, kernel=kernel)
    assert str(golden) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_any_other_difference_is_refused_with_what_to_check(golden: Path) -> None:
    with pytest.raises(GateFailed, match=r"the worst of 3, tolerance 0\.001\); check activation, norm"):
        check(golden, 1.0)
    content = json.loads(golden.read_text()) | {"tolerance": 4.0}
    golden.write_text(json.dumps(content))
    assert check(golden, 1.0) > 1e-3


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{", r"Input data was truncated; expected \{"),
        ('{"scores": []}', "expected at least one score"),
        ('{"scores": [{"image": "a.png", "score": "high"}]}', r"at `\$\.scores\[0\]\.score`"),
        ('{"scores": [{"image": "absent.png", "score": 0.1}]}', r"absent\.png.*must be readable"),
    ],
)
def test_a_golden_file_that_cannot_be_used_is_one_line(content: str, reason: str, photos: Path, tmp_path: Path) -> None:
    path = tmp_path / "golden.json"
    path.write_text(content)
    with pytest.raises(UsageError, match=reason) as caught:
        check(path, 1.0, sorted(photos.iterdir()))
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
