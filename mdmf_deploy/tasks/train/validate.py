"""The validation AUROC of a detector in training, and the history of a run as a table and a plot."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from mdmf_deploy.bundle.bank import BankSource
from mdmf_deploy.mmd.cpu import CpuReduction
from mdmf_deploy.mmd.reference import uniform_bank
from mdmf_deploy.model.pfs import MdmfModel

BANK_IMAGES = 64
_BATCH = 32

# Takes the detector and its inputs, crops or features, and returns signatures (n, N, d).
Extract = Callable[[MdmfModel, NDArray[np.generic]], NDArray[np.float32]]
# The values logged at one step.
Record = dict[str, float]


def scores(signatures: NDArray[np.float32], bank_signatures: NDArray[np.float32], sigma: float) -> NDArray[np.float64]:
    """Score signatures (n, N, d) against a bank of real images' signatures, (m, N, d). Returns (n,)."""
    images, patches, d = bank_signatures.shape
    bank = uniform_bank(
        bank_signatures.reshape(-1, d),
        sigma,
        source=np.repeat(np.arange(images, dtype=np.int32), patches),
        sources=tuple(BankSource(str(i), "") for i in range(images)),
        model_sha256="",
    )
    return CpuReduction()(signatures, bank).mmd2


class Validation:
    """Compute the AUROC of each generator on the validation part, and "mean", their mean.

    Scores are taken against a bank of training photographs. All inputs are of the kind that `extract` takes: uint8
    crops, or cached features.
    """

    def __init__(
        self,
        extract: Extract,
        bank: NDArray[np.generic],
        real: NDArray[np.generic],
        generated: Mapping[str, NDArray[np.generic]],
    ) -> None:
        self._extract = extract
        self._bank = bank[:BANK_IMAGES]
        self._real = real
        self._generated = generated

    @torch.inference_mode()
    def __call__(self, detector: MdmfModel) -> dict[str, float]:
        from sklearn.metrics import roc_auc_score

        bank = self._signatures(detector, self._bank)
        real = scores(self._signatures(detector, self._real), bank, detector.sigma)
        areas = {}
        for generator, inputs in sorted(self._generated.items()):
            generated = scores(self._signatures(detector, inputs), bank, detector.sigma)
            labels = np.r_[np.zeros(len(real)), np.ones(len(generated))]
            areas[generator] = float(roc_auc_score(labels, np.r_[real, generated]))
        return areas | {"mean": float(np.mean(list(areas.values())))}

    def _signatures(self, detector: MdmfModel, inputs: NDArray[np.generic]) -> NDArray[np.float32]:
        parts = [self._extract(detector, inputs[start : start + _BATCH]) for start in range(0, len(inputs), _BATCH)]
        return np.concatenate(parts)


def write_csv(path: Path, history: Sequence[Record]) -> None:
    """Write one line per logged step. Columns come in order of first appearance, and are empty if not measured."""
    columns = list(dict.fromkeys(name for record in history for name in record))
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(history)


def write_plot(path: Path, history: Sequence[Record], title: str) -> None:
    """Plot loss, test power and validation AUROC over the steps as a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.2), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, 3)
    names = {name for record in history for name in record}
    curves = [
        ("loss", ["loss"]),
        ("test power", ["power"]),
        ("validation AUROC", sorted(name for name in names if name.startswith("auroc_"))),
    ]
    for panel, (heading, columns) in zip(panels, curves, strict=True):
        for column in columns:
            points = [(record["step"], record[column]) for record in history if column in record]
            panel.plot([x for x, _ in points], [y for _, y in points], label=column.removeprefix("auroc_"), linewidth=1)
        panel.set_title(heading, fontsize=10)
        panel.set_xlabel("step")
        panel.grid(alpha=0.3)
        if len(columns) > 1:
            panel.legend(fontsize=7)
    figure.suptitle(title, fontsize=10)
    figure.savefig(path, dpi=120)
