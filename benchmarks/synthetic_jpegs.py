"""Make photographs of a given size from those in a folder: JPEG of quality 92, 4:2:0."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from mdmf_deploy.images.inputs import in_folder

SMALL, LARGE = (816, 612), (4000, 3000)
_CHOICE = 64  # photographs to lay out a large one from


def write_jpegs(folder: Path, data: Path | None, *, small: int, large: int) -> dict[str, list[Path]]:
    """Write that many distinct files of 0.5 and of 12 megapixels to a folder and return them by the name of their size.

    data: a folder of photographs, of which only the JPEGs are used. Without it, smooth noise is drawn, which decodes a
    little faster.
    """
    originals = _originals(data)
    made: dict[str, list[Path]] = {"0.5 MP": [], "12 MP": []}
    for n in range(small):
        image = originals[n % len(originals)].resize(SMALL, Image.Resampling.LANCZOS)
        made["0.5 MP"].append(_saved(_shifted(image, n // len(originals)), folder / f"small{n:03}.jpg"))
    for n in range(large):
        made["12 MP"].append(_saved(_laid_out(originals, n), folder / f"large{n:03}.jpg"))
    return made


def _originals(data: Path | None) -> list[Image.Image]:
    if data is None:
        generator = np.random.default_rng(0)
        noise = (generator.normal(128, 40, (60, 80, 3)).clip(0, 255).astype(np.uint8) for _ in range(_CHOICE))
        return [Image.fromarray(values).resize((640, 480), Image.Resampling.BICUBIC) for values in noise]
    paths = [path for path in in_folder(data).paths if path.suffix.lower() in (".jpg", ".jpeg")]
    chosen = paths[:: max(1, len(paths) // _CHOICE)][:_CHOICE]
    images = []
    for path in chosen:
        with Image.open(path) as image:
            images.append(image.convert("RGB"))
    return images


def _shifted(image: Image.Image, columns: int) -> Image.Image:
    return Image.fromarray(np.roll(np.asarray(image), 7 * columns, axis=1)) if columns else image


def _laid_out(originals: list[Image.Image], seed: int) -> Image.Image:
    """Lay photographs side by side at their own scale, to have the detail of a sharp picture of that size."""
    page = Image.new("RGB", LARGE)
    order = np.random.default_rng(seed).integers(0, len(originals), 1000)
    top = n = 0
    while top < LARGE[1]:
        left, height = 0, originals[order[n]].height
        while left < LARGE[0]:
            image = originals[order[n]]
            page.paste(image.crop((0, 0, image.width, height)), (left, top))
            left, n = left + image.width, n + 1
        top += height
    return page


def _saved(image: Image.Image, path: Path) -> Path:
    image.save(path, quality=92, subsampling="4:2:0")
    return path
