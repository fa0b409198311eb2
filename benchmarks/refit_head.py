"""Fit the head of a checkpoint again, from scratch, on features of its backbone and on more real sources.

    python benchmarks/refit_head.py CHECKPOINT WHEEL DATA -o OUT.safetensors [--more-reals DIR ...] [--baselines]

The detector `dinov2s` was made in two stages. `gpu/train_detectors.py` trained LoRA factors and a head on a GPU. That
head called photographs generated that were never compressed. So a new head was fitted on a CPU, by patch cross-entropy
alone, and its real class held such photographs too. This script is the second stage. Backbone, LoRA factors, bandwidth
and metadata of CHECKPOINT go into OUT unchanged. Then it measures the new head on sources that were held out.

It is a cleaned version: **it has not made the file that ships.** The run that did differs in these points.
- Its crops were made by Pillow, with real JPEG or WebP coding last. Here `tasks/train/augment.py` simulates JPEG on
  tensors, and WebP comes first, as in `mdmf train`. Its scales went down to 0.45, here to 0.55.
- Its backbone ran in OpenVINO, here in PyTorch. Both use float32 and keep features in float16.
- It used half of the images of sd1 and gpt_image_1, and most of those of imagenet.
- A quarter of five real sources was kept back to set thresholds. Here a source is trained on as a whole or held out.
- It drew images with repetition. Here a batch repeats an image only if a class has too few.
- It standardised channels by 60 images of each source, here by ten batches.
"""

from __future__ import annotations

import argparse
import copy
import io
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from common import header, table
from numpy.typing import NDArray
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from mdmf_deploy.bundle.recipe import Part, Preprocessing, Recipe, load_recipe, source_of
from mdmf_deploy.errors import MdmfError, UsageError
from mdmf_deploy.files import file_sha256
from mdmf_deploy.images.crops import center_crop
from mdmf_deploy.images.decode import decode, read
from mdmf_deploy.images.inputs import expand
from mdmf_deploy.model.checkpoints import load_model, save_model
from mdmf_deploy.model.lora import Lora
from mdmf_deploy.model.onnx_weights import weights_source
from mdmf_deploy.model.pfs import MdmfModel, PfsHead
from mdmf_deploy.model.recipes import recipe_of
from mdmf_deploy.model.tensors import read_facts, read_tensors
from mdmf_deploy.tasks.train.augment import MARGIN, Canvases, Degradation, Draws, augment
from mdmf_deploy.tasks.train.batches import SourceSampler, normalised
from mdmf_deploy.tasks.train.data import Dataset, LabelledImage, spread
from mdmf_deploy.tasks.train.featureless import featureless
from mdmf_deploy.tasks.train.features import FeatureCache
from mdmf_deploy.tasks.train.objectives import classification_loss
from mdmf_deploy.tasks.train.validate import Record, Validation, auroc, require_bank

Features = NDArray[np.float16]
Pixels = NDArray[np.uint8]

BATCH, CENTRES = 48, 0.3  # Crops of each class, and how often a crop is the image's central one, untouched.
BLANKS, BANK_IMAGES, BASELINE_BATCHES = 240, 300, 60
RATE, DECAY, DROPOUT, WARMUP, AVERAGE = 1e-3, 0.05, 0.1, 50, 0.99
CODED = Degradation(rescaled=0, blurred=0, noisy=0, jpeg_twice=0)
FIGURES = ("auroc_mean", "auroc_swapped", "mean_kernel", "self_rank", "fpr_featureless")


def find(data: Path, more_reals: Sequence[Path], held_out: Sequence[str], limit: int | None) -> Dataset:
    """Return all images by source, at most `limit` of each. Those of held-out sources are the test part.

    Raises UsageError if a class has fewer than two images to train on, or held out.
    """
    sources: dict[str, list[Path]] = {}
    for path in expand([str(data / "real"), *map(str, more_reals)]).paths:
        sources.setdefault(source_of(path), []).append(path)
    for folder in sorted(path for path in (data / "generated").glob("*") if path.is_dir()):
        sources[f"generated/{folder.name}"] = list(expand([str(folder)]).paths)
    images: dict[str, LabelledImage] = {}
    for source, paths in sources.items():
        part: Part = "train" if {source, source.partition("/")[2]}.isdisjoint(held_out) else "test"
        found = [LabelledImage(path, file_sha256(path), source, part) for path in paths]
        for image in spread(found, limit or len(found)):
            images.setdefault(image.sha256, image)
    dataset = Dataset(tuple(images.values()), ())
    for kind, generated in (("real", False), ("generated", True)):
        if min(len(dataset.of("train", generated)), len(dataset.of("test", generated))) < 2:
            raise UsageError(f"{data}: expected 2 {kind} images or more to train on, and 2 held out; see --held-out")
    return dataset


