"""Images with nothing to judge: flats, gradients, skies, walls, text pages, blank scans and black frames."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator

import numpy as np
from PIL import Image, ImageDraw, ImageFont

_LINES = (
    "the quick brown fox jumps over a lazy dog while invoices and minutes pile up beside Article 12 of this agreement",
    "see also page 247 (b), in which nothing of note is shown or said, and the annex to the letter of 3 May 1998 there",
    "Total: 1,204.50, due within thirty days; questions go to the office on the second floor, between nine and twelve",
)


def flat(generator: np.random.Generator, side: int) -> np.ndarray:
    """Return one colour."""
    return np.full((side, side, 3), generator.integers(0, 256, 3), np.float64)


def gradient(generator: np.random.Generator, side: int) -> np.ndarray:
    """Return a linear or round blend of two colours."""
    x, y = np.meshgrid(np.linspace(-1, 1, side), np.linspace(-1, 1, side))
    angle = generator.uniform(0, 2 * np.pi)
    ramp = np.hypot(x, y) / 1.42 if generator.random() < 0.3 else (np.cos(angle) * x + np.sin(angle) * y) / 2.84 + 0.5
    first, last = generator.uniform(0, 256, (2, 3))
    return first + ramp[..., None] * (last - first)


def sky(generator: np.random.Generator, side: int) -> np.ndarray:
    """Return a pale gradient with a sensor's noise, as a camera writes it: a little smoothed."""
    height = np.linspace(0, 1, side)[:, None, None]
    blue = np.array([110, 160, 225]) + height * generator.uniform(10, 80, 3)
    return np.clip(blue, 0, 250) + _noise(generator, side, generator.uniform(0.5, 6.0))


def wall(generator: np.random.Generator, side: int) -> np.ndarray:
    """Return plain paint under uneven light, with fine grain and noise."""
    x, y = np.meshgrid(np.linspace(-1, 1, side), np.linspace(-1, 1, side))
    lit = np.hypot(x - generator.uniform(-1, 1), y - generator.uniform(-1, 1))
    paint = generator.uniform(120, 235) + generator.uniform(-8, 8, 3)
    grain = generator.uniform(0.5, 1.5) * _blurred(generator.standard_normal((side, side, 1)), 2)
    return paint - generator.uniform(10, 40) * lit[..., None] + grain + _noise(generator, side, 3.0)


def text(generator: np.random.Generator, side: int) -> np.ndarray:
    """Return lines of text in one ink on one paper: a page, a form or a dark terminal."""
    dark = generator.random() < 0.2
    paper, ink = (generator.integers(0, 40), generator.integers(180, 256))
    paper, ink = (paper, ink) if dark else (ink, paper)
    image = Image.new("L", (side, side), int(paper))
    pen = ImageDraw.Draw(image)
    size = int(generator.integers(9, 33))
    font = ImageFont.load_default(size)
    margin = int(generator.integers(0, side // 8))
    for top in range(margin, side - margin, round(size * generator.uniform(1.15, 1.8))):
        pen.text((margin, top), generator.choice(_LINES), fill=int(ink), font=font)
    return np.repeat(np.asarray(image, np.float64)[..., None], 3, axis=2)


def scan(generator: np.random.Generator, side: int) -> np.ndarray:
    """Return an empty sheet on a scanner: nearly white, darker towards one edge, with noise."""
    shade = np.linspace(0, generator.uniform(0, 25), side)[None, :, None]
    return generator.uniform(225, 255) - shade + _noise(generator, side, generator.uniform(0.3, 3.0))


def black(generator: np.random.Generator, side: int) -> np.ndarray:
    """Return a frame with the lens cap on."""
    return np.abs(_noise(generator, side, generator.uniform(0.0, 4.0)))


KINDS: dict[str, Callable[[np.random.Generator, int], np.ndarray]] = {
    "flat": flat,
    "gradient": gradient,
    "sky": sky,
    "wall": wall,
    "text": text,
    "scan": scan,
    "black": black,
}


def featureless(count: int, seed: int = 0, side: int = 256) -> Iterator[tuple[str, bytes]]:
    """Yield `count` files with their names. The kinds take turns, and so do JPEG (quality 50 to 95) and PNG."""
    for n in range(count):
        generator = np.random.default_rng((seed, n))
        kind = list(KINDS)[n % len(KINDS)]
        pixels = np.clip(np.rint(KINDS[kind](generator, side)), 0, 255).astype(np.uint8)
        buffer = io.BytesIO()
        if n // len(KINDS) % 2:
            Image.fromarray(pixels).save(buffer, "PNG")
            yield f"{kind}-{n}.png", buffer.getvalue()
        else:
            Image.fromarray(pixels).save(buffer, "JPEG", quality=int(generator.integers(50, 96)))
            yield f"{kind}-{n}.jpg", buffer.getvalue()


def _noise(generator: np.random.Generator, side: int, spread: float) -> np.ndarray:
    return spread * _blurred(generator.standard_normal((side, side, 3)), 1)


def _blurred(values: np.ndarray, times: int) -> np.ndarray:
    """Add neighbours in each direction, and restore a spread of 1."""
    for axis in [0, 1] * times:
        values = values + np.roll(values, 1, axis)
    return values / values.std()
