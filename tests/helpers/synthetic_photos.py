"""Random images that look natural to a model: a 1/f spectrum, a gradient of light, and an edge."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image


def synthetic_photo(seed: int, width: int, height: int) -> np.ndarray:
    """Return noise with the 1/f spectrum of photographs, a light gradient and a hard edge, (height, width, 3) uint8."""
    generator = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None])
    spectrum = np.fft.fft2(generator.standard_normal((3, height, width))) / np.maximum(frequency, 1 / width) ** 1.2
    texture = np.fft.ifft2(spectrum).real
    texture /= texture.std()
    x, y = np.meshgrid(np.linspace(-1, 1, width), np.linspace(-1, 1, height))
    angle = generator.uniform(0, 2 * np.pi)
    scene = 40 * (np.cos(angle) * x + np.sin(angle) * y) + 30 * (x + 0.3 * y > generator.uniform(-0.5, 0.5))
    levels = 110 + scene + generator.uniform(15, 35) * texture + generator.uniform(-25, 25, (3, 1, 1))
    return np.clip(levels, 0, 255).astype(np.uint8).transpose(1, 2, 0)


def write_photos(folder: Path, count: int, first_seed: int) -> None:
    """Write `count` files, JPEG and PNG in turn, with sides of about 100 pixels."""
    for seed in range(first_seed, first_seed + count):
        image = Image.fromarray(synthetic_photo(seed, 96 + 8 * (seed % 3), 88 + 4 * (seed % 5)))
        if seed % 2:
            image.save(folder / f"photo{seed:02}.png")
        else:
            image.save(folder / f"photo{seed:02}.jpg", quality=92)
