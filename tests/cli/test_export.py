"""`mdmf export`: from a checkpoint to a bundle, a Triton repository, or both."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.mdmf import mdmf
from helpers.tracing import known_or_traced
from helpers.triton_plans import write_plan
from safetensors.torch import load_file, save_file

from mdmf_deploy.bundle.bank import BankSource
from mdmf_deploy.bundle.bundle import Bundle
from mdmf_deploy.bundle.manifest import MODEL
from mdmf_deploy.files import file_sha256
from mdmf_deploy.mmd.reference import ReferenceReduction, uniform_bank
from mdmf_deploy.runtime import installed
from mdmf_deploy.runtime.ort import OrtEngine
from mdmf_deploy.tasks.verify import signatures_by_hash


@dataclass(frozen=True)
class Export:
    """A bundle, its Triton repository, and the JSON that the command printed."""

    bundle: Path
    models: Path
    printed: dict[str, Any]


@pytest.fixture(scope="module")
def exported(checkpoint: Path, reals: Path, tmp_path_factory: pytest.TempPathFactory) -> Export:
    folder = tmp_path_factory.mktemp("exported")
    options = ("--reals", reals, "-o", "new.mdmf", "--triton", "models", "--json")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        result = mdmf("export", checkpoint, *options)
    assert result.exit_code == 0, result.stderr
    assert "tracing" in result.stderr
    bundle_line, triton_line = result.stderr.splitlines()[-2:]
    following = "next: mdmf calibrate new.mdmf REAL_PHOTOS -o mine.mdmf"
    assert bundle_line == f"mdmf: wrote the bundle to new.mdmf; {following}"
    assert triton_line == "mdmf: wrote the Triton repository to models; next: see models/README.md"
    return Export(folder / "new.mdmf", folder / "models", json.loads(result.stdout))


def write_golden(path: Path, bundle: Path, images: list[Path], reals: Path) -> Path:
    """Write the scores of images against all of these reals, by the bundle's graph and the plain formula."""
    opened = Bundle.open(bundle)
    engine = OrtEngine(opened)
    found = [
        np.concatenate(list(signatures_by_hash(paths, engine, opened.manifest.preprocessing).values()))
        for paths in (images, sorted(reals.iterdir()))
    ]
    engine.close()
    bank = found[1].reshape(-1, 8)
    none = np.zeros(len(bank), np.int32)
    plain = uniform_bank(bank, 1.0, source=none, sources=(BankSource("all", ""),), model_sha256="")
    scores = ReferenceReduction()(found[0], plain).mmd2
    rows = [{"image": str(image), "score": float(score)} for image, score in zip(images, scores, strict=True)]
    path.write_text(json.dumps({"scores": rows}))
    return path


