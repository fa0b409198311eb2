"""Make large baseline JPEGs with the detail of a sharp photograph, without ever holding their pixels.

A picture consists of strips of 128 rows, each encoded alone with a restart marker behind every row of coded units.
Such strips can be joined: only the height in the header changes.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

SIZES = {"108 MP": (12_000, 9_000), "200 MP": (16_320, 12_240), "280 MP": (20_000, 14_000)}
_ROWS = 128  # eight rows of coded units of 16 pixels, which take the restart markers 0 to 7 in turn
_DRAWN = 4  # strips with noise of their own


def write_large(path: Path, width: int, height: int) -> None:
    """Write a JPEG of quality 88, 4:2:0, unless it is there."""
    if path.exists():
        return
    strips = [_encoded(width, _ROWS, seed) for seed in range(_DRAWN)]
    scan = strips[0].index(b"\xff\xda")
    frame = strips[0].index(b"\xff\xc0")
    data = scan + 2 + int.from_bytes(strips[0][scan + 2 : scan + 4], "big")
    head = bytearray(strips[0][:data])
    head[frame + 5 : frame + 7] = height.to_bytes(2, "big")
    scratch = path.with_suffix(".part")
    with scratch.open("wb") as file:
        file.write(head)
        for n, top in enumerate(range(0, height, _ROWS)):
            rows = min(_ROWS, height - top)
            strip = strips[n % _DRAWN] if rows == _ROWS else _encoded(width, rows, n)
            file.write(strip[data:-2] + (b"\xff\xd7" if top + rows < height else b"\xff\xd9"))
    scratch.rename(path)


def _encoded(width: int, rows: int, seed: int) -> bytes:
    """Encode slow waves under the noise of a sensor."""
    generator = np.random.default_rng(seed)
    x = np.arange(width, dtype=np.float32)
    waves = np.stack([110 + 60 * np.sin(x / (90 + 40 * n) + seed) for n in range(3)], -1)
    noise = generator.standard_normal((rows, width, 3), np.float32) * 7
    pixels = (waves + noise).clip(0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=88, subsampling="4:2:0", restart_marker_rows=1)
    return buffer.getvalue()
