"""What training from pixels needs on disk: autoencoders, matched views, reconstructions; made once, then found."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from mdmf_deploy.bundle.recipe import Recipe
from mdmf_deploy.images.decode import decode, read
from mdmf_deploy.training.autoencoders import AutoencoderNet, autoencoder_name, train_autoencoder
from mdmf_deploy.training.batches import Images, Photograph
from mdmf_deploy.training.dataset import Dataset, Sample
from mdmf_deploy.training.views import write_reconstructions, write_views

Say = Callable[[str], None]


def prepare_images(recipe: Recipe, dataset: Dataset, folder: Path, say: Say = lambda line: None) -> Images:
    """Train the recipe's autoencoders and write every matched view and reconstruction, or find them there.

    folder: keeps autoencoders/ and views/, each file under a key of all that it depends on: what another recipe, seed
    or split has left there is never taken for this one's.
    """
    pairs, seed, crop = recipe.training.pairs, recipe.training.seed, recipe.preprocessing.crop
    photographs, generated = dataset.of("train", False), dataset.of("train", True)
    nets = _autoencoders(recipe, photographs, folder / "autoencoders", say)
    say(f"writing {pairs.views} views of {len(photographs) + len(generated)} images")
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


def _autoencoders(recipe: Recipe, photographs: Sequence[Sample], folder: Path, say: Say) -> list[AutoencoderNet]:
    plans, seed = recipe.training.pairs.autoencoders, recipe.training.seed
    shas = [sample.sha256 for sample in photographs]
    paths = [folder / f"{autoencoder_name(a)}-{_key(a, seed + n, shas)}.safetensors" for n, a in enumerate(plans)]
    missing = any(not path.is_file() for path in paths)
    pixels = [decode(read(sample.path)).pixels for sample in photographs] if missing else []
    nets = []
    for number, (plan, path) in enumerate(zip(plans, paths, strict=True)):
        net, psnr = train_autoencoder(plan, pixels, path, seed + number)
        say(f"autoencoder {autoencoder_name(plan)}: PSNR {psnr:.1f} dB")
        nets.append(net)
    return nets


def _key(*parts: object) -> str:
    return hashlib.sha256(msgspec.json.encode(parts)).hexdigest()[:12]
