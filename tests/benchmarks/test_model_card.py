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
from helpers.crop_plans import planned
from helpers.synthetic_photos import write_photos
from PIL import Image, ImageFilter
from scipy.stats import spearmanr
from sklearn.metrics import average_precision_score, roc_auc_score

from mdmf_deploy import Bundle, Detector, Row
from mdmf_deploy.mmd.reference import gaussian_kernel
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
    """The card of the tiny bundle with two crops an image, calibrated on some held-out reals and camera originals."""
    data = tmp_path_factory.mktemp("card")
    counts = {"real/seen": 6, "real/kept": 6, "real/art_kept": 4, "fullsize": 4}
    counts |= {"generated/seen": 6, "generated/kept": 5, "generated/flux": 4, "original": 3}
    for n, (name, count) in enumerate(counts.items()):
        (data / name).mkdir(parents=True)
        write_photos(data / name, count, first_seed=1000 + 20 * n)
    (data / "rebuilt_ae").mkdir()
    for path in (data / "original").iterdir():
        Image.open(path).filter(ImageFilter.GaussianBlur(2)).save(data / "rebuilt_ae" / path.name)
    # A copy of an image that was trained on was trained on, too.
    shutil.copy(next((data / "real/seen").glob("*.png")), data / "real/kept" / "copy.png")
    (data / "unseen.txt").write_text("generated/seen/photo1080.jpg\n")
    bundle = planned(tiny_bundle, 2, data / "b.mdmf")
    paths = [*sorted((data / "real/kept").glob("photo*.jpg")), *sorted((data / "fullsize").iterdir())]
    with Detector(bundle.path) as detector:
        calibration = calibrate(bundle, detector.engine, paths, Rates([0.3])).calibration
    write_calibration(bundle, calibration, bundle.path)
    output = data / "card.md"
    held_out = ["real/*kept", "kept", "generated/flux"]
    options = ["--unseen", str(data / "unseen.txt"), "--pairs", str(data), "--photorealistic", "flux"]
    options += ["--featureless", "7", "-o", str(output)]
    scripts.model_card.main([str(bundle.path), str(data), "--held-out", *held_out, *options])
    return Card(output.read_text(), data, bundle.path)


def test_figures_are_those_of_scikit_learn_on_the_scores_that_detect_gives(card: Card) -> None:
    rows = card.rows("Each generator")
    assert list(rows)[1:] == [
        *sorted(["kept", "flux"], key=lambda name: rows[name][2]),
        "**mean, held out**",
        "seen",
        "**mean, unseen files**",
    ]
    # The copy of an image that was trained on is left out.
    photographs = [row for row in card.detected("real/kept") if not row.uri.endswith("copy.png")]
    reals = photographs + card.detected("real/art_kept")
    for name in ("kept", "flux"):
        generated = card.detected(f"generated/{name}")
        for real, auroc, ap in ((reals, 2, 3), (photographs, 6, 7)):
            scores = np.array([row.score for row in [*real, *generated]])
            labels = np.r_[np.zeros(len(real)), np.ones(len(generated))]
            weights = np.r_[np.full(len(real), 1 / len(real)), np.full(len(generated), 1 / len(generated))]
            assert float(rows[name][auroc].split()[0]) == pytest.approx(roc_auc_score(labels, scores), abs=5e-4)
            expected = average_precision_score(labels, scores, sample_weight=weights)
            assert float(rows[name][ap]) == pytest.approx(expected, abs=5e-4)
        called = sum(row.verdict == "generated" for row in generated) / len(generated)
        assert rows[name][9].split(" / ")[0] == f"{called:.0%}"


def test_only_images_that_were_kept_out_of_training_are_judged(card: Card) -> None:
    counts = {name: cells[:2] for name, cells in card.rows("False positives").items()}
    assert counts.pop("real/kept") == ["held out", "6"]
    assert counts.pop("real/art_kept") == counts.pop("**art**") == ["held out", "4"]
    assert not any("seen" in name for name in counts)
    assert card.rows("Each generator")["seen"][:2] == ["unseen files", "1"]
    counted = re.search(r"judged: (\d+)\. Unreadable: (\d+)\..* bank: (\d+)\.", card.text.replace("\n", " "))
    assert counted is not None
    assert counted.groups() == ("24", "0", "1")