def augmented(pixels: Pixels, size: int, how: Degradation, rng: torch.Generator, enlarge: bool = False) -> Tensor:
    """Return one random crop, (1, 3, size, size), in levels of 0 to 255."""
    chance, level, factor = torch.rand(3, generator=rng).tolist()
    if chance < how.webp:
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "WEBP", quality=round(40 + 58 * level), method=0)
        pixels = np.array(Image.open(buffer))
    draws = Draws.sample(1, how, rng)
    if enlarge:
        draws = replace(draws, scale=6 + 10 * factor)
    canvas = Canvases.of([torch.from_numpy(pixels.copy())], max(pixels.shape[:2]))
    noise = torch.randn(1, 3, size + MARGIN, size + MARGIN, generator=rng)
    return augment(canvas, torch.zeros(1, dtype=torch.long), draws, size, noise)


@dataclass(frozen=True, slots=True)
class Pool:
    """Features (..., N, C) of every crop.

    views: by SHA-256 (1 + V, N, C), the central crop first. An image that is held out has no other.
    enlarged, blank: corners of photographs, and images without texture.
    """

    dataset: Dataset
    views: dict[str, Features]
    enlarged: Features
    blank: Features

    def centres(self, images: Sequence[LabelledImage]) -> NDArray[np.float32]:
        """Return the central crops of images, (n, N, C)."""
        return np.stack([self.views[image.sha256][0] for image in images]).astype(np.float32)

    def held_out(self) -> tuple[NDArray[np.float32], dict[str, NDArray[np.float32]]]:
        """Return the central crops of the held-out real images, and of the held-out generators by name."""
        made = self.dataset.of("test", True)
        names = sorted({str(image.generator) for image in made})
        generated = {name: self.centres([image for image in made if image.generator == name]) for name in names}
        return self.centres(self.dataset.of("test", False)), generated


def crops_of(images: list[LabelledImage], how: Preprocessing, views: int, enlarge: bool = False) -> Iterator[Tensor]:
    """Yield the crops of each image, normalised: the central one, unless they are enlarged, and random ones.

    They follow from the image's SHA-256 alone.
    """
    for image in images:
        pixels = decode(read(image.path)).pixels
        rng = torch.Generator().manual_seed(int(image.sha256[:15], 16) + enlarge)
        made = [augmented(pixels, how.crop, Degradation(), rng, enlarge) for _ in range(views)]
        if not enlarge:
            centre = center_crop(pixels, how.crop).pixels
            made.insert(0, torch.from_numpy(centre.copy()).permute(0, 3, 1, 2).float())
        yield normalised(torch.cat(made), how)


def extract(dataset: Dataset, cache: FeatureCache, views: int) -> Pool:
    """Compute the features of every crop, source by source, unless they are cached."""
    how, found, enlarged = cache.preprocessing, dict[str, Features](), list[Features]()
    for source in dict.fromkeys(image.source for image in dataset.images):
        images = [image for image in dataset.images if image.source == source]
        count = views if images[0].part == "train" else 0
        start, hashes = time.perf_counter(), [image.sha256 for image in images]
        features = cache(partial(crops_of, images, how, count), "views", str(count), *hashes)
        found |= dict(zip(hashes, features.reshape(len(images), 1 + count, *features.shape[1:]), strict=True))
        if count and images[0].kind == "photograph":
            enlarged.append(cache(partial(crops_of, images[::8], how, 1, True), "enlarged", *hashes))
        print(f"{source}: {len(features)} crops in {time.perf_counter() - start:.0f} s", flush=True)

    def blanks() -> Iterator[Tensor]:
        rng, draws = np.random.default_rng(1), torch.Generator().manual_seed(1)
        for _ in range(BLANKS):
            yield normalised(augmented(featureless(rng, 2 * how.crop), how.crop, CODED, draws), how)

    blank = cache(blanks, "blank", str(BLANKS))
    return Pool(dataset, found, np.concatenate([*enlarged, blank[:0]]), blank)


