"""Aligned pairs: a part of a photograph, and what an autoencoder makes of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from mdmf_deploy.bundle.recipe import Pairs
from mdmf_deploy.errors import UsageError
from mdmf_deploy.files import atomic_file
from mdmf_deploy.tasks.train.autoencoders import (
    FACTOR,
    AutoencoderNet,
    autoencoder_hashes,
    load_autoencoder,
    reconstruct,
)

Pixels = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class PairMaker:
    """Reconstruct photographs, and keep the results as PNG files. A file that is already there is read.

    nets: the autoencoders by name.
    hashes: the SHA-256 of each one's files. They name the folders of its results.
    folder: where the results are kept.
    largest: the longest side that is passed through. Of larger photographs it is their middle.
    """

    nets: dict[str, AutoencoderNet]
    hashes: dict[str, list[str]]
    folder: Path
    largest: int

    @classmethod
    def load(cls, pairs: Pairs, weights: Path | None, folder: Path, device: torch.device, largest: int) -> PairMaker:
        """Load all autoencoders that a recipe names, the one held out, too.

        Raises UsageError without a folder of weights, or if one is missing there.
        """
        names = [*pairs.autoencoders, *filter(None, [pairs.held_out])]
        if names and weights is None:
            raise UsageError(
                f"the recipe's pairs need the autoencoders {', '.join(names)}; give the folder of their files with "
                "--autoencoders DIR, or leave [training.pairs] out of a recipe of your own"
            )
        if weights is None:
            return cls({}, {}, folder, largest)
        nets = {name: load_autoencoder(weights, name).to(device) for name in names}
        return cls(nets, {name: autoencoder_hashes(weights, name) for name in names}, folder, largest)

    def __call__(self, pixels: Pixels, sha256: str, name: str) -> tuple[Pixels, Pixels]:
        """Return the middle of a photograph (H, W, 3), and its reconstruction in the same size.

        sha256: of the photograph's file.
        name: of the autoencoder.
        """
        part = _middle(pixels, self.largest)
        path = self.folder / f"{name}-{self.hashes[name][1][:8]}-{self.largest}" / f"{sha256[:24]}.png"
        kept = _read(path)
        if kept is None or kept.shape != part.shape:
            path.parent.mkdir(parents=True, exist_ok=True)
            kept = reconstruct(self.nets[name], part, seed=int(sha256[:12], 16))
            with atomic_file(path) as scratch, scratch.open("wb") as file:
                Image.fromarray(kept).save(file, "PNG", compress_level=1)
        return part, kept


def large_enough(pixels: Pixels) -> bool:
    """Return whether a photograph can pass through an autoencoder."""
    return bool(min(pixels.shape[:2]) >= 4 * FACTOR)


def _read(path: Path) -> Pixels | None:
    """Return the pixels of a file, or None if there is none, or a broken one. Raises OSError if it cannot be read."""
    try:
        with Image.open(path) as image:
            image.load()
            return np.array(image)
    except FileNotFoundError:
        return None
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        return None  # cut short, for example by a power failure


def _middle(pixels: Pixels, largest: int) -> Pixels:
    height, width = (min(largest, side) // FACTOR * FACTOR for side in pixels.shape[:2])
    top, left = (pixels.shape[0] - height) // 2, (pixels.shape[1] - width) // 2
    return pixels[top : top + height, left : left + width]
