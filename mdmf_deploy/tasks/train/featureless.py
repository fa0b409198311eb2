"""Images without texture, for the real class: flats, gradients, skies and pages of text.

A detector that never saw them in training calls them generated (docs/method.md, "Images without texture").
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

# Letters about as often as English uses them, so that pages look like text.
_LETTERS = list("etaoinshrdlu  etaoin cmfwyp vbgkjqxz ETAOIN 0123456789,.")

KINDS = ("flat", "gradient", "sky", "text", "dark text")
# A gradient has more to vary than a flat.
_CHANCES = (1 / 6, 2 / 6, 1 / 6, 1 / 6, 1 / 6)


def featureless(rng: np.random.Generator, side: int, kind: str | None = None) -> NDArray[np.uint8]:
    """Draw one image (side, side, 3). Half of them carry noise, grey or coloured.

    kind: one of KINDS, drawn if it is None.
    """
    kind = kind or str(rng.choice(KINDS, p=_CHANCES))
    first, second = rng.uniform(0, 255, (2, 3))
    y, x = np.mgrid[:side, :side] / side
    if kind == "flat":
        pixels = np.broadcast_to(first, (side, side, 3))
    elif kind == "gradient":
        angle = rng.uniform(0, 2 * math.pi)
        ramp = np.clip((x - 0.5) * math.cos(angle) + (y - 0.5) * math.sin(angle) + 0.5, 0, 1)[..., None]
        pixels = first + (second - first) * ramp * rng.uniform(0.1, 1)
    elif kind == "sky":
        light = np.array([rng.uniform(80, 200), rng.uniform(130, 220), rng.uniform(190, 255)])
        pixels = light + (255 - light) * (y ** rng.uniform(0.5, 2))[..., None]
    else:
        pixels = _page(rng, side, kind == "dark text")
    if rng.random() < 0.5:
        channels = 1 if rng.random() < 0.5 else 3
        pixels = pixels + rng.normal(0, rng.uniform(0.3, 4), (side, side, channels))
    return np.clip(np.round(pixels), 0, 255).astype(np.uint8)


def _page(rng: np.random.Generator, side: int, dark: bool) -> NDArray[np.float64]:
    paper, ink = 255 - rng.uniform(0, 30, 3), rng.uniform(0, 90, 3)
    if dark:
        paper, ink = ink, paper
    page = Image.new("RGB", (side, side), _colour(paper))
    draw, size = ImageDraw.Draw(page), int(rng.integers(8, 26))
    font = ImageFont.load_default(size)
    for top in range(int(rng.integers(0, 20)), side, int(size * rng.uniform(1.2, 2.5))):
        line = "".join(rng.choice(_LETTERS, int(rng.integers(5, 80))))
        draw.text((int(rng.integers(0, 20)), top), line, fill=_colour(ink), font=font)
    return np.asarray(page, np.float64)


def _colour(levels: NDArray[np.float64]) -> tuple[int, int, int]:
    red, green, blue = (int(level) for level in levels)
    return red, green, blue
