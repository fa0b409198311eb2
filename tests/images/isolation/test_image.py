"""Images decoded in a child: the pixels of this process, and whatever libraries print stays out of the terminal."""

from __future__ import annotations

import logging
import subprocess
import sys
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from helpers.bad_inputs import encoded, oriented, photo, valid
from helpers.tiffs import tags, tiff_file
from PIL import Image

from mdmf_deploy.errors import ImageError
from mdmf_deploy.images import isolation, raster
from mdmf_deploy.images.containers import Container, parse
from mdmf_deploy.images.crops import Box
from mdmf_deploy.images.limits import DEFAULT_LIMITS

VALID = valid()


def parts(height: int, width: int) -> list[Box]:
    """Overlapping boxes, one of them empty."""
    return [(0, 0, width, height // 2), (width // 3, height // 4, width, height), (1, 1, 1, 5)]


@pytest.mark.parametrize("name", VALID)
def test_pixels_are_those_of_this_process(name: str) -> None:
    container = parse(VALID[name], DEFAULT_LIMITS)
    here, there = (module.boxes(container, parts, DEFAULT_LIMITS) for module in (raster, isolation))
    assert [box.shape for box in here.boxes] == [box.shape for box in there.boxes]
    for one, other in zip(here.boxes, there.boxes, strict=True):
        np.testing.assert_array_equal(one, other)
    assert (here.width, here.height, here.format) == (there.width, there.height, there.format)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_whole_image_comes_in_bands_and_upright(orientation: int) -> None:
    tall = np.tile(photo(), (30, 1, 1))  # several bands
    exif = Image.Exif()
    exif[274] = orientation
    container = parse(encoded(tall, "TIFF", exif=exif), DEFAULT_LIMITS)
    here = raster.whole(container, None, DEFAULT_LIMITS)
    there = isolation.whole(container, DEFAULT_LIMITS)
    np.testing.assert_array_equal(here.pixels, there.pixels)
    assert (there.height, there.width) == there.pixels.shape[:2]


def test_many_threads_share_the_children() -> None:
    containers = [parse(oriented("TIFF", n), DEFAULT_LIMITS) for n in range(1, 9)] * 4
    with ThreadPoolExecutor(8) as pool:
        for container, found in zip(
            containers, pool.map(lambda one: isolation.whole(one, DEFAULT_LIMITS), containers), strict=True
        ):
            np.testing.assert_array_equal(found.pixels, raster.whole(container, None, DEFAULT_LIMITS).pixels)


def deflated(part: float) -> Container:
    """A TIFF whose only strip is deflated data of which a part is there, and which says so."""
    strip = zlib.compress(photo(480, 320).tobytes())
    strip = strip[: int(part * len(strip))]
    page = tags(photo(480, 320)) | {259: (3, [8]), 279: (4, [len(strip)])}
    return parse(tiff_file([page], strip), DEFAULT_LIMITS)


def test_a_strip_that_ends_early_is_truncated() -> None:
    np.testing.assert_array_equal(isolation.whole(deflated(1), DEFAULT_LIMITS).pixels, photo(480, 320))
    with pytest.raises(ImageError, match=r"tiff: some of its pixels are not there \(ZIPDecode: ") as caught:
        isolation.whole(deflated(0.5), DEFAULT_LIMITS)
    assert caught.value.code == "truncated"
    assert "\n" not in str(caught.value)


def test_messages_of_codecs_are_logged_and_never_reach_the_terminal(
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    with caplog.at_level(logging.DEBUG, logger="mdmf_deploy.images"), pytest.raises(ImageError):
        isolation.whole(deflated(0.5), DEFAULT_LIMITS)
    assert any(record.message.startswith("tiff: ZIPDecode: ") for record in caplog.records)
    assert capfd.readouterr() == ("", "")
    caplog.clear()
    with caplog.at_level(logging.DEBUG, logger="mdmf_deploy.images"):
        isolation.whole(deflated(1), DEFAULT_LIMITS)  # the same child, whose earlier messages are not this file's
    assert not caplog.records


def test_a_damaged_strip_says_what_the_codec_said() -> None:
    data = bytearray(encoded(photo(480, 320), "TIFF", compression="tiff_lzw"))
    data[100_000:200_000] = bytes(100_000)
    with pytest.raises(ImageError, match=r"tiff: it is damaged \(.*\): .*[Cc]ode") as caught:
        isolation.whole(parse(bytes(data), DEFAULT_LIMITS), DEFAULT_LIMITS)
    assert caught.value.code == "corrupt"


def test_a_child_imports_little_and_takes_nothing_from_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder of images may hold a file named like a module."""
    (tmp_path / "numpy.py").write_text("raise SystemExit('imported from the working folder')")
    (tmp_path / "msgspec.py").write_text("raise SystemExit('imported from the working folder')")
    monkeypatch.chdir(tmp_path)
    code = (
        "import sys; sys.path.pop(0)\n"
        "import io, numpy\n"
        "from PIL import Image\n"
        "from mdmf_deploy.images.decode import decode\n"
        "buffer = io.BytesIO()\n"
        "Image.new('RGB', (9, 9)).save(buffer, 'TIFF')\n"
        "print(decode(buffer.getvalue()).width)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("9\n", "")


def test_importing_the_task_loads_nothing_heavy() -> None:
    code = "import mdmf_deploy.images.isolation.image_task, sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy = {"torch", "onnxruntime", "cv2", "pillow_heif", "pillow_jxl", "mdmf_deploy.detection", "mdmf_deploy.runtime"}
    assert not heavy & set(done.stdout.split())