class Sampler:
    """Draw batches of features, (2 * BATCH, N, C), the real half first.

    Real ones are photographs, art, enlarged corners and images without texture, in the recipe's shares.
    """

    def __init__(self, pool: Pool, recipe: Recipe, seed: int) -> None:
        real = pool.dataset.of("train", False)
        photographs = [image for image in real if image.kind == "photograph"] or real
        drawn = [image for image in real if image.kind != "photograph"]
        shares = recipe.training.reals
        blank = round(shares.featureless * BATCH)
        enlarged = round(shares.enlarged * BATCH) if len(pool.enlarged) else 0
        rest = BATCH - blank - enlarged
        art = int(shares.drawn * rest) if drawn else 0
        self._parts = [(SourceSampler(photographs), rest - art), (SourceSampler(drawn), art)]
        self._others = [(pool.enlarged, enlarged), (pool.blank, blank)]
        self._generated = SourceSampler(pool.dataset.of("train", True))
        self._views, self._rng = pool.views, np.random.default_rng(seed)

    def __call__(self) -> Tensor:
        chosen = [crop for sampler, count in self._parts for crop in self._draw(sampler, count)]
        chosen += [rows[i] for rows, count in self._others if count for i in self._rng.integers(len(rows), size=count)]
        chosen += self._draw(self._generated, BATCH)
        return torch.from_numpy(np.stack(chosen).astype(np.float32))

    def _draw(self, sampler: SourceSampler, count: int) -> Iterator[Features]:
        for image in sampler.draw(self._rng, count):
            views = self._views[image.sha256]
            yield views[0 if self._rng.random() < CENTRES else self._rng.integers(1, len(views))]


class Classifier(nn.Module):
    """A head and a linear probe on its signatures: patches (n, N, C) to logits (n, N)."""

    def __init__(self, width: int, recipe: Recipe) -> None:
        super().__init__()
        self.head = PfsHead(width, recipe.head)
        self.head.dropout.p = DROPOUT
        self.probe = nn.Linear(recipe.head.signature, 1)

    def forward(self, patches: Tensor) -> Tensor:
        # The factor lets a probe of ordinary weights use many logits on signatures of length one.
        logits: Tensor = 8 * self.probe(self.head.signatures(patches)).squeeze(-1)
        return logits


def fit(pool: Pool, recipe: Recipe, steps: int, seed: int, pooled: bool = False) -> Classifier:
    """Fit a classifier by cross-entropy on every patch, or on the mean patch. Return its weights' moving average."""
    torch.manual_seed(seed)
    draw = Sampler(pool, recipe, seed)

    def sample() -> Tensor:
        return draw().mean(1, keepdim=True) if pooled else draw()

    start = torch.cat([sample() for _ in range(10)]).flatten(0, 1)
    net = Classifier(start.shape[1], recipe)
    net.head.standardise(start.mean(0), start.std(0))
    average = copy.deepcopy(net).requires_grad_(False)
    optimiser = torch.optim.AdamW(net.parameters(), lr=RATE, weight_decay=DECAY, betas=(0.9, 0.99))
    for step in range(steps):
        falling = 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * step / steps))
        for group in optimiser.param_groups:
            group["lr"] = RATE * min(1.0, (step + 1) / WARMUP) * falling
        loss = classification_loss(net(sample()))
        optimiser.zero_grad()
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimiser.step()
        with torch.no_grad():
            keep = min(AVERAGE, (step + 1) / (step + 10))
            torch._foreach_lerp_(list(average.parameters()), list(net.parameters()), 1 - keep)
    return average.eval()


def signatures_of(detector: MdmfModel, features: NDArray[np.generic]) -> NDArray[np.float32]:
    return np.asarray(detector.head.signatures(torch.from_numpy(features.astype(np.float32))))


def measure(detector: MdmfModel, head: PfsHead, pool: Pool) -> Record:
    """Return the figures of Validation on the held-out sources, against a bank of training reals."""
    detector.head = head
    bank, swapped = (pool.centres(spread(pool.dataset.of("train", made), BANK_IMAGES)) for made in (False, True))
    real, generated = pool.held_out()
    return Validation(signatures_of, bank, swapped, real, generated, {"featureless": pool.blank})(detector)


