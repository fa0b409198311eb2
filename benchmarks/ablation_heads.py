"""The settings of `ablation.py`, the heads trained for them, and the scores of each decision rule."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from ablation_features import Features, Pool, by_generator, channels
from msgspec.structs import replace
from numpy.typing import NDArray
from torch import Tensor

from mdmf_deploy.bundle.bank import Bank, BankSource
from mdmf_deploy.bundle.recipe import Adapters, Pairs, Recipe
from mdmf_deploy.files import atomic_file
from mdmf_deploy.mmd import score_images
from mdmf_deploy.mmd.cpu import CpuReduction
from mdmf_deploy.mmd.reference import uniform_bank
from mdmf_deploy.model.pfs import MdmfModel
from mdmf_deploy.tasks.train.batches import SourceSampler, TrainingBatch
from mdmf_deploy.tasks.train.data import LabelledImage
from mdmf_deploy.tasks.train.loop import Cadence, LoopOptions, train
from mdmf_deploy.tasks.train.network import TrainingNet
from mdmf_deploy.tasks.train.objectives import gram
from mdmf_deploy.tasks.train.validate import auroc

Signatures = NDArray[np.float32]
Values = NDArray[np.float64]
# The scores of the test images by group: "real", or a generator's name.
Scores = dict[str, Values]

DEFAULT, OF_CROPS = "default", "crops"
GRIDS = {16: 14, 56: 4}
"""The grid of each patch size W in pixels, besides the default's 7 x 7 at W = 32."""
BLOCKS = ((3,), (6,), (9,), (11,), (12,))
WIDTHS = (16, 32, 64, 256)
CROPS = (2, 4, 5)
BANK = 4096
BANK_SIZES = (64, 256, 1024)
BANK_IMAGES = (4, 16, 64, 256)
DRAWS = 3
# A step sees at most so many patches of an image, drawn at random. They are as many as the coarsest grid has, so
# training costs the same on each of them.
MOST_PATCHES = 16
# Thresholds of hard votes that are tried: so many quantiles of patch scores.
LEVELS = 99
_SCORED = 64


@dataclass(frozen=True, slots=True)
class Setting:
    """One way to train a head. Its recipe holds the grid, the blocks, d and the objective."""

    name: str
    recipe: Recipe


