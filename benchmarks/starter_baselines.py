"""Compare the starter with plainer detectors, on images that none of them was trained on.

    python benchmarks/starter_baselines.py DATA RUN [--steps 600]

DATA: a folder with real/ and generated/<generator>/.
RUN: the folder that `mdmf train` left for the starter.

All methods train on the same files and are judged on the same test part. MDMF also trains on degraded crops and on
reconstructions, the logistic regressions on one centre crop each. The threshold of ACC is each method's own 95th
percentile over the validation photographs, so that no method picks it on the images that judge it. The three MMD
variants train a fresh head on the starter's frozen backbone and differ in one thing each.

The plainest baseline is a logistic regression on statistics of high-pass residuals, without learnt features. The
residuals are those of the steganalysis "rich models" (Fridrich and Kodovsky, 2012): differences of first and second
order and the 5 x 5 kernel, on luma and the two chroma channels. Each is summarised by its logarithmic energy, its
kurtosis, its truncated histogram, and the correlation with its neighbour.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from sklearn.linear_model import LogisticRegressionCV
from sklearn.metrics import average_precision_score, roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from mdmf_deploy.bundle.recipe import Recipe, load_recipe
from mdmf_deploy.images.crops import normalise
from mdmf_deploy.images.inputs import expand
from mdmf_deploy.model.checkpoints import load_model
from mdmf_deploy.model.pfs import MdmfModel
from mdmf_deploy.tasks.train.data import Dataset, center_crops, collect
from mdmf_deploy.tasks.train.loop import STATE
from mdmf_deploy.tasks.train.train import CHECKPOINT, TrainingRun, fit
from mdmf_deploy.tasks.train.validate import scores

Crops = NDArray[np.uint8]
Score = Callable[[Crops], NDArray[np.float64]]

BANK_IMAGES = 160
BATCH = 32
KV = np.array(
    [[-1, 2, -2, 2, -1], [2, -6, 8, -6, 2], [-2, 8, -12, 8, -2], [2, -6, 8, -6, 2], [-1, 2, -2, 2, -1]], np.float32
)
TO_YCC = np.array([[0.299, 0.587, 0.114], [-0.169, -0.331, 0.5], [0.5, -0.419, -0.081]], np.float32)


def signatures(detector: MdmfModel, recipe: Recipe, crops: Crops) -> NDArray[np.float32]:
    """Extract signatures, (n, S, S, 3) -> (n, N, d)."""
    with torch.inference_mode():
        parts = [crops[start : start + BATCH] for start in range(0, len(crops), BATCH)]
        return np.concatenate([detector(torch.from_numpy(normalise(p, recipe.preprocessing))).numpy() for p in parts])


def mmd(checkpoint: Path, recipe: Recipe, bank: Crops) -> Score:
    """Return the detector's own score against a bank of training photographs."""
    detector = load_model(checkpoint, recipe).eval()
    reference = signatures(detector, recipe, bank)
    return lambda crops: scores(signatures(detector, recipe, crops), reference, detector.sigma)


def logistic(features: Callable[[Crops], NDArray[np.float32]], real: Crops, generated: Crops) -> Score:
    """Fit a logistic regression. Its penalty is chosen by cross-validation on the training part."""
    model = make_pipeline(
        StandardScaler(),
        LogisticRegressionCV(Cs=8, max_iter=2000, scoring="roc_auc", l1_ratios=(0,), use_legacy_attributes=False),
    )
    labels = np.r_[np.zeros(len(real)), np.ones(len(generated))]
    model.fit(np.concatenate([features(real), features(generated)]), labels)
    return lambda crops: np.asarray(model.decision_function(features(crops)), np.float64)


def pooled_tokens(detector: MdmfModel, recipe: Recipe, crops: Crops) -> NDArray[np.float32]:
    """Return the mean patch token, (n, S, S, 3) -> (n, C)."""
    with torch.inference_mode():
        parts = [crops[start : start + BATCH] for start in range(0, len(crops), BATCH)]
        tokens = [detector.backbone(torch.from_numpy(normalise(p, recipe.preprocessing))).mean((2, 3)) for p in parts]
        return torch.cat(tokens).numpy()


def residuals(channel: NDArray[np.float32]) -> list[NDArray[np.float32]]:
    """Return first and second differences and the 5 x 5 residual of (S, S), (S', S'') each."""
    windows = np.lib.stride_tricks.sliding_window_view(channel, (5, 5))
    return [
        np.diff(channel, axis=0),
        np.diff(channel, axis=1),
        np.diff(channel, 2, axis=0),
        np.diff(channel, 2, axis=1),
        np.einsum("ijkl,kl->ij", windows, KV) / 12,
    ]


