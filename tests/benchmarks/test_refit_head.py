"""Fitting a head again: what it keeps of the checkpoint, what it learns from, and what it refuses."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import pytest
import torch
from helpers.backbones import write_onnx
from helpers.one_thread import one_thread
from helpers.synthetic_photos import synthetic_photo
from PIL import Image

from mdmf_deploy.bundle.recipe import Recipe, load_recipe
from mdmf_deploy.model.checkpoints import load_model, save_model
from mdmf_deploy.model.lora import Lora
from mdmf_deploy.model.onnx_weights import weights_source
from mdmf_deploy.model.pfs import MdmfModel
from mdmf_deploy.model.tensors import read_facts, read_tensors

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
RECIPE = """
name = "tiny"
summary = "A random model for tests."
backbone = {architecture = "starter_vit14", blocks = [1]}
preprocessing = {crop = 56}
head = {pool = 2, hidden = [16], signature = 8, normalise = true}
training = {sigma = 0.7, gate = {min_kernel = 0.0, max_swapped_auroc = 1.0}}
"""
SOURCES = ("real/seen", "real/art_seen", "real/held", "generated/seen", "generated/held")


@pytest.fixture(scope="module")
def script() -> Iterator[Any]:
    path = list(sys.path)
    sys.path.insert(0, str(BENCHMARKS))
    try:
        module = importlib.import_module("refit_head")
        # A few fast steps on a few images are enough for a head this small.
        module.BLANKS, module.WARMUP, module.RATE = 4, 4, 1e-2
        with one_thread():
            yield module
    finally:
        sys.path[:] = path
        for name in ("refit_head", "common"):
            sys.modules.pop(name, None)


class Setup(NamedTuple):
    folder: Path
    checkpoint: Path
    weights: Path

    def arguments(self, output: str, *more: str) -> list[str]:
        files = [self.checkpoint, self.weights, self.folder / "data", "-o", self.folder / output]
        return [*map(str, files), "--recipe", str(self.folder / "tiny.toml"), "--views", "1", *more]


@pytest.fixture(scope="module")
def setup(tmp_path_factory: pytest.TempPathFactory) -> Setup:
    """A checkpoint with LoRA factors, and sources of which the generated ones are red."""
    folder = tmp_path_factory.mktemp("refit")
    (folder / "tiny.toml").write_text(RECIPE)
    torch.manual_seed(0)
    model = MdmfModel(load_recipe(folder / "tiny.toml"))
    model.log_sigma.data.fill_(np.log(0.7))
    torch.nn.init.trunc_normal_(model.backbone.pos_embed, std=0.02)
    weights = write_onnx(model.backbone.state_dict(), folder / "tiny.whl")
    height, width = model.backbone.get_submodule("blocks.0.attn.qkv").weight.shape
    factors = {"A": torch.randn(2, int(width)), "B": 0.05 * torch.randn(int(height), 2)}
    lora = Lora({f"blocks.0.attn.qkv.{name}": value.half() for name, value in factors.items()}, 2.0)
    save_model(folder / "old.safetensors", model, {"recipe": "tiny"}, weights_source(weights), lora)
    for place, source in enumerate([f"data/{source}" for source in SOURCES] + ["more/pristine"]):
        (folder / source).mkdir(parents=True)
        for n in range(4):
            pixels = synthetic_photo(10 * place + n, 90, 80) // 2 + np.uint8([100 * ("generated" in source), 0, 0])
            Image.fromarray(pixels).save(folder / source / f"{n}.png")
    return Setup(folder, folder / "old.safetensors", weights)


def test_only_the_head_changes_and_it_learns_from_nothing_that_is_held_out(
    script: Any, setup: Setup, capsys: pytest.CaptureFixture[str]
) -> None:
    held, more = ("--held-out", "held"), ("--more-reals", str(setup.folder / "more"), "--steps", "20")
    script.main(setup.arguments("new.safetensors", *held, *more, "--baselines", "--seeds", "2"))
    printed = capsys.readouterr().out
    old, new = read_tensors(setup.checkpoint), read_tensors(setup.folder / "new.safetensors")
    assert old.keys() == new.keys()
    same = {key for key, value in old.items() if torch.equal(value, new[key])}
    assert same == {key for key in old if not key.startswith("head.")}
    before, after = read_facts(setup.checkpoint), read_facts(setup.folder / "new.safetensors")
    recipe = msgspec.convert(after.pop("recipe"), Recipe)
    assert before.pop("recipe") == recipe.name
    assert recipe == load_recipe(setup.folder / "tiny.toml")
    assert before == after
    load_model(setup.folder / "new.safetensors", load_recipe(setup.folder / "tiny.toml"), setup.weights)

    # Red is easy to see, for the head and for all baselines.
    rows = dict(re.findall(r"^\| ([^|]+) \| ([01]\.\d+) \|", printed, re.MULTILINE))
    assert {"seed 0", "seed 1", "mean", "patch probe, mean logit"} < rows.keys()
    assert len(rows) == 7
    assert min(float(area) for name, area in rows.items() if name != "standard deviation") > 0.9, printed
    assert "real/pristine: 8 crops" in printed

    # Other images in held-out sources leave the head as it was, to the last bit.
    for n, path in enumerate(sorted((setup.folder / "data").glob("*/held/*.png"))):
        Image.fromarray(synthetic_photo(900 + n, 70, 70)).save(path)
    script.main(setup.arguments("again.safetensors", *held, *more))
    assert (setup.folder / "again.safetensors").read_bytes() == (setup.folder / "new.safetensors").read_bytes()


@pytest.mark.parametrize("held", ["nothing", "generated/held"])
def test_both_classes_must_be_held_out(script: Any, setup: Setup, held: str) -> None:
    with pytest.raises(SystemExit, match=r"2 real images or more .*--held-out"):
        script.main(setup.arguments("none.safetensors", "--held-out", held))
