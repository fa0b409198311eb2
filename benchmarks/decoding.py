"""Time the work of one core on an image before the engine, and compare the pixels of several decoders.

    python benchmarks/decoding.py [DATA]

DATA: a folder of photographs. Two files are made of them, JPEG of quality 92, 4:2:0. One has 0.5 megapixels (a resized
photograph). The other has 12 (4000 x 3000, photographs side by side at their own scale, since a magnified one would be
smooth and cheap). Decoders take turns on one core and the same bytes. Pillow keeps its blocks of memory, as in `mdmf`.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from common import header, interleaved, ms, number, ratio, table
from numpy.typing import NDArray
from PIL import Image
from synthetic_jpegs import write_jpegs

from mdmf_deploy.bundle.recipe import Preprocessing
from mdmf_deploy.detection.feed import prepare
from mdmf_deploy.images.containers import parse
from mdmf_deploy.images.crops import boxes, center_crop, normalise, squares
from mdmf_deploy.images.decode import ReadLimits, decode, decode_boxes, read

Pixels = NDArray[np.uint8]
PLAN = Preprocessing()
ROUNDS = 15


def ours(data: bytes) -> Pixels:
    part = decode_boxes(data, partial(boxes, size=PLAN.crop))
    return squares(part.boxes, PLAN.crop).pixels[0]


def whole(data: bytes) -> Pixels:
    return center_crop(decode(data).pixels, PLAN.crop).pixels[0]


def plain_pillow(data: bytes) -> Pixels:
    with Image.open(io.BytesIO(data)) as image:
        return center_crop(np.asarray(image.convert("RGB")), PLAN.crop).pixels[0]


def simplejpeg(data: bytes) -> Pixels:
    from simplejpeg import decode_jpeg

    return center_crop(decode_jpeg(data, "RGB"), PLAN.crop).pixels[0]


def opencv(data: bytes) -> Pixels:
    import cv2

    cv2.setNumThreads(1)
    return center_crop(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB), PLAN.crop).pixels[0]


def turbojpeg(data: bytes) -> Pixels:
    from turbojpeg import TJPF_RGB, TurboJPEG

    return center_crop(TurboJPEG().decode(data, pixel_format=TJPF_RGB), PLAN.crop).pixels[0]


DECODERS: dict[str, Callable[[bytes], Pixels]] = {
    "only the crop's rows and box (this package)": ours,
    "whole image, then the crop (this package before)": whole,
    "Pillow, as a script would": plain_pillow,
    "simplejpeg": simplejpeg,
    "OpenCV": opencv,
    "PyTurboJPEG": turbojpeg,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="?", type=Path, help="a folder of photographs; noise is drawn without one")
    data = parser.parse_args().data
    Image.core.set_blocks_max(8)  # PILLOW_BLOCKS_MAX
    header("pillow", "simplejpeg", "opencv-python-headless", "PyTurboJPEG")
    with tempfile.TemporaryDirectory() as folder:
        for name, paths in write_jpegs(Path(folder), data, small=1, large=1).items():
            path = paths[0]
            compare(name, path)
            stages(name, path)


def compare(name: str, path: Path) -> None:
    data = path.read_bytes()
    reference = whole(data)
    found = {}
    for decoder, function in DECODERS.items():
        try:
            found[decoder] = bool(np.array_equal(function(data), reference))
        except (ImportError, RuntimeError) as error:
            print(f"{decoder}: not here ({' '.join(str(error).split())[:80]})")
    times = interleaved({decoder: partial(DECODERS[decoder], data) for decoder in found}, ROUNDS)
    rows = []
    for decoder, equal in found.items():
        against = "" if decoder == next(iter(found)) else str(ratio(times[decoder], times[next(iter(found))]))
        rows.append((decoder, ms(times[decoder]), "yes" if equal else "NO", against))
    print(f"\n{name} JPEG, {len(data) / 1e6:.2f} MB: bytes to the central {PLAN.crop} x {PLAN.crop} crop\n")
    print(table(rows, ("decoder", "one core, an image", "pixels equal", "times ours")))


def stages(name: str, path: Path) -> None:
    data = path.read_bytes()
    crop = squares(decode_boxes(data, partial(boxes, size=PLAN.crop)).boxes, PLAN.crop).pixels
    times = interleaved(
        {
            "read the file": lambda: read(path),
            "sha256 of its bytes": lambda: hashlib.sha256(data).hexdigest(),
            "walk over its segments": lambda: parse(data, ReadLimits()),
            "decode": lambda: ours(data),
            "crop to float32": lambda: normalise(crop, PLAN),
            "all of it (mdmf_deploy.detection.feed.prepare)": lambda: prepare(0, path, PLAN, 1, ReadLimits()),
        },
        ROUNDS,
    )
    total = times["all of it (mdmf_deploy.detection.feed.prepare)"].median
    rows = [(stage, ms(timing), f"{number(100 * timing.median / total)}%") for stage, timing in times.items()]
    print(f"{name} JPEG: one image before the engine\n")
    print(table(rows, ("stage", "one core, an image", "share")))


if __name__ == "__main__":
    main()
