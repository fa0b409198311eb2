"""`mdmf export --triton`: of a bundle, or right after making one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from helpers.triton_plans import write_plan
from typer.testing import CliRunner, Result

from mdmf_deploy.bundle.bundle import Bundle
from mdmf_deploy.bundle.recipe import Recipe
from mdmf_deploy.cli import app

RECIPE = """
name = "tiny"
summary = "A random model for tests."
backbone = { architecture = "starter_vit14" }
preprocessing = { crop = 56 }
head = { pool = 2, hidden = [16], signature = 8 }
"""


def mdmf(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def refused(*arguments: object) -> str:
    result = mdmf("export", *arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    return line


def test_a_shipped_bundle_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = mdmf("export", "starter", "--triton", "models")
    assert result.exit_code == 0, result.stderr
    assert "models, starter = starter_preprocessing, starter_signatures, starter_mmd" in result.stdout
    assert "yes, from the bundle's calibration" in result.stdout
    assert "models/README.md" in result.stdout
    assert sorted(path.name for path in (tmp_path / "models").iterdir()) == [
        "README.md",
        "mdmf.json",
        "starter",
        "starter_mmd",
        "starter_preprocessing",
        "starter_signatures",
    ]


def test_a_bundle_of_ones_own_as_json(tiny_bundle: Path, tmp_path: Path) -> None:
    models = tmp_path / "models"
    result = mdmf("export", tiny_bundle, "--triton", models, "--triton-batch", 4, "--triton-device", "gpu", "--json")
    assert result.exit_code == 0, result.stderr
    told = json.loads(result.stdout)
    assert told["bundle"] == str(tiny_bundle)
    assert told["bundle_id"] == Bundle.open(tiny_bundle).bundle_id
    assert told["triton"]["repository"] == str(models)
    assert told["triton"]["models"] == ["tiny_preprocessing", "tiny_signatures", "tiny_mmd"]
    assert told["triton"]["runtime"] == "cuda"
    assert told["triton"]["p_values"] is False
    assert "mdmf verify" in told["triton"]["caveat"]
    config = (models / "tiny_mmd/config.pbtxt").read_text()
    assert "max_batch_size: 4\n" in config
    assert "KIND_GPU" in config


def test_a_plan_runs_on_the_gpu(tiny_bundle: Path, tmp_path: Path) -> None:
    plan = write_plan(tmp_path / "engine.plan", Bundle.open(tiny_bundle))
    result = mdmf("export", tiny_bundle, "--triton", tmp_path / "models", "--triton-plan", plan)
    assert result.exit_code == 0, result.stderr
    assert "tensorrt fp32 is not verified" in result.stdout
    assert (tmp_path / "models/tiny_signatures/1/model.plan").read_bytes() == plan.read_bytes()
    line = refused(tiny_bundle, "--triton", tmp_path / "x", "--triton-plan", plan, "--triton-device", "cpu")
    assert "runs on a GPU only" in line


def test_right_after_a_checkpoint(
    tiny_bundle: Path, tiny_recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    from mdmf_deploy.model.checkpoints import save_detector
    from mdmf_deploy.model.pfs import MdmfModel

    torch.manual_seed(0)
    detector = MdmfModel(tiny_recipe)
    torch.nn.init.trunc_normal_(detector.backbone.pos_embed, std=0.02)
    save_detector(tmp_path / "model.safetensors", detector, {})
    (tmp_path / "tiny.toml").write_text(RECIPE)
    reals = tmp_path / "reals"
    reals.mkdir()
    for path in tiny_bundle.parent.iterdir():
        if path.is_file():
            shutil.copy(path, reals)
    monkeypatch.chdir(tmp_path)
    options = ("--recipe", "tiny.toml", "--reals", "reals", "-o", "new.mdmf", "--triton", "models", "--json")
    result = mdmf("export", "model.safetensors", *options)
    assert result.exit_code == 0, result.stderr
    told = json.loads(result.stdout)
    assert told["bundle"] == "new.mdmf"
    assert told["bank"]["images"] == 12
    assert told["triton"]["models"][0] == "tiny_preprocessing"
    assert "mdmf calibrate" in told["triton"]["caveat"]
    again = refused("model.safetensors", *options, "--force", "--triton", "reals")
    assert "was not written by" in again
    assert mdmf("export", "model.safetensors", *options, "--force").exit_code == 0


def test_a_repository_is_replaced_only_by_force(tiny_bundle: Path, tmp_path: Path) -> None:
    command = ("export", tiny_bundle, "--triton", tmp_path / "models")
    assert mdmf(*command).exit_code == 0
    assert "--force" in refused(*command[1:])
    assert mdmf(*command, "--force").exit_code == 0


def test_what_makes_no_sense_is_one_line(tiny_bundle: Path, tmp_path: Path) -> None:
    models = tmp_path / "models"
    assert "is a bundle already; give --triton DIR" in refused(tiny_bundle)
    line = refused("starter", "--triton", models, "-o", tmp_path / "b.mdmf", "--recipe", "starter")
    assert "starter is a bundle already; -o and --recipe" in line
    assert "--triton-batch" in refused("some.safetensors", "--triton-batch", 4)
    assert "--triton-device and --triton-plan" in refused("starter", "--triton-plan", "x", "--triton-device", "gpu")
    for options in ((), ("--reals", tmp_path), ("-o", tmp_path / "b.mdmf")):
        assert "needs --reals PHOTOS and -o BUNDLE" in refused("some.safetensors", "--triton", models, *options)
    (tmp_path / "photos").mkdir()
    shutil.copy(next(path for path in tiny_bundle.parent.iterdir() if path.is_file()), tmp_path / "photos")
    making = ("some.safetensors", "--triton", models, "--reals", tmp_path / "photos")
    assert "must lie apart" in refused(*making, "-o", models)
    assert "export the bundle first" in refused(*making, "-o", tmp_path / "b.mdmf", "--triton-plan", "x")
    (tmp_path / "odd.toml").write_text(RECIPE.replace('"tiny"', '"a/b"'))
    named = (*making, "-o", tmp_path / "b.mdmf", "--recipe", tmp_path / "odd.toml")
    assert "parts of addresses" in refused(*named)
    curly = tmp_path / "{0}.mdmf"
    curly.mkdir()
    assert "{0}.mdmf is a bundle already" in refused(curly, "--recipe", "starter")
    assert "is this folder a bundle?" in refused(tmp_path, "--triton", models)
    assert not models.exists()
