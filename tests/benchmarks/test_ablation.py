"""The ablations: formulas of the decision rules, what is cached, and one run on a few images with random weights."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from helpers.backbones import write_onnx
from helpers.one_thread import one_thread
from helpers.synthetic_photos import synthetic_photo
from msgspec.structs import replace
from PIL import Image
from sklearn.metrics import roc_auc_score

from mdmf_deploy.bundle.bank import BankSource
from mdmf_deploy.bundle.recipe import load_recipe
from mdmf_deploy.mmd.cpu import CpuReduction
from mdmf_deploy.mmd.reference import uniform_bank
from mdmf_deploy.model.pfs import MdmfModel
from mdmf_deploy.tasks.train.data import LabelledImage
from mdmf_deploy.tasks.train.features import FeatureCache

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
RECIPE = """
name = "tiny"
summary = "A random model for tests."
backbone = {architecture = "starter_vit14", blocks = [1, 2]}
preprocessing = {crop = 56}
head = {pool = 2, hidden = [16], signature = 8, normalise = true}
training = {sigma = 0.7, patch_cross_entropy = 1.0, split = {train = 0.5, validation = 0.4, held_out = ["held"]}}
"""
SOURCES = ("real/seen", "real/held", "generated/seen", "generated/held")
SMALL = {
    "GRIDS": {16: 4},
    "BLOCKS": ((3,),),
    "WIDTHS": (4,),
    "BANK": 24,
    "BANK_SIZES": (8,),
    "BANK_IMAGES": (2,),
    "DRAWS": 2,
    "MOST_PATCHES": 5,
}


class Scripts(NamedTuple):
    main: Any
    features: Any
    heads: Any


@pytest.fixture(scope="module")
def scripts() -> Iterator[Scripts]:
    path = list(sys.path)
    sys.path.insert(0, str(BENCHMARKS))
    try:
        features, heads = (importlib.import_module(f"ablation_{name}") for name in ("features", "heads"))
        # Set before ablation.py takes them over by name.
        for name, value in SMALL.items():
            assert hasattr(heads, name)
            setattr(heads, name, value)
        with one_thread():
            yield Scripts(importlib.import_module("ablation"), features, heads)
    finally:
        sys.path[:] = path
        for name in ("ablation", "ablation_features", "ablation_heads", "refit_head", "common"):
            sys.modules.pop(name, None)


class Setup(NamedTuple):
    folder: Path
    recipe: Path
    weights: Path
    data: Path

    def images(self, source: str) -> list[LabelledImage]:
        paths = sorted((self.data / source).iterdir())
        return [LabelledImage(path, f"{n:064x}", source, "train") for n, path in enumerate(paths)]


@pytest.fixture(scope="module")
def setup(tmp_path_factory: pytest.TempPathFactory) -> Setup:
    """Sources of which the generated ones are red, and random weights."""
    folder = tmp_path_factory.mktemp("ablation")
    (folder / "tiny.toml").write_text(RECIPE)
    torch.manual_seed(0)
    recipe = load_recipe(folder / "tiny.toml")
    backbone = MdmfModel(replace(recipe, backbone=replace(recipe.backbone, blocks=(1, 2, 3)))).backbone
    torch.nn.init.trunc_normal_(backbone.pos_embed, std=0.02)
    weights = write_onnx(backbone.state_dict(), folder / "tiny.whl")
    for place, source in enumerate(SOURCES):
        (folder / "data" / source).mkdir(parents=True)
        for n in range(8):
            pixels = synthetic_photo(10 * place + n, 120, 130) // 2 + np.uint8([100 * ("generated" in source), 0, 0])
            Image.fromarray(pixels).save(folder / "data" / source / f"{n}.bmp")
    return Setup(folder, folder / "tiny.toml", weights, folder / "data")


def kernel(a: Any, b: Any, sigma: float) -> Any:
    return np.exp(-((a[:, None].astype(np.float64) - b[None]) ** 2).sum(-1) / (2 * sigma**2))


def test_each_decision_rule_is_its_formula(scripts: Scripts) -> None:
    rng, sigma = np.random.default_rng(0), 0.7
    x, r = rng.normal(size=(3, 5, 4)).astype(np.float32), rng.normal(size=(40, 4)).astype(np.float32)
    source = np.zeros(len(r), np.int32)
    bank = uniform_bank(r, sigma, source=source, sources=(BankSource("r", "0" * 64),), model_sha256="0" * 64)
    contributions = CpuReduction()(x, bank).contributions
    patches = scripts.heads.patch_scores(contributions, scripts.heads.own_terms(x, sigma))
    # A patch by itself: k(x, x) = 1, and the other two terms of the biased MMD^2.
    alone = [1 - 2 * kernel(image, r, sigma).mean(1) + kernel(r, r, sigma).mean() for image in x]
    np.testing.assert_allclose(patches, alone, rtol=0, atol=1e-5)
    np.testing.assert_allclose(
        scripts.heads.mean_distances(x, r), [((image.mean(0) - r.mean(0)) ** 2).sum() for image in x], rtol=1e-5
    )
    threshold = float(np.median(patches))
    counted = [sum(float(value) > threshold for value in image) / 5 for image in patches]
    assert scripts.heads.votes(patches, threshold).tolist() == counted


def test_the_best_threshold_separates_the_classes_if_any_does(scripts: Scripts) -> None:
    rng = np.random.default_rng(1)
    # Two of ten patches of a generated image are above 3, and the others lower than those of the real ones.
    patches = {"real": rng.uniform(1, 3, (30, 10)), "a": rng.uniform(0, 1, (20, 10)), "b": rng.uniform(0, 1, (9, 10))}
    patches["a"][:, 4:6] = patches["b"][:, :2] = 5
    threshold = scripts.heads.best_threshold(patches)
    assert scripts.heads.mean_auroc({name: scripts.heads.votes(x, threshold) for name, x in patches.items()}) == 1
    low = {name: scripts.heads.votes(x, 0.9) for name, x in patches.items()}
    assert scripts.heads.mean_auroc(low) < 0.5


def test_figures_are_means_over_generators_and_differences_are_paired(scripts: Scripts) -> None:
    rng = np.random.default_rng(2)

    def drawn(shift: float) -> dict[str, Any]:
        return {"real": rng.normal(size=40), "a": rng.normal(shift, size=30), "b": rng.normal(2 * shift, size=7)}

    weak, strong = [drawn(0.3), drawn(0.3)], [drawn(3.0), drawn(3.0)]
    compare = scripts.main.Comparison(weak, 0.02, 200)
    name, shown, difference, beyond, paper = compare.line(scripts.main.Row("itself", weak))
    assert (name, difference, beyond, paper) == ("itself", "+0.0 (+0.0 to +0.0)", "no", "not given")
    areas = [
        np.mean([roc_auc_score([0] * 40 + [1] * len(s[g]), np.concatenate([s["real"], s[g]])) for g in ("a", "b")])
        for s in weak
    ]
    assert shown == f"{100 * np.mean(areas):.1f} ({100 * min(areas):.1f} to {100 * max(areas):.1f})"
    *_, difference, beyond, paper = compare.line(scripts.main.Row("better", strong, "95"))
    value, low, high = map(float, re.findall(r"[+-][\d.]+", difference))
    assert 0 < low < value < high
    assert (beyond, paper) == ("yes", "95")
    # Two standard errors of a difference of means of two seeds are two deviations.
    value = scripts.main.mean_auroc(strong[0]) / 2 + scripts.main.mean_auroc(strong[1]) / 2 - np.mean(areas)
    for between, expected in ((value / 2.02, "yes"), (value / 1.98, "no"), (np.nan, "unknown")):
        assert scripts.main.Comparison(weak, between, 10).line(scripts.main.Row("better", strong))[3] == expected


def test_the_deviation_between_seeds_is_pooled_over_settings(scripts: Scripts) -> None:
    areas = [[0.7, 0.72, 0.71], [0.5, 0.54, 0.49], [0.9]]
    assert scripts.main.deviation(areas) ** 2 == pytest.approx((np.var(areas[0]) + np.var(areas[1])) * 3 / 4)
    assert np.isnan(scripts.main.deviation([[0.9], [0.8]]))


def test_tokens_are_those_of_the_head_on_every_grid_and_are_computed_once(
    scripts: Scripts, setup: Setup, tmp_path: Path
) -> None:
    recipe = load_recipe(setup.recipe)
    wide = replace(recipe, backbone=replace(recipe.backbone, blocks=(1, 2, 3)))
    torch.manual_seed(1)
    detector = MdmfModel(wide).eval()
    kept = FeatureCache(detector, recipe.preprocessing, tmp_path)
    cache = scripts.features.TokenCache(kept, {2: (1, 2, 3), 4: (1, 3)})
    crops = [np.random.default_rng(n).normal(size=(n, 3, 56, 56)).astype(np.float32) for n in (1, 4, 5, 2)]
    found = cache(lambda: crops, [2, 4], "facts")
    assert [len(x) for x in found[4]] == [1, 4, 5, 2]
    for grid, blocks in cache.grids.items():
        model = MdmfModel(replace(wide, head=replace(recipe.head, pool=grid)))
        with torch.inference_mode():
            tokens = model.head.patches(detector.backbone(torch.from_numpy(np.concatenate(crops)))).numpy()
        width = detector.backbone.architecture.width
        expected = np.concatenate([tokens[..., width * (b - 1) : width * b] for b in blocks], axis=-1)
        np.testing.assert_allclose(np.concatenate(found[grid]), expected, rtol=2e-3, atol=2e-3)

    def refuse() -> Any:
        raise AssertionError("computed again")

    again = cache(refuse, [2, 4], "facts")
    assert all(np.array_equal(a, b) for grid in found for a, b in zip(found[grid], again[grid], strict=True))
    with pytest.raises(AssertionError, match="computed again"):
        cache(refuse, [2, 4], "other facts")


def test_views_depend_on_the_image_alone_and_are_coded_again(scripts: Scripts, setup: Setup) -> None:
    how = load_recipe(setup.recipe).preprocessing
    first, second = setup.images("real/seen")[:2]
    makers: list[Callable[[Any], Any]] = [
        lambda image: scripts.features.random_views(image, how, 3),
        lambda image: scripts.features.fixed_views(image, how, 4),
    ]
    for make, count in zip(makers, (3, 4), strict=True):
        views = make(first)
        assert views.shape == (count, 3, 56, 56)
        assert np.array_equal(views, make(first))
        assert not np.array_equal(views[0], views[1])
        assert not np.array_equal(views, make(second))
    flat = np.full((56, 56, 3), 90, np.uint8)
    assert np.abs(scripts.features.recoded(flat, 60).astype(int) - 90).max() <= 2
    busy = np.asarray(Image.open(first.path))[:56, :56]
    errors = [np.abs(scripts.features.recoded(busy, q).astype(int) - busy).mean() for q in (95, 60)]
    assert 0 < errors[0] < errors[1]


def test_settings_differ_from_the_default_in_one_table_of_the_recipe(scripts: Scripts, setup: Setup) -> None:
    base = scripts.heads.base_recipe(load_recipe(setup.recipe), 7, 4)
    assert base.training.lora.blocks == ()
    assert base.training.pairs.autoencoders == ()
    default, *others = scripts.heads.settings(base)
    assert default.recipe == base
    assert len({setting.name for setting in others}) == len(others)
    for setting in others:
        changed = [
            key for key in ("backbone", "head", "training") if getattr(setting.recipe, key) != getattr(base, key)
        ]
        assert len(changed) == 1, setting.name
        assert setting.recipe.training.steps == 7


def test_a_run_on_red_images_finds_them_and_a_second_run_trains_nothing(
    scripts: Scripts, setup: Setup, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = [str(setup.weights), str(setup.data), "-o", str(setup.folder / "kept"), "--recipe", str(setup.recipe)]
    arguments += ["--held-out", "held", "--steps", "8", "--batch", "4", "--seeds", "2"]
    scripts.main.main(arguments)
    printed = capsys.readouterr().out
    rows = dict(re.findall(r"^\| \**([^|*]+)\** \| ([\d.]+) \(", printed, re.MULTILINE))
    names = {
        "W 28 (2 x 2)",
        "block 3",
        "d 4",
        "8 signatures of all images",
        "5 crops",
        "global: one token of the whole crop",
    }
    assert names <= rows.keys()
    assert min(float(rows[name]) for name in names) > 80, printed
    assert "test: 8 real and 8 generated images" in printed
    assert not list((setup.folder / "kept").rglob("*state*"))

    def refuse(*anything: object) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(scripts.main, "trained", refuse)
    scripts.main.main([*arguments, "--backwards"])
    again = capsys.readouterr().out
    assert again[again.index("### ") :] == printed[printed.index("### ") :]


def test_every_part_must_have_both_classes(scripts: Scripts, setup: Setup) -> None:
    files = [str(setup.weights), str(setup.data), "-o", "none", "--recipe", str(setup.recipe)]
    with pytest.raises(SystemExit, match=r"ablation.py: .*2 generated images or more .*--held-out"):
        scripts.main.main([*files, "--held-out", "real/held"])
    with pytest.raises(SystemExit, match=r"ablation.py: .*2 real images or more in the train part; give more"):
        scripts.main.main([*files, "--held-out", "held", "--limit", "2"])
