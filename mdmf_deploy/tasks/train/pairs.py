"""Matched views: the same scales and JPEG qualities for real photographs and for everything generated.

Every image of both classes is written as JPEG files whose treatment is drawn from one distribution, so that neither
the codec nor the scale tells the classes apart; reconstructions share the treatment of the photograph they are of.
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
from mdmf_deploy.images.decode import decode, read
from mdmf_deploy.tasks.train.autoencoders import AutoencoderNet, autoencoder_name, reconstruct, train_autoencoder
from mdmf_deploy.tasks.train.data import Dataset, Images, Photograph, Sample

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


Log = Callable[[str], None]


def prepare_images(recipe: Recipe, dataset: Dataset, folder: Path, log: Log = lambda line: None) -> Images:
    """Train the recipe's autoencoders and write every matched view and reconstruction, or find them there.

    folder: keeps autoencoders/ and views/, each file under a key of all that it depends on: what another recipe, seed
    or split has left there is never taken for this one's.
    """
    pairs, seed, crop = recipe.training.pairs, recipe.training.seed, recipe.preprocessing.crop
    photographs, generated = dataset.of("train", False), dataset.of("train", True)
    nets = _autoencoders(recipe, photographs, folder / "autoencoders", log)
    log(f"writing {pairs.views} views of {len(photographs) + len(generated)} images")
    views_folder = folder / "views" / _key(pairs, crop, seed, [sample.sha256 for sample in photographs])
    real: list[Photograph] = []
    others: dict[str, list[tuple[Path, ...]]] = {}
    for sample in [*photographs, *generated]:
        image = decode(read(sample.path)).pixels
        name = sample.generator or "real"
        views = write_views(image, sample.sha256, pairs, crop, seed, views_folder / name)
        if sample.generator is not None:
            others.setdefault(name, []).append((sample.path, *views))
            continue
        reconstructions: list[Path] = []
        if nets:
            target = views_folder / "reconstructed"
            reconstructions = write_reconstructions(image, sample.sha256, pairs, nets, crop, seed, target)
        real.append(Photograph(sample.path, tuple(views), tuple(reconstructions)))
    return Images(tuple(real), {name: tuple(files) for name, files in others.items()})


def _autoencoders(recipe: Recipe, photographs: Sequence[Sample], folder: Path, log: Log) -> list[AutoencoderNet]:
    plans, seed = recipe.training.pairs.autoencoders, recipe.training.seed
    shas = [sample.sha256 for sample in photographs]
    paths = [folder / f"{autoencoder_name(a)}-{_key(a, seed + n, shas)}.safetensors" for n, a in enumerate(plans)]
    missing = any(not path.is_file() for path in paths)
    pixels = [decode(read(sample.path)).pixels for sample in photographs] if missing else []
    nets = []
    for number, (plan, path) in enumerate(zip(plans, paths, strict=True)):
        net, psnr = train_autoencoder(plan, pixels, path, seed + number)
        log(f"autoencoder {autoencoder_name(plan)}: PSNR {psnr:.1f} dB")
        nets.append(net)
    return nets


def _key(*parts: object) -> str:
    return hashlib.sha256(msgspec.json.encode(parts)).hexdigest()[:12]