def statistics(crop: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Summarise the residuals of a crop, (S, S, 3) uint8 -> (k,)."""
    values: list[float] = []
    ycc = crop.astype(np.float32) @ TO_YCC.T
    for channel in np.moveaxis(ycc, -1, 0):
        for residual in residuals(channel):
            spread = float(residual.std()) + 1e-3
            centred = residual / spread
            histogram = np.histogram(np.abs(centred), bins=[0, 0.125, 0.25, 0.5, 1, 2, 4, np.inf])[0]
            values += [np.log(spread), np.log(float(np.mean(centred**4)) + 1e-3)]
            values += [float(np.mean(centred[:, 1:] * centred[:, :-1])), float(np.mean(centred[1:] * centred[:-1]))]
            values += list(histogram / residual.size)
    return np.array(values, np.float32)


def report(name: str, score: Score, calibration: Crops, real: Crops, generated: Mapping[str, Crops]) -> str:
    """Return one row of the table."""
    threshold = np.quantile(score(calibration), 0.95)
    negatives = score(real)
    cells = []
    areas, precisions, accuracies = [], [], []
    for crops in generated.values():
        positives = score(crops)
        labels, values = np.r_[np.zeros(len(negatives)), np.ones(len(positives))], np.r_[negatives, positives]
        # Each class weighs one half, whatever its number of images.
        weights = np.r_[np.full(len(negatives), 1 / len(negatives)), np.full(len(positives), 1 / len(positives))]
        areas.append(roc_auc_score(labels, values))
        precisions.append(average_precision_score(labels, values, sample_weight=weights))
        accuracies.append((np.mean(positives > threshold) + np.mean(negatives <= threshold)) / 2)
        cells.append(f"{areas[-1]:.3f} / {precisions[-1]:.3f} / {accuracies[-1]:.3f}")
    mean = f"{np.mean(areas):.3f} / {np.mean(precisions):.3f} / {np.mean(accuracies):.3f}"
    return f"| {name} | {' | '.join(cells)} | {mean} |"


def variant(recipe: Recipe, objective: str, pool: int, steps: int) -> Recipe:
    """Return the starter's recipe with another head or objective, for a frozen backbone."""
    table = msgspec.to_builtins(recipe)
    table["head"]["pool"] = pool
    # A plain head on the originals: no pairs, so no autoencoders, and no demand on the bank.
    table["training"] |= {"pairs": {}, "gate": {"min_kernel": 0.0, "max_swapped_auroc": 1.0}}
    # The pooled objective's kernel matrices grow with the square of the batch: 16 images are 784 patches a class.
    table["training"] |= {"objective": objective, "steps": steps, "batch": 64 if objective == "image" else 16}
    return msgspec.convert(table, Recipe)


def crops_of(dataset: Dataset, part: str, generated: bool, size: int) -> Crops:
    return center_crops([sample.path for sample in dataset.of(part, generated)], size)  # type: ignore[arg-type]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("run", type=Path)
    parser.add_argument("--steps", type=int, default=600, help="of every fresh head")
    options = parser.parse_args(arguments)
    recipe = load_recipe("starter")
    size = recipe.preprocessing.crop
    folders = sorted(path for path in (options.data / "generated").iterdir() if path.is_dir())
    files = {folder.name: expand([str(folder)]).paths for folder in folders}
    photographs = expand([str(options.data / "real")]).paths
    dataset = collect(photographs, files, recipe.training.split)
    train_real, train_generated = crops_of(dataset, "train", False, size), crops_of(dataset, "train", True, size)
    calibration, real = crops_of(dataset, "validation", False, size), crops_of(dataset, "test", False, size)
    tests = dataset.of("test", True)
    generated = {
        name: center_crops([s.path for s in tests if s.generator == name], size)
        for name in sorted({s.generator or "" for s in tests})
    }
    starter = load_model(options.run / CHECKPOINT, recipe).eval()
    weights = options.run / "backbone.safetensors"
    save_file({key: value.contiguous() for key, value in starter.backbone.state_dict().items()}, weights)

    print(f"{len(real)} real test images; AUROC / AP / ACC\n")
    headings = [f"{name} ({len(crops)})" for name, crops in generated.items()]
    print(f"| method | {' | '.join(headings)} | mean |")
    print("|---" * (len(generated) + 2) + "|")

    def row(name: str, score: Score) -> None:
        print(report(name, score, calibration, real, generated), flush=True)

    bank = train_real[np.linspace(0, len(train_real) - 1, BANK_IMAGES).round().astype(int)]
    row("MDMF starter, end to end", mmd(options.run / CHECKPOINT, recipe, bank))

    def highpass(crops: Crops) -> NDArray[np.float32]:
        return np.stack([statistics(crop) for crop in crops])

    row("logistic regression, high-pass residuals", logistic(highpass, train_real, train_generated))
    row(
        "cross-entropy classifier, same backbone",
        logistic(lambda crops: pooled_tokens(starter, recipe, crops), train_real, train_generated),
    )
    for name, objective, pool in (
        ("fresh head, image objective", "image", recipe.head.pool),
        ("fresh head, pooled objective", "pooled", recipe.head.pool),
        ("fresh head, global average pooling", "image", 1),
    ):
        changed = variant(recipe, objective, pool, options.steps)
        folder = options.run / f"baseline-{objective}-{pool}"
        resume = (folder / STATE).is_file()
        checkpoint = fit(TrainingRun(changed, folder, backbone_weights=weights, resume=resume), photographs, files)
        row(name, mmd(checkpoint, changed, bank))


if __name__ == "__main__":
    main()
