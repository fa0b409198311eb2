"""`mdmf train`, from folders to a checkpoint: data, pairs, network, loop, and the files that a run leaves behind."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray

from mdmf_deploy.bundle.recipe import Recipe
from mdmf_deploy.errors import CheckpointError, TrainingFailed, UsageError
from mdmf_deploy.files import atomic_file, only_writer
from mdmf_deploy.images.crops import normalise
from mdmf_deploy.model.checkpoints import SMOKE, checkpoint_sha256, load_backbone, save_model
from mdmf_deploy.model.known_weights import described
from mdmf_deploy.model.lora import Lora
from mdmf_deploy.model.onnx_weights import weights_source
from mdmf_deploy.model.pfs import MdmfModel
from mdmf_deploy.scratch import remove_strays
from mdmf_deploy.tasks.train.batches import Batches, CropBatches
from mdmf_deploy.tasks.train.data import Dataset, LabelledImage, PixelCache, center_crops, collect
from mdmf_deploy.tasks.train.features import FeatureBatches, FeatureCache
from mdmf_deploy.tasks.train.history import write_csv, write_plot
from mdmf_deploy.tasks.train.loop import STATE, Cadence, LoopOptions, processes, read_state, train
from mdmf_deploy.tasks.train.lora import factors
from mdmf_deploy.tasks.train.measured import ValidationCrops, validation_crops
from mdmf_deploy.tasks.train.network import TrainingNet, Tuned, initialise
from mdmf_deploy.tasks.train.pairs import PairMaker
from mdmf_deploy.tasks.train.phases import SILENT, Count, Follow, Reports
from mdmf_deploy.tasks.train.smoke import FULL, SMALL, WARNING, Sizes, few, smoke
from mdmf_deploy.tasks.train.validate import Extract, Record, Validation, bank_figures, require_bank

CHECKPOINT = "checkpoint.safetensors"
FAILED = "failed.safetensors"
"""The checkpoint of a run whose detector does not depend on its bank."""
_HISTORY = "history.csv"
_PIXEL_BUDGET = 8 << 30
_INITIALISING_CROPS = 128


@dataclass(frozen=True, slots=True)
class TrainingRun:
    """One run of `mdmf train`.

    folder: where the run keeps its files.
    backbone_weights: a pretrained backbone. With train_backbone but no weights, the backbone starts from scratch.
    autoencoders: the folder with the files of the autoencoders that the recipe's pairs name.
    amp: train in bfloat16.
    stop_after: leave early at that step, like an interruption would.
    smoke: do all that this run would, at a size of a minute (smoke.py). The checkpoint says so.
    """

    recipe: Recipe
    folder: Path
    backbone_weights: Path | None = None
    train_backbone: bool = False
    autoencoders: Path | None = None
    resume: bool = False
    amp: bool = False
    cadence: Cadence = field(default_factory=Cadence)
    stop_after: int | None = None
    smoke: bool = False

    @property
    def sizes(self) -> Sizes:
        return SMALL if self.smoke else FULL


def fit(
    run: TrainingRun, real: Sequence[Path], generated: Mapping[str, Sequence[Path]], reports: Reports = SILENT
) -> Path:
    """Train a detector, and return the path of its checkpoint.

    run.folder receives checkpoint.safetensors, state.safetensors, history.csv, history.png, split/*.txt, and caches.
    Adapters of a backbone are saved without it (mdmf_deploy.model.checkpoints).

    real: the folder that a file lies in is its source.
    generated: source -> files.
    reports: receives lines, records and phases.

    Raises UsageError for a frozen backbone without weights. Raises CheckpointError for a state that would be
    overwritten, or is missing and cannot be resumed. Raises TrainingFailed if the detector does not depend on its bank,
    and leaves it as failed.safetensors. Also raises what `collect`, `load_backbone`, `PairMaker.load` and `train`
    raise, and UsageError if another run writes to the folder.
    A smoke run only reports whether its detector depends on its bank, and leaves no state behind.
    """
    # Check all this before the preparation, which may take an hour.
    _tuned(run)
    folder = run.folder
    state = folder / STATE
    if state.is_file() and not run.resume:
        raise CheckpointError(f"{state} is there already; go on from it with --resume, or choose another -o")
    if run.resume and not state.is_file():
        raise CheckpointError(f"{state} is not there, so nothing can be resumed; start without --resume")
    # Under `accelerate launch` every process comes through here. The first makes the files and reports progress, and
    # the others find the files.
    team, kept = processes(), folder / "reconstructed"
    pairs = PairMaker.load(run.recipe.training.pairs, run.autoencoders, kept, team.device, run.sizes.largest)
    if not team.is_main_process:
        return _fit(run, pairs, real, generated, SILENT)
    folder.mkdir(parents=True, exist_ok=True)
    # The lock lies in the folder, because the one above may not be the user's.
    with only_writer(folder / CHECKPOINT):
        for below, _, _ in os.walk(folder):
            remove_strays(Path(below))
        return _fit(run, pairs, real, generated, reports)


def _fit(
    run: TrainingRun,
    pairs: PairMaker,
    real: Sequence[Path],
    generated: Mapping[str, Sequence[Path]],
    reports: Reports,
) -> Path:
    """Train in a folder that no other run writes to."""
    declared, folder, team, tuned = run, run.folder, processes(), _tuned(run)
    log, follow, sizes = reports.log, reports.follow, run.sizes
    if run.smoke:
        log(WARNING)
        run = replace(run, recipe=smoke(run.recipe), cadence=Cadence(log=1, validate=2, save=2))
        real, generated = few(real, generated, run.recipe.training.split)
    recipe = run.recipe
    dataset = collect(real, generated, recipe.training.split, follow)
    for path, code in dataset.unreadable:
        log(f"left out {path}: {code}")
    torch.manual_seed(recipe.training.seed)
    detector = MdmfModel(recipe)
    if run.backbone_weights is not None:
        log(described(weights_source(run.backbone_weights)))
        load_backbone(detector.backbone, run.backbone_weights)
    else:
        crops = center_crops(_paths(dataset.of("train", False)[:_INITIALISING_CROPS]), recipe.preprocessing.crop)
        initialise(detector.backbone, normalise(crops, recipe.preprocessing), recipe.training.seed)
    net = TrainingNet(detector, recipe.training, tuned)
    cache = PixelCache(_PIXEL_BUDGET)
    crop_batches = CropBatches(dataset, recipe, pairs, cache, team.device)
    key = fingerprint(run, dataset, pairs)
    if run.resume:
        read_state(folder / STATE, key, tensors=False)  # before anything is computed or replaced
    with team.main_process_first():
        write_split(dataset, folder / "split")
        measured = validation_crops(dataset, recipe, pairs, sizes, follow)
        if tuned == "nothing":
            batches, validation = _on_features(run, dataset, detector, crop_batches, measured, pairs, follow)
        else:
            crop_batches.prepare(recipe.training.steps, follow)
            batches, validation = crop_batches, measured.validation(_extractor(recipe), follow=follow)
    history: list[Record] = []

    def note(record: Record) -> None:
        history.append(record)
        if "auroc_mean" in record and team.is_main_process:
            write_csv(folder / _HISTORY, history)
        reports.watch(record)

    log(f"training {recipe.training.steps} steps, objective {recipe.training.objective!r}")
    standardise = run.backbone_weights is not None
    options = LoopOptions(folder, key, run.resume, run.amp, standardise, run.cadence, run.stop_after, follow)
    trained = train(net, batches, recipe.training, validation, options, note)
    if team.is_main_process:
        write_csv(folder / _HISTORY, history)
        write_plot(folder / "history.png", history, f"{recipe.name}: {recipe.training.objective} objective")
    figures = next((record for record in reversed(history) if "mean_kernel" in record), None)
    try:
        if figures is not None and history[-1] is figures and run.stop_after is None:
            log(bank_figures(figures, recipe.training.gate))
            if not run.smoke:
                require_bank(figures, recipe.training.gate)
    except TrainingFailed as error:
        if team.is_main_process:
            _save(folder / FAILED, trained, declared, dataset)
        raise TrainingFailed(f"{error}; it is kept as {folder / FAILED}") from None
    if team.is_main_process:
        _save(folder / CHECKPOINT, trained, declared, dataset)
        if run.smoke:
            (folder / STATE).unlink()
    return folder / CHECKPOINT


def fingerprint(run: TrainingRun, dataset: Dataset, pairs: PairMaker) -> str:
    """Hash everything the result of a run depends on. A state resumes only where all of it is the same."""
    weights = checkpoint_sha256(run.backbone_weights) if run.backbone_weights else "from scratch"
    parts = [dataset.hash(), weights, str(run.train_backbone), str(run.amp), str(processes().num_processes)]
    return hashlib.sha256(msgspec.json.encode([run.recipe, parts, pairs.hashes])).hexdigest()


def write_split(dataset: Dataset, folder: Path) -> None:
    """Write one list per part of the real images and of each generator, such as test-real.txt, to pass on as @FILE."""
    folder.mkdir(parents=True, exist_ok=True)
    lists: dict[str, list[str]] = {}
    for image in dataset.images:
        lists.setdefault(f"{image.part}-{image.generator or 'real'}", []).append(str(image.path.absolute()))
    for name, lines in lists.items():
        with atomic_file(folder / f"{name}.txt", durable=False) as scratch:
            scratch.write_text("\n".join(lines) + "\n", encoding="utf-8", errors="surrogateescape")


def _tuned(run: TrainingRun) -> Tuned:
    adapters = bool(run.recipe.training.lora.blocks)
    if run.train_backbone and adapters:
        raise UsageError(
            f"recipe {run.recipe.name!r} adapts blocks of the backbone; leave out --train-backbone, or [training.lora]"
        )
    if not run.train_backbone and run.backbone_weights is None:
        raise UsageError(
            "a frozen backbone needs pretrained weights; give --backbone-weights FILE or --download-backbone, "
            "or train it with --train-backbone"
        )
    return "all" if run.train_backbone else "adapters" if adapters else "nothing"


def _save(path: Path, trained: MdmfModel, run: TrainingRun, dataset: Dataset) -> None:
    facts: dict[str, object] = {"recipe": run.recipe, "data_sha256": dataset.hash()}
    if run.smoke:
        facts[SMOKE] = WARNING
    source = None if run.backbone_weights is None else weights_source(run.backbone_weights)
    found = dict(factors(trained.backbone))
    if source is not None:
        facts["backbone"] = source
    if found and source is not None:
        save_model(path, trained, facts, source, Lora(found, run.recipe.training.lora.scale))
    else:
        save_model(path, trained, facts)


def _extractor(recipe: Recipe) -> Extract:
    def extract(current: MdmfModel, crops: NDArray[np.generic]) -> NDArray[np.float32]:
        device = next(current.parameters()).device
        tensor = torch.from_numpy(normalise(np.asarray(crops, np.uint8), recipe.preprocessing)).to(device)
        signatures: NDArray[np.float32] = current(tensor).float().cpu().numpy()
        return signatures

    return extract


def _on_features(
    run: TrainingRun,
    dataset: Dataset,
    detector: MdmfModel,
    batches: CropBatches,
    measured: ValidationCrops,
    pairs: PairMaker,
    follow: Follow,
) -> tuple[Batches, Validation]:
    training, preprocessing = run.recipe.training, run.recipe.preprocessing
    cache = FeatureCache(detector.to(processes().device), preprocessing, run.folder / "features")
    images = len(dataset.of("train", False)) + len(dataset.of("train", True))
    count = max(2, -(-run.sizes.feature_crops * images // (2 * training.batch)))
    batches.prepare(count, follow)
    # Steps, rates and the like do not change crops, so a run with others finds them again.
    drawn = msgspec.json.encode([training.seed, training.batch, training.reals, training.pairs, pairs.hashes]).decode()
    facts = (dataset.hash(), drawn)
    pooled = FeatureBatches(batches, count, cache, training.seed, *facts, paired=batches.paired, follow=follow)

    def extract(current: MdmfModel, inputs: NDArray[np.generic]) -> NDArray[np.float32]:
        device = next(current.parameters()).device
        tensor = torch.from_numpy(np.asarray(inputs, np.float32)).to(device)
        signatures: NDArray[np.float32] = current.head.signatures(tensor).float().cpu().numpy()
        return signatures

    counted = Count("features for validation", "crops", len(measured.validation(extract)), follow)

    def features(name: str, crops: NDArray[np.uint8]) -> NDArray[np.generic]:
        found = cache(lambda: [torch.from_numpy(normalise(crops, preprocessing))], name, *facts)
        counted.advance(len(crops))
        return found

    return pooled, measured.validation(extract, features, follow)


def _paths(images: Sequence[LabelledImage]) -> list[Path]:
    return [image.path for image in images]
