"""`mdmf train`, from folders to a checkpoint: data, pairs, network, loop, and the files that a run leaves behind."""

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
from mdmf_deploy.images.crops import normalise
from mdmf_deploy.model.checkpoints import checkpoint_sha256, load_backbone, save_model
from mdmf_deploy.model.pfs import MdmfModel
from mdmf_deploy.tasks.train.data import (
    Batches,
    CropBatches,
    Dataset,
    LabelledImage,
    PixelCache,
    center_crops,
    collect,
    spread,
)
from mdmf_deploy.tasks.train.features import FeatureBatches, FeatureCache
from mdmf_deploy.tasks.train.loop import STATE, Cadence, LoopOptions, processes, train
from mdmf_deploy.tasks.train.network import TrainingNet, initialise
from mdmf_deploy.tasks.train.pairs import Log, prepare_images
from mdmf_deploy.tasks.train.validate import BANK_IMAGES, Extract, Record, Validation, write_csv, write_plot

CHECKPOINT = "checkpoint.safetensors"
_HISTORY = "history.csv"
_FEATURE_CROPS = 4
_PIXEL_BUDGET = 8 << 30
_INITIALISING_CROPS = 128


@dataclass(frozen=True, slots=True)
class TrainingRun:
    """One run of `mdmf train`.

    folder: where the run keeps its files.
    backbone_weights: a pretrained backbone. With train_backbone but no weights, the backbone starts from scratch.
    amp: train in bfloat16.
    stop_after: leave early at that step, like an interruption would.
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
    run: TrainingRun,
    real: Sequence[Path],
    generated: Mapping[str, Sequence[Path]],
    log: Log = lambda line: None,
    watch: Callable[[Record], None] = lambda record: None,
) -> Path:
    """Train a detector, and return the path of its checkpoint.

    run.folder receives checkpoint.safetensors, state.safetensors, history.csv, history.png, split/*.txt, and caches.

    generated: generator name -> files.
    log: receives lines of progress.
    watch: receives the record of every logged step.

    Raises UsageError for a frozen backbone without weights. Raises CheckpointError for a state that would be
    overwritten, or is missing and cannot be resumed. Also raises what `collect`, `load_backbone` and `train` raise.
    """
    recipe, folder = run.recipe, run.folder
    if not run.train_backbone and run.backbone_weights is None:
        raise UsageError(
            "a frozen backbone needs pretrained weights; give --backbone-weights FILE or --download-backbone, "
            "or train it with --train-backbone"
        )
    # Check this before the preparation, which may take an hour.
    state = folder / STATE
    if state.is_file() and not run.resume:
        raise CheckpointError(f"{state} is there already; go on from it with --resume, or choose another -o")
    if run.resume and not state.is_file():
        raise CheckpointError(f"{state} is not there, so nothing can be resumed; start without --resume")
    # Under `accelerate launch` every process comes through here. The first makes the files and reports progress, and
    # the others find the files.
    team = processes()
    if not team.is_main_process:
        log, watch = (lambda line: None), (lambda record: None)
    folder.mkdir(parents=True, exist_ok=True)
    dataset = collect(real, generated, recipe.training.split)
    for path, code in dataset.unreadable:
        log(f"left out {path}: {code}")
    torch.manual_seed(recipe.training.seed)
    detector = MdmfModel(recipe)
    if run.backbone_weights is not None:
        load_backbone(detector.backbone, run.backbone_weights)
    else:
        crops = center_crops(_paths(dataset.of("train", False)[:_INITIALISING_CROPS]), recipe.preprocessing.crop)
        initialise(detector.backbone, normalise(crops, recipe.preprocessing), recipe.training.seed)
    net = TrainingNet(detector, frozen=not run.train_backbone, classify=recipe.training.patch_cross_entropy > 0)
    with team.main_process_first():
        write_split(dataset, folder / "split")
        batches, validation = (_on_crops if run.train_backbone else _on_features)(run, dataset, detector, log)
    history: list[Record] = []

    def note(record: Record) -> None:
        history.append(record)
        if "auroc_mean" in record and team.is_main_process:
            write_csv(folder / _HISTORY, history)
        watch(record)

    log(f"training {recipe.training.steps} steps, objective {recipe.training.objective!r}")
    options = LoopOptions(folder, fingerprint(run, dataset), run.resume, run.amp, run.cadence, run.stop_after)
    trained = train(net, batches, recipe.training, validation, options, note)
    checkpoint = folder / CHECKPOINT
    if team.is_main_process:
        write_csv(folder / _HISTORY, history)
        write_plot(folder / "history.png", history, f"{recipe.name}: {recipe.training.objective} objective")
        save_model(checkpoint, trained, {"recipe": recipe.name, "data_sha256": dataset.hash()})
    return checkpoint


def fingerprint(run: TrainingRun, dataset: Dataset) -> str:
    """Hash everything the result of a run depends on. A state resumes only where all of it is the same."""
    weights = checkpoint_sha256(run.backbone_weights) if run.backbone_weights else "from scratch"
    parts = [dataset.hash(), weights, str(run.train_backbone), str(run.amp), str(processes().num_processes)]
    return hashlib.sha256(msgspec.json.encode([run.recipe, parts])).hexdigest()


def write_split(dataset: Dataset, folder: Path) -> None:
    """Write one list per part and source, such as test-real.txt, to pass to other commands as @FILE."""
    folder.mkdir(parents=True, exist_ok=True)
    lists: dict[str, list[str]] = {}
    for image in dataset.images:
        lists.setdefault(f"{image.part}-{image.generator or 'real'}", []).append(str(image.path.absolute()))
    for name, lines in lists.items():
        (folder / f"{name}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8", errors="surrogateescape")


def _on_crops(run: TrainingRun, dataset: Dataset, detector: MdmfModel, log: Log) -> tuple[Batches, Validation]:
    recipe = run.recipe
    images = prepare_images(recipe, dataset, run.folder, log)
    batches = CropBatches(images, recipe.preprocessing, recipe.training, PixelCache(_PIXEL_BUDGET))

    def extract(current: MdmfModel, crops: NDArray[np.generic]) -> NDArray[np.float32]:
        device = next(current.parameters()).device
        tensor = torch.from_numpy(normalise(np.asarray(crops, np.uint8), recipe.preprocessing)).to(device)
        signatures: NDArray[np.float32] = current(tensor).float().cpu().numpy()
        return signatures

    def load(images: Sequence[LabelledImage]) -> NDArray[np.generic]:
        return center_crops(_paths(images), recipe.preprocessing.crop)

    return batches, _validation(extract, load, dataset)


def _on_features(run: TrainingRun, dataset: Dataset, detector: MdmfModel, log: Log) -> tuple[Batches, Validation]:
    recipe, seed = run.recipe, run.recipe.training.seed
    features = FeatureCache(detector.to(processes().device), recipe.preprocessing, seed, run.folder / "features")

    def load(images: Sequence[LabelledImage], crops: int = 0) -> NDArray[np.float16]:
        log(f"features of {len(images)} images x {max(1, crops)} crops")
        return features(images, crops)

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
    return batches, _validation(extract, lambda images: load(images)[:, 0], dataset)


def _validation(
    extract: Extract, load: Callable[[Sequence[LabelledImage]], NDArray[np.generic]], dataset: Dataset
) -> Validation:
    generated: dict[str, list[LabelledImage]] = {}
    for image in dataset.of("validation", True):
        generated.setdefault(image.generator or "", []).append(image)
    return Validation(
        extract,
        load(spread(dataset.of("train", False), BANK_IMAGES)),
        load(dataset.of("validation", False)),
        {generator: load(images) for generator, images in generated.items()},
    )


def _paths(images: Sequence[LabelledImage]) -> list[Path]:
    return [image.path for image in images]
