"""Matched views: the same scales and JPEG qualities for real photographs and for everything generated.

Every image of both classes is written as JPEG files whose treatment is drawn from one distribution, so that neither
the codec nor the scale tells the classes apart; reconstructions share the treatment of the photograph they are of.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mdmf_deploy.bundle.recipe import Pairs
from mdmf_deploy.training.autoencoders import AutoencoderNet, autoencoder_name, reconstruct

_SOURCE_QUALITY = 92


@dataclass(frozen=True, slots=True)
class Treatment:
    """scale: factor <= 1 (Lanczos).  quality: JPEG, 4:2:0."""

    scale: float
    quality: int


def treatments(sha256: str, plan: Pairs, crop: int, shape: tuple[int, int], seed: int) -> list[Treatment]:
    """The `plan.views` treatments of an image, drawn by its hash; never so small that the crop would be mirrored."""
    rng = np.random.default_rng([seed, int(sha256[:12], 16)])
    drawn = []
    for view in range(plan.views):
        lowest = min(1.0, max(plan.min_scale, crop / min(shape)))
        # Half of the views keep the scale: shrinking erases the very traces that training is after.
        scale = 1.0 if view % 2 == 0 else float(rng.uniform(lowest, 1.0))
        drawn.append(Treatment(scale, int(rng.integers(plan.jpeg_quality[0], plan.jpeg_quality[1] + 1))))
    return drawn


def treat(pixels: NDArray[np.uint8], treatment: Treatment) -> bytes:
    """(H, W, 3) -> the bytes of its JPEG under this treatment."""
    image = Image.fromarray(pixels)
    if treatment.scale < 1.0:
        size = tuple(max(1, round(side * treatment.scale)) for side in image.size)
        image = image.resize((size[0], size[1]), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=treatment.quality, subsampling="4:2:0")
    return buffer.getvalue()


def write_views(pixels: NDArray[np.uint8], sha256: str, plan: Pairs, crop: int, seed: int, folder: Path) -> list[Path]:
    """Write an image's treated views once; returns their paths in view order."""
    height, width = pixels.shape[:2]
    paths = []
    for view, treatment in enumerate(treatments(sha256, plan, crop, (height, width), seed)):
        path = folder / f"{sha256[:16]}-{view}.jpg"
        if not path.is_file():
            _write(path, treat(pixels, treatment))
        paths.append(path)
    return paths


def write_reconstructions(
    pixels: NDArray[np.uint8],
    sha256: str,
    plan: Pairs,
    nets: Sequence[AutoencoderNet],
    crop: int,
    seed: int,
    folder: Path,
) -> list[Path]:
    """Write one reconstruction for each view, the autoencoders taking turns; same treatment as the photograph's view.

    A reconstruction first passes through a JPEG of its own, as its photograph once did: otherwise one class would be
    compressed twice and the other once.
    """
    height, width = pixels.shape[:2]
    paths = []
    for view, treatment in enumerate(treatments(sha256, plan, crop, (height, width), seed)):
        turn = (int(sha256[:8], 16) + view) % len(nets)
        path = folder / f"{sha256[:16]}-{view}-{autoencoder_name(plan.autoencoders[turn])}.jpg"
        if not path.is_file():
            reconstruction = reconstruct(nets[turn], pixels, plan.autoencoders[turn].factor)
            stored = treat(reconstruction, Treatment(1.0, _SOURCE_QUALITY))
            _write(path, treat(np.asarray(Image.open(io.BytesIO(stored))), treatment))
        paths.append(path)
    return paths


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_suffix(".part")
    scratch.write_bytes(data)
    scratch.rename(path)
