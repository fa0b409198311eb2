"""Matched views: the same scales and JPEG qualities for real photographs and for generated images.

Every image of both classes is written as JPEG files whose treatment is drawn from one distribution. Neither the codec
nor the scale then tells the classes apart. A reconstruction shares the treatment of its photograph.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mdmf_deploy.bundle.recipe import Pairs, Recipe
from mdmf_deploy.files import atomic_file
from mdmf_deploy.images.decode import decode, read
from mdmf_deploy.tasks.train.autoencoders import AutoencoderNet, autoencoder_name, reconstruct, train_autoencoder
from mdmf_deploy.tasks.train.data import Dataset, LabelledImage, Photograph, TrainingImages

_SOURCE_QUALITY = 92

# Receives one line of progress at a time.
Log = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Treatment:
    """The change made to an image before training sees it.

    scale: factor <= 1, applied with Lanczos resampling.
    quality: of the JPEG, at 4:2:0.
    """

    scale: float
    quality: int


@dataclass(frozen=True, slots=True)
class Views:
    """Write the treated views of images. A file that is already there is kept.

    crop: the training crop's side in pixels.
    """

    pairs: Pairs
    crop: int
    seed: int

    def treatments(self, sha256: str, shape: tuple[int, ...]) -> list[Treatment]:
        """Draw the treatments of an image by its hash. None shrinks it so far that a crop would be mirrored."""
        rng = np.random.default_rng([self.seed, int(sha256[:12], 16)])
        lowest = min(1.0, max(self.pairs.min_scale, self.crop / min(shape)))
        drawn = []
        for view in range(self.pairs.views):
            # Half of the views keep the scale, because shrinking erases the very traces to learn.
            scale = 1.0 if view % 2 == 0 else float(rng.uniform(lowest, 1.0))
            low, high = self.pairs.jpeg_quality
            drawn.append(Treatment(scale, int(rng.integers(low, high + 1))))
        return drawn

    def write(self, pixels: NDArray[np.uint8], sha256: str, folder: Path) -> list[Path]:
        """Write an image's views, and return their paths in view order."""
        paths = []
        for view, treatment in enumerate(self.treatments(sha256, pixels.shape[:2])):
            path = folder / f"{sha256[:16]}-{view}.jpg"
            if not path.is_file():
                _write(path, treat(pixels, treatment))
            paths.append(path)
        return paths

    def write_reconstructions(
        self, pixels: NDArray[np.uint8], sha256: str, nets: Sequence[AutoencoderNet], folder: Path
    ) -> list[Path]:
        """Write one reconstruction per view of the photograph, with the view's treatment. Autoencoders take turns.

        A reconstruction first passes through a JPEG of its own, as its photograph once did. Otherwise one class would
        be compressed twice and the other once.
        """
        paths = []
        for view, treatment in enumerate(self.treatments(sha256, pixels.shape[:2])):
            turn = (int(sha256[:8], 16) + view) % len(nets)
            autoencoder = self.pairs.autoencoders[turn]
            path = folder / f"{sha256[:16]}-{view}-{autoencoder_name(autoencoder)}.jpg"
            if not path.is_file():
                stored = treat(reconstruct(nets[turn], pixels, autoencoder.factor), Treatment(1.0, _SOURCE_QUALITY))
                _write(path, treat(np.asarray(Image.open(io.BytesIO(stored))), treatment))
            paths.append(path)
        return paths


def treat(pixels: NDArray[np.uint8], treatment: Treatment) -> bytes:
    """Return the JPEG file of an image (H, W, 3) under this treatment."""
    image = Image.fromarray(pixels)
    if treatment.scale < 1.0:
        size = tuple(max(1, round(side * treatment.scale)) for side in image.size)
        image = image.resize((size[0], size[1]), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=treatment.quality, subsampling="4:2:0")
    return buffer.getvalue()


def prepare_images(recipe: Recipe, dataset: Dataset, folder: Path, log: Log = lambda line: None) -> TrainingImages:
    """Train the recipe's autoencoders and write every view and reconstruction, unless they are there already.

    folder: keeps autoencoders/ and views/. Each file has a key of everything it depends on, so that files of another
    recipe, seed or split are never used by mistake.
    """
    pairs, seed, crop = recipe.training.pairs, recipe.training.seed, recipe.preprocessing.crop
    photographs, generated = dataset.of("train", False), dataset.of("train", True)
    nets = _autoencoders(recipe, photographs, folder / "autoencoders", log)
    log(f"writing {pairs.views} views of {len(photographs) + len(generated)} images")
    views_folder = folder / "views" / _key(pairs, crop, seed, [image.sha256 for image in photographs])
    views = Views(pairs, crop, seed)
    real: list[Photograph] = []
    others: dict[str, list[tuple[Path, ...]]] = {}
    for image in [*photographs, *generated]:
        pixels = decode(read(image.path)).pixels
        name = image.generator or "real"
        written = views.write(pixels, image.sha256, views_folder / name)
        if image.generator is not None:
            others.setdefault(name, []).append((image.path, *written))
            continue
        reconstructions: list[Path] = []
        if nets:
            reconstructions = views.write_reconstructions(pixels, image.sha256, nets, views_folder / "reconstructed")
        real.append(Photograph(image.path, tuple(written), tuple(reconstructions)))
    return TrainingImages(tuple(real), {name: tuple(files) for name, files in others.items()})


def _autoencoders(recipe: Recipe, photographs: Sequence[LabelledImage], folder: Path, log: Log) -> list[AutoencoderNet]:
    autoencoders, seed = recipe.training.pairs.autoencoders, recipe.training.seed
    hashes = [image.sha256 for image in photographs]
    paths = [
        folder / f"{autoencoder_name(autoencoder)}-{_key(autoencoder, seed + number, hashes)}.safetensors"
        for number, autoencoder in enumerate(autoencoders)
    ]
    missing = any(not path.is_file() for path in paths)
    pixels = [decode(read(image.path)).pixels for image in photographs] if missing else []
    nets = []
    for number, (autoencoder, path) in enumerate(zip(autoencoders, paths, strict=True)):
        net, psnr = train_autoencoder(autoencoder, pixels, path, seed + number)
        log(f"autoencoder {autoencoder_name(autoencoder)}: PSNR {psnr:.1f} dB")
        nets.append(net)
    return nets


def _key(*parts: object) -> str:
    return hashlib.sha256(msgspec.json.encode(parts)).hexdigest()[:12]


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as scratch:
        scratch.write_bytes(data)