def baselines(pool: Pool, recipe: Recipe, steps: int, seed: int) -> dict[str, list[float]]:
    """Return the AUROC of plainer detectors on the same features: of each held-out generator, by name."""
    sample, rng = Sampler(pool, recipe, seed), np.random.default_rng(seed)
    means, patches = [], []
    for _ in range(min(steps, BASELINE_BATCHES)):
        batch = sample()
        means.append(batch.mean(1).numpy())
        # One patch of each crop: a million correlated ones would take hours.
        patches.append(batch.numpy()[np.arange(len(batch)), rng.integers(batch.shape[1], size=len(batch))])
    labels = np.tile(np.repeat([0, 1], BATCH), len(means))
    regression, probe = (
        make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=500)).fit(np.concatenate(x), labels)
        for x in (means, patches)
    )
    network = fit(pool, recipe, steps, seed, pooled=True)

    ways: dict[str, Callable[[NDArray[np.float32]], NDArray[np.float64]]] = {
        "logistic regression, mean token": lambda x: regression.decision_function(x.mean(1)),
        # The mean logit is the logit of the mean patch: both are linear.
        "patch probe, mean logit": lambda x: probe.decision_function(x.mean(1)),
        "cross-entropy MLP, mean token": lambda x: network(torch.from_numpy(x.mean(1, keepdims=True)))[:, 0].numpy(),
    }
    real, generated = pool.held_out()
    return {name: [auroc(way(real), way(made)) for made in generated.values()] for name, way in ways.items()}


def save(detector: MdmfModel, recipe: Recipe, checkpoint: Path, weights: Path, output: Path) -> None:
    """Write the detector with its recipe, and the LoRA factors and other metadata of the checkpoint it came from."""
    facts = read_facts(checkpoint) | {"recipe": recipe}
    factors = {k.removeprefix("lora."): v for k, v in read_tensors(checkpoint).items() if k.startswith("lora.")}
    lora = Lora(factors, float(facts["lora_scale"])) if factors else None
    save_model(output, detector, facts, weights_source(weights), lora)


def cells(values: Iterable[float]) -> list[str]:
    return [f"{value:.3f}" for value in values]


def refit(options: argparse.Namespace) -> None:
    recipe = load_recipe(options.recipe) if options.recipe else recipe_of(options.checkpoint, None)
    detector = load_model(options.checkpoint, recipe, options.wheel).eval()
    held_out = options.held_out or recipe.training.split.held_out
    dataset = find(options.data, options.more_reals, held_out, options.limit)
    header("torch", "scikit-learn")
    folder = options.features or options.output.with_suffix(".features")
    pool = extract(dataset, FeatureCache(detector, recipe.preprocessing, folder), options.views)
    seeds = range(options.seed, options.seed + options.seeds)
    heads = [fit(pool, recipe, options.steps, seed).head for seed in seeds]
    records = [measure(detector, head, pool) for head in heads]
    generators = list(pool.held_out()[1])
    columns = (*FIGURES, *(f"auroc_{name}" for name in generators))
    values = np.array([[record[key] for key in columns] for record in records])
    rows = {f"seed {seed}": row for seed, row in zip(seeds, values, strict=True)}
    if len(rows) > 1:
        rows |= {"mean": values.mean(0), "standard deviation": values.std(0, ddof=1)}
    print("\n" + table([(name, *cells(row)) for name, row in rows.items()], ("head", *columns)), flush=True)
    if options.baselines:
        found = baselines(pool, recipe, options.steps, options.seed).items()
        lines = [(name, *cells([float(np.mean(areas)), *areas])) for name, areas in found]
        print(table(lines, ("AUROC of", "mean", *generators)), flush=True)
    require_bank(records[0], recipe.training.gate)
    detector.head = heads[0]
    save(detector, recipe, options.checkpoint, options.wheel, options.output)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, help="a checkpoint whose backbone is in a file of its own")
    parser.add_argument("wheel", type=Path, help="that file of backbone weights")
    parser.add_argument("data", type=Path, help="a folder with real/SOURCE/ and generated/SOURCE/")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--more-reals", type=Path, nargs="+", default=[], metavar="DIR", help="folders of real sources")
    parser.add_argument("--held-out", nargs="+", metavar="NAME", help="sources to judge by; else those of the recipe")
    parser.add_argument("--recipe", help="a name or a .toml file; else the checkpoint's own")
    parser.add_argument("--features", type=Path, help="folder of cached features; else OUTPUT with .features")
    parser.add_argument("--steps", type=int, default=450)
    parser.add_argument("--seed", type=int, default=0, help="of the head that is written")
    parser.add_argument("--seeds", type=int, default=1, help="how many heads to fit, to see the spread")
    parser.add_argument("--views", type=int, default=3, help="augmented crops of an image")
    parser.add_argument("--limit", type=int, help="at most so many images of a source")
    parser.add_argument("--baselines", action="store_true", help="judge plainer detectors on the same features")
    options = parser.parse_args(arguments)
    for name in ("steps", "seeds", "views"):
        if getattr(options, name) < 1:
            parser.error(f"--{name}: expected 1 or more, got {getattr(options, name)}")
    try:
        refit(options)
    except MdmfError as error:
        raise SystemExit(f"refit_head.py: {error}") from error


if __name__ == "__main__":
    main()
