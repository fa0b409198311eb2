"""`mdmf train`, and its checkpoint all the way into a bundle."""

from __future__ import annotations

import csv
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.backbones import PLAIN
from helpers.mdmf import mdmf
from helpers.one_thread import one_thread
from helpers.suggested import suggested
from helpers.synthetic_photos import synthetic_photo
from helpers.tracing import quickly_traced
from PIL import Image
from safetensors.torch import load_file

from mdmf_deploy.bundle.bundle import Bundle
from mdmf_deploy.bundle.recipe import load_recipe
from mdmf_deploy.cli.train import default_recipe, with_options
from mdmf_deploy.model.architectures import ARCHITECTURES
from mdmf_deploy.model.dinov2 import DinoV2

SMALL = replace(PLAIN, depth=1)
TEAM = Path(__file__).parents[1] / "helpers" / "team.py"
RECIPE = """
name = "tiny"
summary = "A random model for tests."
backbone = { architecture = "starter_vit14" }
preprocessing = { crop = 56 }
head = { pool = 2, hidden = [16], signature = 8 }
verification = { min_rank_correlation = 0.9, max_flipped_verdicts = 0.2, max_fpr_change = 0.2 }

[training]
steps = 2
batch = 4
split = { train = 0.6, validation = 0.2 }
gate = { min_kernel = 0.0, max_swapped_auroc = 1.0 }
"""


@pytest.fixture(scope="module", autouse=True)
def on_one_thread() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture(scope="module", autouse=True)
def small_model() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ARCHITECTURES, "starter_vit14", SMALL)
        patch.setattr("mdmf_deploy.tasks.train.train.write_plot", lambda *_: None)
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    (folder / "tiny.toml").write_text(RECIPE)
    for name, first, count in (("real", 300, 30), ("generated/one", 400, 24)):
        (folder / name).mkdir(parents=True)
        for seed in range(first, first + count):
            Image.fromarray(synthetic_photo(seed, 64, 60)).save(folder / name / f"{seed}.png")
    return folder


def test_a_smoke_run_goes_from_folders_to_a_bundle_that_says_so(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mdmf_deploy.tasks.export.export.installed", lambda: ["onnxruntime"])
    monkeypatch.setattr("mdmf_deploy.tasks.export.export.trace", quickly_traced)
    run = tmp_path / "run"
    arguments = (data / "real", data / "generated", "--recipe", data / "tiny.toml", "--train-backbone", "-o", run)
    result = mdmf("train", *arguments, "--smoke")
    assert result.exit_code == 0, result.stderr
    assert result.stdout.strip() == str(run / "checkpoint.safetensors")
    lines = result.stderr.splitlines()
    assert "worth nothing" in lines[0]
    assert [line.removeprefix("mdmf: ").partition(" in ")[0] for line in lines if " in " in line] == [
        *("reading images: 18 images", "cutting crops: 18 images"),
        *("validation: 27 crops", "training: 2 steps"),
    ]
    assert lines[-1].startswith("mdmf: wrote the checkpoint of a smoke run, worth nothing, to ")
    bundle = tmp_path / "new.mdmf"
    exported = mdmf(
        *("export", run / "checkpoint.safetensors", "--recipe", data / "tiny.toml"),
        *("--reals", data / "real", "-o", bundle),
    )
    assert exported.exit_code == 0, exported.stderr
    assert "worth nothing" in exported.stderr
    provenance = Bundle.open(bundle).manifest.provenance
    assert (provenance.recipe, provenance.smoke) == ("tiny", True)
    assert "of a smoke run" in mdmf("inspect", bundle).stdout


def test_pretrained_weights_stay_frozen(data: Path, tmp_path: Path) -> None:
    torch.manual_seed(1)
    weights = tmp_path / "backbone.pth"
    torch.save(DinoV2(SMALL).state_dict(), weights)
    result = mdmf(
        *("train", data / "real", data / "generated", "--recipe", data / "tiny.toml"),
        *("--backbone-weights", weights, "-o", tmp_path / "run"),
        *("--objective", "pooled", "--steps", 3, "--validate-every", 2),
    )
    assert result.exit_code == 0, result.stderr
    assert result.stdout.strip() == str(tmp_path / "run" / "checkpoint.safetensors")
    assert "validation AUROC one" in result.stderr
    assert "mean kernel" in result.stderr
    assert "'pooled'" in result.stderr
    assert "features: " in result.stderr
    again = suggested(result)
    assert again == ["export", str(tmp_path / "run" / "checkpoint.safetensors"), "--reals", "PHOTOS", "-o", "NEW.mdmf"]
    with (tmp_path / "run" / "history.csv").open() as file:
        assert [row["step"] for row in csv.DictReader(file)] == ["2", "3"]
    trained = load_file(tmp_path / "run" / "checkpoint.safetensors")
    assert all(torch.equal(trained[f"backbone.{k}"], v) for k, v in torch.load(weights, weights_only=True).items())


def test_adapters_are_exported_with_the_backbone_they_adapt(data: Path, tmp_path: Path) -> None:
    from mdmf_deploy.model.architectures import architecture
    from mdmf_deploy.model.checkpoints import load_model
    from mdmf_deploy.model.dinov2 import DinoV2
    from mdmf_deploy.model.recipes import recipe_of

    torch.manual_seed(1)
    weights, recipe = tmp_path / "its backbone.pth", tmp_path / "adapted.toml"
    torch.save(DinoV2(architecture("starter_vit14")).state_dict(), weights)
    recipe.write_text((data / "tiny.toml").read_text() + "lora = { blocks = [1], rank = 2 }\n")
    images = (data / "real", data / "generated")
    result = mdmf("train", *images, "--recipe", recipe, "--backbone-weights", weights, "-o", tmp_path / "a run")
    checkpoint = tmp_path / "a run" / "checkpoint.safetensors"
    words = ["export", str(checkpoint), "--reals", "PHOTOS", "-o", "NEW.mdmf", "--backbone-weights", str(weights)]
    assert suggested(result) == words
    load_model(checkpoint, recipe_of(checkpoint, None), weights)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--recipe", "starter"], "--backbone-weights FILE or --download-backbone"),
        (["--recipe", "starter", "--backbone", "vit_nowhere"], "vit_nowhere"),
        (["--recipe", "starter", "--objective", "patchy"], "patchy"),
        (["--train-backbone", "--resume"], "without --resume"),
        (["--train-backbone", "--resume", "--smoke"], "--smoke and --resume exclude each other"),
        (["--recipe", "starter", "--train-backbone"], "--autoencoders DIR"),
        (["--download-backbone", "--backbone-weights", "x.pth"], "exclude each other"),
    ],
)
def test_wrong_options_are_one_line(data: Path, tmp_path: Path, arguments: list[str], message: str) -> None:
    if "--recipe" not in arguments:
        arguments = [*arguments, "--recipe", str(data / "tiny.toml")]
    result = mdmf("train", data / "real", data / "generated", "-o", tmp_path / "run", *arguments)
    assert result.exit_code == 2
    lines = [line for line in result.stderr.splitlines() if line.startswith("mdmf: ")]
    assert len(lines) == 1
    assert message in lines[0]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork there")
