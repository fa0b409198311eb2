"""The model card: which images it judges, and figures that scikit-learn and `mdmf detect` agree with."""

from __future__ import annotations

import importlib
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
from helpers.synthetic_photos import write_photos
from sklearn.metrics import average_precision_score, roc_auc_score

from mdmf_deploy import Bundle, Detector, Row
from mdmf_deploy.runtime import open_engine
from mdmf_deploy.tasks.calibrate import Rates, calibrate, write_calibration

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def scripts() -> Iterator[SimpleNamespace]:
    names, path = ("card_images", "card_tables", "model_card"), list(sys.path)
    sys.path.insert(0, str(BENCHMARKS))
    try:
        yield SimpleNamespace(**{name: importlib.import_module(name) for name in names})
    finally:
        sys.path[:] = path
        for name in [*names, "common"]:
            sys.modules.pop(name, None)


class Card(NamedTuple):
    """A card, the folders it is about, and the bundle it measures."""

    text: str
    data: Path
    bundle: Path

    def rows(self, heading: str) -> dict[str, list[str]]:
        """Return the cells of each row of a section's tables, by the first one."""
        [section] = [part for part in self.text.split("### ") if part.startswith(heading)]
        lines = [line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("| ")]
        return {line[0]: line[1:] for line in lines}

    def detected(self, *folders: str) -> list[Row]:
        with Detector(self.bundle) as detector:
            return detector.detect([path for folder in folders for path in sorted((self.data / folder).iterdir())])


@pytest.fixture(scope="module")
def card(tiny_bundle: Path, scripts: Any, tmp_path_factory: pytest.TempPathFactory) -> Card:
    """The card of the tiny bundle, calibrated on half of one held-out source and all camera originals."""
    data = tmp_path_factory.mktemp("card")
    counts = {"real/seen": 6, "real/kept": 6, "real/art_kept": 4, "fullsize": 4}
    counts |= {"generated/seen": 6, "generated/kept": 5, "generated/flux": 4, "original": 3, "rebuilt_ae": 3}
    for n, (name, count) in enumerate(counts.items()):
        (data / name).mkdir(parents=True)
        write_photos(data / name, count, first_seed=1000 + (0 if name == "rebuilt_ae" else 20 * n))
    for path in sorted((data / "rebuilt_ae").iterdir()):
        path.rename(path.with_name(f"photo{1140 + int(path.stem[-4:]) - 1000}{path.suffix}"))
    # A copy of an image that was trained on was trained on, too.
    shutil.copy(next((data / "real/seen").glob("*.png")), data / "real/kept" / "copy.png")
    (data / "unseen.txt").write_text("generated/seen/photo1080.jpg\n")
    bundle = Bundle.open(shutil.copytree(tiny_bundle, data / "b.mdmf"))
    paths = [*sorted((data / "real/kept").glob("photo*.jpg")), *sorted((data / "fullsize").iterdir())]
    with open_engine("onnxruntime", bundle) as engine:
        write_calibration(bundle, calibrate(bundle, engine, paths, Rates([0.3])).calibration, bundle.path)
    output = data / "card.md"
    held_out = ["real/*kept", "kept", "generated/flux"]
    options = ["--unseen", str(data / "unseen.txt"), "--pairs", str(data), "--featureless", "7", "--photorealistic", "flux"]
    scripts.model_card.main([str(bundle.path), str(data), "--held-out", *held_out, *options, "-o", str(output)])
    return Card(output.read_text(), data, bundle.path)
