"""prepare: one source to the model's input, each stage's time its own, and no image's memory kept."""

from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from mdmf_deploy.bundle.recipe import Preprocessing
from mdmf_deploy.detection import prepare as preparing
from mdmf_deploy.detection.prepare import Prepared, Source, prepare
from mdmf_deploy.errors import UsageError
from mdmf_deploy.images import crops as cropping
from mdmf_deploy.images import decode as images
from mdmf_deploy.images.decode import ReadLimits

PLAN = Preprocessing(crop=28)


def prepared(source: Source, crops: int = 1) -> Prepared:
    return prepare(3, source, PLAN, crops, ReadLimits())


def picture(width: int, height: int, format: str = "JPEG") -> bytes:
    values = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, format)
    return buffer.getvalue()


@pytest.mark.parametrize("crops", [1, 4])
@pytest.mark.parametrize("size", [(120, 90), (28, 28), (20, 100), (9, 9)])
def test_files_bytes_and_pixels_give_what_the_whole_image_gives(
    size: tuple[int, int], crops: int, tmp_path: Path
) -> None:
    data = picture(*size)
    (tmp_path / "a.jpg").write_bytes(data)
    whole = images.decode(data).pixels
    wanted = cropping.crops(whole, 28, crops)
    for source in (tmp_path / "a.jpg", data, whole):
        found = prepared(source, crops)
        assert found.tensor is not None
        np.testing.assert_array_equal(found.tensor, cropping.normalise(wanted.pixels, PLAN))
        assert found.crops == len(wanted.pixels)
        assert (found.extracted.crop, found.extracted.width, found.extracted.height) == (wanted.kind, *size)


def test_each_stage_has_its_own_time(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    now = 0.0

    def takes(seconds: float, module: object, name: str) -> None:
        call = getattr(module, name)

        def timed(*arguments: object) -> object:
            nonlocal now
            now += seconds
            return call(*arguments)

        monkeypatch.setattr(module, name, timed)

    (tmp_path / "a.jpg").write_bytes(picture(40, 40))
    monkeypatch.setattr(preparing, "time", SimpleNamespace(perf_counter=lambda: now))
    takes(1, images, "read")
    takes(2, images, "decode_boxes")
    takes(4, preparing, "squares")
    takes(8, preparing, "normalise")
    extracted = prepared(tmp_path / "a.jpg").extracted
    assert (extracted.ms_read, extracted.ms_decode, extracted.ms_crop) == (1000, 2000, 12000)
    extracted = prepared(b"no image").extracted
    assert (extracted.ms_read, extracted.ms_decode, extracted.ms_crop) == (0, 2000, None)
    extracted = prepared(tmp_path / "nowhere.jpg").extracted
    assert (extracted.ms_read, extracted.ms_decode, extracted.ms_crop) == (1000, None, None)


def test_what_is_no_source_is_said() -> None:
    with pytest.raises(UsageError, match="source 3 is a int"):
        prepared(7)  # type: ignore[arg-type]