def test_two_processes_train_one_model_and_one_of_them_logs(data: Path, tmp_path: Path) -> None:
    small = (data / "tiny.toml").read_text().replace("batch = 4", "batch = 3")
    (tmp_path / "small.toml").write_text(small)
    large = tmp_path / "real"
    large.mkdir()
    for seed in range(300, 330):
        Image.fromarray(synthetic_photo(seed, 100, 97)).save(large / f"{seed}.png")
    options = ["--recipe", tmp_path / "small.toml", "--train-backbone", "-o", tmp_path / "run"]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [TEAM, port, tmp_path, "train", large, data / "generated", *options]
    path = os.pathsep.join([str(TEAM.parents[1]), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, *map(str, words)], env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}, check=False
    )
    stdout, stderr, nothing, silence = (
        (tmp_path / f"{name}{rank}").read_text() for rank in range(2) for name in ("stdout", "stderr")
    )
    assert done.returncode == 0, stderr + silence
    assert stdout.split() == [str(tmp_path / "run" / "checkpoint.safetensors")]
    assert stderr.count("step 2: power") == 1
    assert (nothing, "step" in silence) == ("", False)


def test_a_detector_that_ignores_its_bank_is_one_line_and_exit_code_1(data: Path, tmp_path: Path) -> None:
    strict = (data / "tiny.toml").read_text().replace("min_kernel = 0.0", "min_kernel = 1.0")
    (tmp_path / "strict.toml").write_text(strict)
    options = ("--recipe", tmp_path / "strict.toml", "--train-backbone", "-o", tmp_path / "run")
    result = mdmf("train", data / "real", data / "generated", *options)
    assert result.exit_code == 1
    assert "the bank does not matter" in result.stderr.splitlines()[-1]
    assert result.stdout == ""


def test_generated_needs_a_folder_per_generator(data: Path, tmp_path: Path) -> None:
    result = mdmf("train", data / "real", data / "real", "-o", tmp_path / "run")
    assert result.exit_code == 2
    assert "has no sub-folder" in result.stderr


def test_a_backbone_alone_means_its_own_recipe() -> None:
    assert default_recipe("dinov2_vitl14") == "dinov2_vitl14"
    assert default_recipe("dinov2_vitl14_reg") == default_recipe(None) == "starter"


def test_options_change_the_recipe_and_nothing_else() -> None:
    recipe = load_recipe("starter")
    changed = with_options(recipe, "dinov2_vits14_reg", {"steps": 7, "seed": 3})
    assert changed.backbone.architecture == "dinov2_vits14_reg"
    assert (changed.training.steps, changed.training.seed) == (7, 3)
    assert changed.training.pairs == recipe.training.pairs
    assert changed.head == recipe.head
