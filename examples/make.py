"""Make photographs and generated images like those in examples/. Needs scikit-image, scikit-learn and TAESD.

    python examples/make.py TAESD OUT

TAESD: the folder of the autoencoders' files that the starter's recipe names.
OUT: the folder that gets photographs/ and generated/.

Both halves of a pair go through the same last step (at most 512 pixels per side, JPEG quality 92, 4:2:0), so that only
the decoder's traces tell them apart.
"""

from __future__ import annotations

import argparse
from importlib.resources import files
from pathlib import Path

import numpy as np
from PIL import Image

from mdmf_deploy.bundle.recipe import load_recipe
from mdmf_deploy.images.decode import decode
from mdmf_deploy.tasks.train.autoencoders import FACTOR, load_autoencoder, reconstruct

SOURCES = {
    "astronaut": files("skimage.data") / "astronaut.png",
    "cat": files("skimage.data") / "chelsea.png",
    "coffee": files("skimage.data") / "coffee.png",
    "rocket": files("skimage.data") / "rocket.jpg",
    "palace": files("sklearn.datasets.images") / "china.jpg",
    "flower": files("sklearn.datasets.images") / "flower.jpg",
}


def save(pixels: np.ndarray, path: Path) -> None:
    """Take the last step."""
    Image.fromarray(pixels).save(path, "JPEG", quality=92, subsampling="4:2:0")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("taesd", type=Path)
    parser.add_argument("out", type=Path)
    options = parser.parse_args()
    autoencoders = load_recipe("starter").training.pairs.autoencoders
    for folder in ("photographs", "generated"):
        (options.out / folder).mkdir(parents=True, exist_ok=True)
    for turn, (name, source) in enumerate(SOURCES.items()):
        photograph = Image.fromarray(decode(source.read_bytes()).pixels)
        photograph.thumbnail((512, 512), Image.Resampling.LANCZOS)
        pixels = np.asarray(photograph)
        height, width = (side // FACTOR * FACTOR for side in pixels.shape[:2])
        autoencoder = autoencoders[turn % len(autoencoders)]
        generated = reconstruct(load_autoencoder(options.taesd, autoencoder), pixels[:height, :width])
        save(pixels, options.out / "photographs" / f"{name}.jpg")
        save(generated, options.out / "generated" / f"{name}-{autoencoder}.jpg")


if __name__ == "__main__":
    main()
