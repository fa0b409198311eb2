"""`mdmf train` from folders to a checkpoint: data, pairs, network, loop, and what the run leaves behind."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray

from mdmf_deploy.bundle.recipe import Recipe
from mdmf_deploy.errors import CheckpointError, UsageError
from mdmf_deploy.images.decode import normalise
from mdmf_deploy.model.checkpoints import checkpoint_sha256, load_backbone, save_model
from mdmf_deploy.model.pfs import MdmfModel
from mdmf_deploy.tasks.train.data import (
    Batches,
    CropBatches,
    Dataset,
    FeatureBatches,
    PixelCache,
    Sample,
    center_crops,
    collect,
    spread,
)
from mdmf_deploy.tasks.train.features import cached_features
from mdmf_deploy.tasks.train.initialise import initialise
from mdmf_deploy.tasks.train.loop import STATE, Cadence, processes, train
from mdmf_deploy.tasks.train.network import TrainingNet
from mdmf_deploy.tasks.train.pairs import prepare_images
from mdmf_deploy.tasks.train.validate import BANK_IMAGES, Extract, Record, Validation, write_csv, write_plot

CHECKPOINT = "checkpoint.safetensors"
_FEATURE_CROPS = 4
_PIXEL_BUDGET = 8 << 30
_INITIALISING_CROPS = 128

Log = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Plan:
    """One run of `mdmf train`.

    backbone_weights: a pretrained backbone; with train_backbone and without it, the backbone starts from scratch.
    """

    recipe: Recipe
    folder: Path
    backbone_weights: Path | None = None
    train_backbone: bool = False
    resume: bool = False
    amp: bool = False
    cadence: Cadence = field(default_factory=Cadence)
    stop_after: int | None = None


def fit(
    plan: Plan,
    real: Sequence[Path],
    generated: Mapping[str, Sequence[Path]],
    log: Log = lambda line: None,
    watch: Callable[[Record], None] = lambda record: None,
) -> Path:
    """Train as planned; returns the checkpoint's path.

    In plan.folder: checkpoint.safetensors, state.safetensors, history.csv, history.png, split/*.txt, and the caches.
    Raises UsageError for a frozen backbone without weights, CheckpointError for a state that would be overwritten or is
    not there to resume from, and what collecting, loading and the loop raise.
    """
    recipe, folder = plan.recipe, plan.folder
    if not plan.train_backbone and plan.backbone_weights is None:
        raise UsageError(
            "a frozen backbone needs pretrained weights; give --backbone-weights FILE or --download-backbone, "
            "or train it with --train-backbone"
        )
    # Before the preparation, which may take an hour.
    state = folder / STATE
    if state.is_file() and not plan.resume:
        raise CheckpointError(f"{state} is there already; go on from it with --resume, or choose another -o")
    if plan.resume and not state.is_file():
        raise CheckpointError(f"{state} is not there, so nothing can be resumed; start without --resume")
    # Under `accelerate launch` every process comes through here: one makes the files and talks, the others find them.
    team = processes()
    if not team.is_main_process:
        log, watch = (lambda line: None), (lambda record: None)
    folder.mkdir(parents=True, exist_ok=True)
    dataset = collect(real, generated, recipe.training.split)
    for path, code in dataset.unreadable:
        log(f"left out {path}: {code}")
    torch.manual_seed(recipe.training.seed)
    detector = MdmfModel(recipe)
    if plan.backbone_weights is not None:
        load_backbone(detector.backbone, plan.backbone_weights)
    else:
        crops = center_crops(_paths(dataset.of("train", False)[:_INITIALISING_CROPS]), recipe.preprocessing.crop)
        initialise(detector.backbone, normalise(crops, recipe.preprocessing), recipe.training.seed)
    net = TrainingNet(detector, frozen=not plan.train_backbone, classify=recipe.training.patch_cross_entropy > 0)
    with team.main_process_first():
        write_split(dataset, folder / "split")
        batches, validation = (_crops if plan.train_backbone else _features)(plan, dataset, detector, log)
    history: list[Record] = []

    def note(record: Record) -> None:
        history.append(record)
        if "auroc_mean" in record and team.is_main_process:
            write_csv(folder / "history.csv", history)
        watch(record)

    log(f"training {recipe.training.steps} steps, objective {recipe.training.objective!r}")
    trained = train(
        net,
        batches,
        recipe.training,
        validation,
        folder,
        fingerprint(plan, dataset),
        resume=plan.resume,
        amp=plan.amp,
        cadence=plan.cadence,
        watch=note,
        stop_after=plan.stop_after,
    )
    checkpoint = folder / CHECKPOINT
    if team.is_main_process:
        write_csv(folder / "history.csv", history)
        write_plot(folder / "history.png", history, f"{recipe.name}: {recipe.training.objective} objective")
        save_model(checkpoint, trained, {"recipe": recipe.name, "data_sha256": dataset.hash()})
    return checkpoint


def fingerprint(plan: Plan, dataset: Dataset) -> str:
    """Hash over all that a run's result depends on: a state resumes only where all of it is the same."""
    weights = checkpoint_sha256(plan.backbone_weights) if plan.backbone_weights else "from scratch"
    parts = [dataset.hash(), weights, str(plan.train_backbone), str(plan.amp), str(processes().num_processes)]
    return hashlib.sha256(msgspec.json.encode([plan.recipe, parts])).hexdigest()


def write_split(dataset: Dataset, folder: Path) -> None:
    """One list a part and source, such as test-real.txt, for `mdmf export --reals @FILE` and its kin."""
    folder.mkdir(parents=True, exist_ok=True)
    lists: dict[str, list[str]] = {}
    for sample in dataset.samples:
        lists.setdefault(f"{sample.part}-{sample.generator or 'real'}", []).append(str(sample.path.absolute()))
    for name, lines in lists.items():
        (folder / f"{name}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8", errors="surrogateescape")


def _paths(samples: Sequence[Sample]) -> list[Path]:
    return [sample.path for sample in samples]


def _by_generator(samples: Sequence[Sample]) -> dict[str, list[Sample]]:
    grouped: dict[str, list[Sample]] = {}
    for sample in samples:
        grouped.setdefault(sample.generator or "", []).append(sample)
    return grouped


def _crops(plan: Plan, dataset: Dataset, detector: MdmfModel, log: Log) -> tuple[Batches, Validation]:
    recipe = plan.recipe
    size = recipe.preprocessing.crop
    images = prepare_images(recipe, dataset, plan.folder, log)
    cache = PixelCache(_PIXEL_BUDGET)
    training = recipe.training
    batches = CropBatches(images, recipe.preprocessing, training.batch, training.pairs.share, training.seed, cache)

    def extract(current: MdmfModel, crops: NDArray[np.generic]) -> NDArray[np.float32]:
        device = next(current.parameters()).device
        tensor = torch.from_numpy(normalise(np.asarray(crops, np.uint8), recipe.preprocessing)).to(device)
        signatures: NDArray[np.float32] = current(tensor).float().cpu().numpy()
        return signatures

    def load(samples: Sequence[Sample]) -> NDArray[np.generic]:
        return center_crops(_paths(samples), size)

    return batches, _validation(extract, load, dataset)


def _features(plan: Plan, dataset: Dataset, detector: MdmfModel, log: Log) -> tuple[Batches, Validation]:
    recipe = plan.recipe
    seed, folder = recipe.training.seed, plan.folder / "features"
    detector.to(processes().device)

    def load(samples: Sequence[Sample], crops: int = 0) -> NDArray[np.float16]:
        log(f"features of {len(samples)} images x {max(1, crops)} crops")
        return cached_features(detector, recipe.preprocessing, samples, crops, seed, folder)

    def extract(current: MdmfModel, features: NDArray[np.generic]) -> NDArray[np.float32]:
        device = next(current.parameters()).device
        tensor = torch.from_numpy(np.asarray(features, np.float32)).to(device)
        signatures: NDArray[np.float32] = current.head.signatures(tensor).float().cpu().numpy()
        return signatures

    batches = FeatureBatches(
        load(dataset.of("train", False), _FEATURE_CROPS),
        load(dataset.of("train", True), _FEATURE_CROPS),
        recipe.training.batch,
        seed,
    )
    return batches, _validation(extract, lambda samples: load(samples)[:, 0], dataset)


def _validation(
    extract: Extract, load: Callable[[Sequence[Sample]], NDArray[np.generic]], dataset: Dataset
) -> Validation:
    generated = _by_generator(dataset.of("validation", True))
    return Validation(
        extract,
        load(spread(dataset.of("train", False), BANK_IMAGES)),
        load(dataset.of("validation", False)),
        {generator: load(samples) for generator, samples in generated.items()},
    )
