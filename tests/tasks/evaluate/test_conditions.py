"""Conditions."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mdmf_deploy.errors import UsageError
from mdmf_deploy.tasks.evaluate.conditions import Condition


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