def base_recipe(recipe: Recipe, steps: int, batch: int) -> Recipe:
    """Return a recipe for training a head on a frozen backbone: without adapters and pairs, in few steps."""
    training = replace(
        recipe.training, lora=Adapters(), pairs=Pairs(), steps=steps, batch=batch, warmup=min(20, steps // 4)
    )
    return replace(recipe, training=training)


def settings(base: Recipe) -> list[Setting]:
    """Return the default, and the settings that differ from it in one factor."""
    head, training = base.head, base.training

    def of(name: str, **changes: object) -> Setting:
        return Setting(name, replace(base, **changes))

    found = [Setting(DEFAULT, base)]
    found += [of(f"W {w}", head=replace(head, pool=grid)) for w, grid in GRIDS.items()]
    found += [of("global", head=replace(head, pool=1))]
    for blocks in BLOCKS:
        name = f"blocks {'+'.join(map(str, blocks))}"
        found.append(of(name, backbone=replace(base.backbone, blocks=blocks)))
    found += [of(f"d {d}", head=replace(head, signature=d)) for d in WIDTHS]
    alone = replace(training, patch_cross_entropy=0.0)
    found += [
        of("objective image", training=alone),
        of("objective pooled", training=replace(alone, objective="pooled")),
        of("objective cross-entropy", training=replace(training, test_power=0.0)),
    ]
    return found


class TokenBatches:
    """Batches of training tokens (Batches of mdmf_deploy.tasks.train), balanced over sources."""

    def __init__(self, pool: Pool, recipe: Recipe) -> None:
        self._training = recipe.training
        self._views = pool.views[recipe.head.pool]
        self._channels = channels(recipe.backbone.blocks, pool.grids[recipe.head.pool], pool.width)
        self._samplers = [SourceSampler(pool.dataset.of("train", made)) for made in (False, True)]

    def __call__(self, step: int) -> TrainingBatch:
        rng = np.random.default_rng([self._training.seed, step])
        real, made = (self._half(sampler, rng) for sampler in self._samplers)
        return TrainingBatch(real, made)

    def _half(self, sampler: SourceSampler, rng: np.random.Generator) -> Tensor:
        chosen = []
        for image in sampler.draw(rng, self._training.batch):
            views = self._views[image.sha256]
            tokens = views[rng.integers(len(views))]
            if len(tokens) > MOST_PATCHES:
                tokens = tokens[np.sort(rng.choice(len(tokens), MOST_PATCHES, replace=False))]
            chosen.append(tokens[:, self._channels].astype(np.float32))
        return torch.from_numpy(np.stack(chosen))


def fit(pool: Pool, setting: Setting, seed: int, folder: Path) -> MdmfModel:
    """Train a head by the package's own loop. Its state goes into the folder."""
    recipe = replace(setting.recipe, training=replace(setting.recipe.training, seed=seed))
    torch.manual_seed(seed)
    net = TrainingNet(MdmfModel(recipe), recipe.training)
    steps = recipe.training.steps
    options = LoopOptions(folder, setting.name, standardise=True, cadence=Cadence(steps, steps, steps))
    return train(net, TokenBatches(pool, recipe), recipe.training, lambda detector: {}, options)


def own_terms(signatures: Signatures, sigma: float) -> Values:
    """Return A_i = 1/N sum_i' k(x_i, x_i') of each patch, (n, N), of n crops (n, N, d)."""
    found = [gram(part, part, torch.tensor(sigma)).mean(-1) for part in torch.from_numpy(signatures).split(_SCORED)]
    return np.asarray(torch.cat(found), np.float64)


def patch_scores(contributions: Values, own: Values) -> Values:
    """Return each patch's score as if it were an image by itself, 1 - 2 B_i + C, from c_i = A_i - 2 B_i + C."""
    return contributions - own + 1.0


def mean_distances(signatures: Signatures, bank: Signatures) -> Values:
    """Return |mean_i x_i - mean_j r_j|^2 of each crop: what is left of the score if only means are compared."""
    difference = signatures.mean(1, dtype=np.float64) - bank.mean(0, dtype=np.float64)
    return np.square(difference).sum(-1)


def votes(patches: Values, threshold: float) -> Values:
    """Return the share of patches above a threshold, (n,), of patch scores (n, N)."""
    return (patches > threshold).mean(-1)


def mean_auroc(scores: Scores) -> float:
    """Return the mean over generators of the AUROC against the real images."""
    return float(np.mean([auroc(scores["real"], made) for name, made in scores.items() if name != "real"]))


def best_threshold(patches: Scores) -> float:
    """Return the threshold whose votes have the highest mean AUROC, out of quantiles of all patch scores."""
    tried = np.quantile(np.concatenate([x.ravel() for x in patches.values()]), np.linspace(0, 1, LEVELS + 2)[1:-1])
    areas = [mean_auroc({name: votes(x, t) for name, x in patches.items()}) for t in tried]
    return float(tried[int(np.argmax(areas))])


class Judge:
    """Score the test images by one trained head, under every decision rule."""

    def __init__(self, pool: Pool, detector: MdmfModel, recipe: Recipe, seed: int) -> None:
        self._pool, self._detector, self._recipe, self._seed = pool, detector, recipe, seed
        self._grid = recipe.head.pool
        self._reduction = CpuReduction()
        self._bank_images = self._centres(pool.dataset.of("train", False))
        real, generated = pool.test_images()
        self._images = {"real": real, **generated}
        self._test = {name: self._centres(images) for name, images in self._images.items()}

    def by_default(self) -> dict[str, Scores]:
        """Return the scores by MMD against the default bank."""
        return {"mmd": self._mmd(self._bank(self._bank_images, BANK))}

    def by_variants(self) -> dict[str, Scores]:
        """Return the scores of every variant of the rule and the bank, which need no other head."""
        return {**self._rules(), **dict(self._banks())}

    def _rules(self) -> dict[str, Scores]:
        """Return the scores by patches' votes, their mean without the self term, and mean signatures."""
        bank = self._bank(self._bank_images, BANK)
        real = self._pool.dataset.of("validation", False)
        groups = {"real": real, **by_generator(self._pool.dataset.of("validation", True))}
        parts = {"validation": {name: self._centres(images) for name, images in groups.items()}, "test": self._test}
        alone: dict[str, Scores] = {"validation": {}, "test": {}}
        shares: dict[str, Scores] = {"validation": {}, "test": {}}
        for part, signatures in parts.items():
            for name, x in signatures.items():
                shares[part][name] = self._reduction(x, bank).contributions
                alone[part][name] = patch_scores(shares[part][name], own_terms(x, bank.sigma))
        found = {
            "mean signature": {name: mean_distances(x, bank.signatures) for name, x in self._test.items()},
            "mean of patch scores": {name: x.mean(-1) for name, x in alone["test"].items()},
        }
        for kind, patches in (("patch scores", alone), ("contributions", shares)):
            for chosen in ("validation", "test"):
                threshold = best_threshold(patches[chosen])
                found[f"votes of {kind}, {chosen}"] = {name: votes(x, threshold) for name, x in patches["test"].items()}
        return found

    def _banks(self) -> Iterator[tuple[str, Scores]]:
        swapped = self._centres(self._pool.dataset.of("train", True))
        yield "bank of generated images", self._mmd(self._bank(swapped, BANK))
        yield "bank of all signatures", self._mmd(self._bank(self._bank_images, self._bank_images[..., 0].size))
        for size in BANK_SIZES:
            for draw in range(DRAWS):
                yield f"bank {size}, draw {draw}", self._mmd(self._bank(self._bank_images, size, draw))
        for count in BANK_IMAGES:
            for draw in range(DRAWS):
                rng = np.random.default_rng([self._seed, draw, count])
                chosen = rng.choice(len(self._bank_images), min(count, len(self._bank_images)), replace=False)
                few = self._bank_images[np.sort(chosen)]
                yield f"bank images {count}, draw {draw}", self._mmd(self._bank(few, few.shape[0] * few.shape[1]))

    def by_crops(self) -> Iterator[tuple[str, Scores]]:
        """Yield scores by crop plan: the mean over an image's crops, as the package takes it."""
        bank, corners = self._bank(self._bank_images, BANK), self._pool.corners
        centres = self._pool.views[self._grid]
        # Two of four crops are opposite corners, and five are all of them and the central one.
        taken: dict[int, Callable[[str], list[Features]]] = {
            2: lambda sha256: [corners[sha256][:1], corners[sha256][-1:]],
            4: lambda sha256: [corners[sha256]],
            5: lambda sha256: [corners[sha256], centres[sha256][:1]],
        }
        for count, of in taken.items():
            found = {}
            for group, images in self._images.items():
                signatures = self._signatures([np.concatenate(of(image.sha256)) for image in images])
                found[group] = np.array([score for score, _ in score_images(self._reduction, signatures, bank)])
            yield f"crops {count}", found

    def _mmd(self, bank: Bank) -> Scores:
        return {name: self._reduction(x, bank).mmd2 for name, x in self._test.items()}

    def _bank(self, images: Signatures, size: int, draw: int = 0) -> Bank:
        """Return a bank of at most `size` signatures, drawn from those of all images, (n, N, d)."""
        flat = images.reshape(-1, images.shape[-1])
        rng = np.random.default_rng([self._seed, draw, size])
        chosen = flat[np.sort(rng.choice(len(flat), min(size, len(flat)), replace=False))]
        return uniform_bank(
            chosen,
            self._detector.sigma,
            source=np.zeros(len(chosen), np.int32),
            sources=(BankSource("training images", "0" * 64),),
            model_sha256="0" * 64,
        )

    def _centres(self, images: Sequence[LabelledImage]) -> Signatures:
        """Return the signatures of the first crop of each image, (n, N, d): a random one of a training image."""
        views = self._pool.views[self._grid]
        return np.concatenate(self._signatures([views[image.sha256][:1] for image in images]))

    @torch.inference_mode()
    def _signatures(self, crops: Sequence[Features]) -> list[Signatures]:
        """Return the signatures of each image's crops, (n, N, d), for its tokens, (n, N, C)."""
        columns = channels(self._recipe.backbone.blocks, self._pool.grids[self._grid], self._pool.width)
        found = []
        for start in range(0, len(crops), _SCORED):
            group = crops[start : start + _SCORED]
            tokens = torch.from_numpy(np.concatenate([x[..., columns] for x in group]).astype(np.float32))
            signatures = self._detector.head.signatures(tokens).numpy()
            found += np.split(signatures, np.cumsum([len(x) for x in group])[:-1])
        return found


@dataclass(frozen=True, slots=True)
class Results:
    """Scores of finished heads, kept as one .npz file each, so that a run that was killed goes on.

    folder: of the files.
    key: of everything that the scores depend on besides the setting and the seed.
    """

    folder: Path
    key: str
    made: list[str] = field(default_factory=list)

    def __call__(self, name: str, seed: int, work: Callable[[], dict[str, Scores]]) -> dict[str, Scores]:
        """Return the scores by variant and group, from the file if it is there."""
        path = self.folder / f"{self.key}.{name.replace(' ', '-')}.{seed}.npz"
        if not path.is_file():
            self.folder.mkdir(parents=True, exist_ok=True)
            flat = {f"{variant}|{group}": x for variant, scores in work().items() for group, x in scores.items()}
            with atomic_file(path) as scratch, scratch.open("wb") as file:
                np.savez(file, **flat)
            self.made.append(path.name)
        found: dict[str, Scores] = {}
        with np.load(path) as kept:
            for place in kept.files:
                variant, _, group = place.partition("|")
                found.setdefault(variant, {})[group] = kept[place]
        return found