def refused(*arguments: object) -> str:
    result = mdmf("export", *arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    return line


def test_export_writes_a_bundle_that_names_its_checkpoint(exported: Export, checkpoint: Path) -> None:
    bundle, printed = Bundle.open(exported.bundle), exported.printed
    assert printed["bundle"] == "new.mdmf"
    assert printed["bundle_id"] == bundle.bundle_id
    assert printed["precision"] == "fp32"
    assert [(gate["runtime"], gate["passed"]) for gate in printed["verification"]] == [
        (name, True) for name in installed()
    ]
    assert bundle.covered == tuple(sorted((name, "fp32") for name in installed()))
    assert printed["bank"]["images"] == 12
    assert bundle.manifest.provenance.checkpoint_sha256 == file_sha256(checkpoint)
    assert bundle.manifest.provenance.recipe == "tiny"


def test_the_same_weights_give_the_same_bytes(exported: Export, tiny_bundle: Path) -> None:
    ours, theirs = (Bundle.open(path).manifest.files for path in (exported.bundle, tiny_bundle))
    assert ours["model.onnx"] == theirs["model.onnx"]
    assert ours["probes.safetensors"] == theirs["probes.safetensors"]


def test_a_foreign_head_and_its_own_backbone_file_make_the_same_model(
    exported: Export,
    checkpoint: Path,
    recipe_file: Path,
    reals: Path,
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tensors = load_file(checkpoint)
    # The same tensors are traced to the same graph. Any others are traced anew, and give another file.
    monkeypatch.setattr("mdmf_deploy.tasks.export.export.trace", known_or_traced(tensors, exported.bundle / MODEL))
    monkeypatch.setattr("mdmf_deploy.tasks.export.export.installed", lambda: ["onnxruntime"])
    backbone = {k.removeprefix("backbone."): v for k, v in tensors.items() if k.startswith("backbone.")}
    save_file(backbone, tmp_path / "backbone.safetensors")
    ours = ["layers.0.weight", "layers.0.bias", "layers.1.weight", "layers.1.bias"]
    theirs = ["mlp.0.weight", "mlp.0.bias", "mlp.2.weight", "mlp.2.bias"]
    head = {foreign: tensors[f"head.{key}"] for key, foreign in zip(ours, theirs, strict=True)}
    # exp(-d^2 / sigma0), with the sigma0 that is our sigma of 1.
    torch.save(head | {"bandwidth": torch.tensor(2.0)}, tmp_path / "head.pth")
    foreign = tmp_path / "foreign.toml"
    lines = [f'"{key}" = "{name}"' for key, name in zip([*ours, "sigma"], [*theirs, "bandwidth"], strict=True)]
    mapped = f"signature = 8, kernel = 'mmd-mp', key_map = {{ {', '.join(lines)} }}"
    foreign.write_text(recipe_file.read_text().replace("signature = 8", mapped))
    source = ("--recipe", foreign, "--backbone-weights", tmp_path / "backbone.safetensors")
    making = (tmp_path / "head.pth", *source, "--reals", reals)
    named = (tmp_path / "head.pth", "--reals", reals, "-o", tmp_path / "not written.mdmf")
    assert "does not say which recipe it was trained by" in refused(*named)
    assert "give --golden FILE with scores by its own code" in refused(*making, "-o", tmp_path / "not written.mdmf")
    golden = write_golden(tmp_path / "golden.json", exported.bundle, sorted(photos.iterdir())[:2], reals)
    # Both replace what the first export wrote.
    output = shutil.copytree(exported.bundle, tmp_path / "foreign.mdmf")
    models = shutil.copytree(exported.models, tmp_path / "models")
    result = mdmf("export", *making, "-o", output, "--triton", models, "--force", "--golden", golden)
    assert result.exit_code == 0, result.stderr
    assert "golden scores agree to" in result.stderr
    assert "backbone.safetensors, sha256" in result.stderr
    assert "not the official DINOv2 file: its hash is not known here" in result.stderr
    same, new = Bundle.open(exported.bundle).manifest, Bundle.open(output).manifest
    assert new.files["probes.safetensors"] == same.files["probes.safetensors"]
    assert new.provenance.checkpoint_sha256 != same.provenance.checkpoint_sha256
    assert new.provenance.backbone.sha256 == file_sha256(tmp_path / "backbone.safetensors")
    assert new.provenance.backbone.origin == "unknown"
    assert "not the official DINOv2 file" in " ".join(mdmf("inspect", output).stdout.split())
    assert new.model.sigma == pytest.approx(same.model.sigma, rel=1e-6)
    verify = ("verify", output, photos, "--checkpoint", tmp_path / "head.pth", "--no-record")
    result = mdmf(*verify, *source)
    assert result.exit_code == 0, result.stderr
    result = mdmf(*verify, "--recipe", foreign, "--backbone-weights", checkpoint)
    assert result.exit_code == 2
    assert "is not the backbone this bundle was made of, backbone.safetensors" in result.stderr


def test_a_checkpoint_becomes_a_bundle_and_a_triton_repository_in_one_go(
    exported: Export, checkpoint: Path, recipe_file: Path, reals: Path
) -> None:
    written = exported.printed["triton"]
    assert written["models"] == ["tiny_preprocessing", "tiny_signatures", "tiny_mmd"]
    assert "mdmf calibrate" in written["caveat"]
    assert sorted(path.name for path in exported.models.iterdir() if path.is_dir()) == sorted(
        ["tiny", *written["models"]]
    )
    making = (checkpoint, "--recipe", recipe_file, "--reals", reals, "-o", exported.bundle, "--force")
    assert "was not written by" in refused(*making, "--triton", reals)


def test_an_existing_bundle_is_replaced_only_by_force(exported: Export, checkpoint: Path, reals: Path) -> None:
    result = mdmf("export", checkpoint, "--reals", reals, "-o", exported.bundle)
    assert result.exit_code == 2
    assert "--force" in result.stderr


def test_too_few_photographs_are_one_line(checkpoint: Path, recipe_file: Path, photos: Path, tmp_path: Path) -> None:
    result = mdmf("export", checkpoint, "--recipe", recipe_file, "--reals", photos, "-o", tmp_path / "b.mdmf")
    assert result.exit_code == 2
    assert "12 distinct images; expected at least 16" in result.stderr
    assert not (tmp_path / "b.mdmf").exists()


def test_triton_of_a_shipped_bundle_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = mdmf("export", "starter", "--triton", "models")
    assert result.exit_code == 0, result.stderr
    assert "models, starter = starter_preprocessing, starter_signatures, starter_mmd" in result.stdout
    assert "by the thresholds in its README" in result.stdout
    assert "models/README.md" in result.stdout
    assert sorted(path.name for path in (tmp_path / "models").iterdir()) == [
        "README.md",
        "mdmf.json",
        "starter",
        "starter_mmd",
        "starter_preprocessing",
        "starter_signatures",
    ]


def test_triton_of_a_bundle_as_json(tiny_bundle: Path, tmp_path: Path) -> None:
    models = tmp_path / "models"
    result = mdmf("export", tiny_bundle, "--triton", models, "--triton-batch", 4, "--triton-device", "gpu", "--json")
    assert result.exit_code == 0, result.stderr
    printed = json.loads(result.stdout)
    assert printed["bundle"] == str(tiny_bundle)
    assert printed["bundle_id"] == Bundle.open(tiny_bundle).bundle_id
    assert printed["triton"]["repository"] == str(models)
    assert printed["triton"]["models"] == ["tiny_preprocessing", "tiny_signatures", "tiny_mmd"]
    assert printed["triton"]["runtime"] == "cuda"
    assert printed["triton"]["verdicts"] is False
    assert "mdmf verify" in printed["triton"]["caveat"]
    config = (models / "tiny_mmd/config.pbtxt").read_text()
    assert "max_batch_size: 4\n" in config
    assert "KIND_GPU" in config


@pytest.mark.parametrize("package", ["onnx", "onnxruntime"])
def test_triton_of_a_bundle_asks_for_its_own_extra(
    package: str, tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    line = refused(tiny_bundle, "--triton", tmp_path / "models")
    assert line == f"mdmf: --triton needs {package}; run: pip install 'mdmf-deploy[triton]'"


def test_a_triton_plan_runs_on_the_gpu(tiny_bundle: Path, tmp_path: Path) -> None:
    plan = write_plan(tmp_path / "engine.plan", Bundle.open(tiny_bundle))
    result = mdmf("export", tiny_bundle, "--triton", tmp_path / "models", "--triton-plan", plan)
    assert result.exit_code == 0, result.stderr
    assert "tensorrt fp32 is not verified" in result.stdout
    assert (tmp_path / "models/tiny_signatures/1/model.plan").read_bytes() == plan.read_bytes()
    line = refused(tiny_bundle, "--triton", tmp_path / "x", "--triton-plan", plan, "--triton-device", "cpu")
    assert "runs on a GPU only" in line


def test_a_triton_repository_is_replaced_only_by_force(tiny_bundle: Path, tmp_path: Path) -> None:
    command = ("export", tiny_bundle, "--triton", tmp_path / "models")
    assert mdmf(*command).exit_code == 0
    assert "--force" in refused(*command[1:])
    assert mdmf(*command, "--force").exit_code == 0


def test_a_recipe_of_another_model_is_refused_before_anything_is_read(
    checkpoint: Path, recipe_file: Path, tmp_path: Path
) -> None:
    (tmp_path / "other.toml").write_text(recipe_file.read_text().replace("crop = 56", "crop = 70"))
    making = ("--recipe", tmp_path / "other.toml", "--reals", tmp_path / "missing", "-o", tmp_path / "b.mdmf")
    assert "preprocessing.crop (56 in the checkpoint, not 70)" in refused(checkpoint, *making)


def test_options_that_exclude_each_other_are_one_line(
    tiny_bundle: Path, checkpoint: Path, recipe_file: Path, tmp_path: Path
) -> None:
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
    (tmp_path / "odd.toml").write_text(recipe_file.read_text().replace('"tiny"', '"a/b"'))
    named = (*making[1:], "-o", tmp_path / "b.mdmf", "--recipe", tmp_path / "odd.toml")
    # A line on the other name precedes it.
    assert "parts of addresses" in mdmf("export", checkpoint, *named).stderr.splitlines()[-1]
    curly = tmp_path / "{0}.mdmf"
    curly.mkdir()
    assert "{0}.mdmf is a bundle already" in refused(curly, "--recipe", "starter")
    assert "is this folder a bundle?" in refused(tmp_path, "--triton", models)
    assert not models.exists()
