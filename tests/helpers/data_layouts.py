"""The same images in every layout that `mdmf evaluate` reads, and scikit-learn's figures of the rows that it writes."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.metrics import average_precision_score, balanced_accuracy_score, roc_auc_score

Images = Mapping[str | None, Sequence[Path]]
"""Generator, or None for real images -> files. Names differ."""


def ours(images: Images, root: Path) -> Path:
    for generator, files in images.items():
        _copy(files, root / ("real" if generator is None else f"generated/{generator}"))
    return root


def cnndetection(images: Images, root: Path) -> Path:
    """Two classes of images. Each generator has real images of its own."""
    return _pairs(images, root, lambda generator, n: f"{generator}/{('cat', 'dog')[n % 2]}", "0_real", "1_fake")


def genimage(images: Images, root: Path) -> Path:
    return _pairs(images, root, lambda generator, n: f"{generator}/val", "nature", "ai")


def csv_list(images: Images, root: Path) -> Path:
    with _list_in(images, root, "set.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "generator"])
        for generator, files in images.items():
            writer.writerows([f"files/{path.name}", int(generator is not None), generator or ""] for path in files)
    return root / "set.csv"


def json_list(images: Images, root: Path) -> Path:
    entries = [
        {"path": f"files/{path.name}", "label": "real" if generator is None else "fake", "generator": generator}
        for generator, files in images.items()
        for path in files
    ]
    path = _list_in(images, root, "set.json")
    path.write_text(json.dumps(entries), encoding="utf-8")
    return path


LAYOUTS: dict[str, Callable[[Images, Path], Path]] = {
    "real, generated": ours,
    "0_real, 1_fake": cnndetection,
    "nature, ai": genimage,
    "CSV": csv_list,
    "JSON": json_list,
}


def scikit_figures(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Return generator -> auroc, ap and acc of the rows of one condition, by scikit-learn. Classes weigh alike."""
    scored = [row for row in rows if row["score"] is not None]
    real = [row for row in scored if row["generator"] is None]
    found = {}
    for generator in {row["generator"] for row in scored} - {None}:
        own = [row for row in scored if row["generator"] == generator]
        beside = [row for row in real if row["compared_with"] == generator]
        others = beside or [row for row in real if row["compared_with"] is None] or real
        labels = np.repeat([False, True], [len(others), len(own)])
        weights = np.repeat([1 / len(others), 1 / len(own)], [len(others), len(own)])
        scores = [row["score"] for row in (*others, *own)]
        flagged = [row["verdict"] == "generated" for row in (*others, *own)]
        found[generator] = {
            "auroc": float(roc_auc_score(labels, scores)),
            "ap": float(average_precision_score(labels, scores, sample_weight=weights)),
            "acc": float(balanced_accuracy_score(labels, flagged)),
        }
    return found


def _pairs(images: Images, root: Path, place: Callable[[str, int], str], real: str, generated: str) -> Path:
    """Deal the real images out to the generators."""
    generators = [name for name in images if name is not None]
    for n, path in enumerate(images[None]):
        _copy([path], root / place(generators[n % len(generators)], n // len(generators)) / real)
    for generator in generators:
        for n, path in enumerate(images[generator]):
            _copy([path], root / place(generator, n) / generated)
    return root


def _list_in(images: Images, root: Path, name: str) -> Path:
    for files in images.values():
        _copy(files, root / "files")
    return root / name


def _copy(files: Sequence[Path], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for path in files:
        shutil.copy(path, folder)