def test_an_image_of_the_calibration_is_judged_without_itself(card: Card, scripts: Any) -> None:
    """Its own score can then not excuse it: the highest of n scores has a p-value of 1 / n, not 2 / (n + 1)."""
    calibration = Bundle.open(card.bundle).calibration
    assert calibration is not None
    group = calibration.groups[0]
    with Detector(card.bundle) as detector:
        score = scripts.card_images.Scorer(detector)
        folder = scripts.card_images.Folder("fullsize", "held out", ())
        files = [path for name in ("fullsize", "real/kept") for path in sorted((card.data / name).iterdir())]
        scored = [image for image in score(folder, files) if image.calibrates]
    assert len(scored) == len(group.scores) == 7
    top = max(scored, key=lambda image: image.score)
    assert top.verdict == "generated"
    assert top.flagged
    # At 30% of six others, the two highest alarm. With its own score among seven, the threshold would be the second.
    assert sum(image.flagged for image in scored) == 2
    assert "The 7 images that are in the calibration" in card.text.replace("\n", " ")


def test_the_bank_is_swapped_on_the_same_signatures(card: Card) -> None:
    rows = card.rows("The bank")
    assert list(rows)[1:] == ["the bundle's", "6 real images", "5 generated images"]
    assert rows["the bundle's"][1] == card.rows("Each generator")["**mean, held out**"][2]
    # One crop of four patches an image.
    assert [rows[name][0] for name in list(rows)[2:]] == ["24", "20"]


def test_the_bank_and_the_self_term_are_those_of_the_definition(card: Card, scripts: Any) -> None:
    bank = Bundle.open(card.bundle).bank
    paths = {name: sorted((card.data / name).glob("photo*")) for name in ("real/kept", "real/art_kept")}
    paths |= {name: sorted((card.data / name).iterdir()) for name in ("generated/flux", "generated/kept")}
    terms, scores = [], []
    with Detector(card.bundle) as detector:
        score = scripts.card_images.Scorer(detector)
        for name, files in paths.items():
            images = score(scripts.card_images.Folder(name, "held out", ()), files, keep=True)
            scores += [image.score for image in images]
            terms += [
                [
                    np.mean([gaussian_kernel(x, x, bank.sigma).mean() for x in image.signatures]),
                    np.mean([gaussian_kernel(x, bank.signatures, bank.sigma) @ bank.weights for x in image.signatures]),
                ]
                for image in images
            ]
    own, cross = np.array(terms).T
    aims = card.rows("Aims")
    reals = len(paths["real/kept"]) + len(paths["real/art_kept"])
    assert float(aims["mean k(real, bank)"][0]) == pytest.approx(cross[:reals].mean(), abs=6e-4)
    expected = spearmanr(scores, own).statistic
    assert float(aims["rank correlation of score and self term"][0]) == pytest.approx(expected, abs=6e-4)


def test_matched_photographs_conditions_and_pairs(card: Card) -> None:
    assert card.rows("Photorealistic")["flux"][1] == "4"
    conditions = card.rows("Conditions")
    assert len(conditions) == 1 + 7
    assert conditions["as it is"][:2] == ["19", card.rows("Each generator")["**mean, held out**"][2]]
    original, rebuilt = (card.detected(name) for name in ("original", "rebuilt_ae"))
    share = np.mean([(b.score or 0) > (a.score or 0) for a, b in zip(original, rebuilt, strict=True)])
    assert card.rows("Photographs and")["ae"][2].startswith(f"{share:.1%}")


def test_missed_aims_come_first(card: Card) -> None:
    met = [cells[2] for cells in card.rows("Aims").values()][1:]
    assert met == sorted(met)
    assert set(met) == {"**no**", "yes"}
    assert card.rows("Aims")["featureless images called generated"] == ["0", "0", "yes"]


def test_names_that_are_not_in_the_data_are_refused(card: Card, scripts: Any, tmp_path: Path) -> None:
    (tmp_path / "unseen.txt").write_text("real/nothing/0.jpg\n")
    for options, message in (
        (["--held-out", "sdxl"], "'sdxl' is not in"),
        (["--unseen", str(tmp_path / "unseen.txt")], r"real/nothing/0\.jpg is not in"),
        ([], "no real image was kept out"),
    ):
        with pytest.raises(SystemExit, match=message):
            scripts.model_card.main([str(card.bundle), str(card.data), *options])


def test_a_bundle_without_thresholds_meets_no_aim_for_false_positives(
    card: Card, scripts: Any, tiny_bundle: Path
) -> None:
    with Detector(tiny_bundle) as detector:
        folder = scripts.card_images.Folder("fullsize", "held out", ())
        scored = scripts.card_images.Scorer(detector)(folder, sorted((card.data / "fullsize").iterdir()))
    section = scripts.card_tables.false_positives(scored, scored)
    assert section.aims == ()
    assert "| fullsize | held out | 4 | - | - | - |" in str(section)
