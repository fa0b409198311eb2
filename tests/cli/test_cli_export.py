"""`mdmf export` and `mdmf verify`, from a checkpoint to a recorded gate."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import msgspec
import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner, Result

from mdmf_deploy.bundle.bundle import Bundle
from mdmf_deploy.bundle.recipe import GateLimits, Recipe
from mdmf_deploy.cli import app
from mdmf_deploy.errors import RuntimeUnavailable
from mdmf_deploy.files import file_sha256
from mdmf_deploy.model.checkpoints import save_model
from mdmf_deploy.model.pfs import MdmfModel
from mdmf_deploy.runtime import installed
from mdmf_deploy.runtime.ort import OrtEngine
from mdmf_deploy.tasks.verify import record

RECIPE = """
name = "tiny"
summary = "A random model for tests."
backbone = { architecture = "starter_vit14" }
preprocessing = { crop = 56 }
head = { pool = 2, hidden = [16], signature = 8 }
"""


def mdmf(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "tiny.toml"
    path.write_text(RECIPE)
    return path


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, tiny_recipe: Recipe) -> Path:
    """The tiny bundle's detector, as a file."""
    path = tmp_path_factory.mktemp("checkpoint") / "model.safetensors"
    torch.manual_seed(0)
    detector = MdmfModel(tiny_recipe)
    torch.nn.init.trunc_normal_(detector.backbone.pos_embed, std=0.02)
    save_model(path, detector, {})
    return path


@pytest.fixture(scope="module")
def reals(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The photographs of the tiny bundle."""
    folder = tmp_path_factory.mktemp("reals")
    for path in tiny_bundle.parent.iterdir():
        if path.is_file():
            shutil.copy(path, folder)
    return folder


@pytest.fixture(scope="module")
def exported(checkpoint: Path, recipe: Path, reals: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The bundle, and what the command printed."""
    output = tmp_path_factory.mktemp("exported") / "new.mdmf"
    result = mdmf("export", checkpoint, "--recipe", recipe, "--reals", reals, "-o", output, "--json")
    assert result.exit_code == 0, result.stderr
    assert "tracing" in result.stderr
    return output, result.stdout


def test_export_writes_a_bundle_that_names_its_checkpoint(exported: tuple[Path, str], checkpoint: Path) -> None:
    output, stdout = exported
    bundle, said = Bundle.open(output), json.loads(stdout)
    assert said["bundle_id"] == bundle.bundle_id
    assert said["precision"] == "fp32"
    assert [(gate["runtime"], gate["passed"]) for gate in said["verification"]] == [
        (name, True) for name in installed()
    ]
    assert bundle.covered == tuple(sorted((name, "fp32") for name in installed()))
    assert said["bank"]["images"] == 12
    assert bundle.manifest.provenance.checkpoint_sha256 == file_sha256(checkpoint)
    assert bundle.manifest.provenance.recipe == "tiny"


def test_the_same_weights_give_the_same_bytes(exported: tuple[Path, str], tiny_bundle: Path) -> None:
    ours, theirs = (Bundle.open(path).manifest.files for path in (exported[0], tiny_bundle))
    assert ours["model.onnx"] == theirs["model.onnx"]
    assert ours["probes.safetensors"] == theirs["probes.safetensors"]


def test_a_head_trained_elsewhere_and_a_backbone_of_its_own_make_the_same_model(
    exported: tuple[Path, str], checkpoint: Path, recipe: Path, reals: Path, photos: Path, tmp_path: Path
) -> None:
    tensors = load_file(checkpoint)
    backbone = {k.removeprefix("backbone."): v for k, v in tensors.items() if k.startswith("backbone.")}
    save_file(backbone, tmp_path / "backbone.safetensors")
    ours = ["layers.0.weight", "layers.0.bias", "layers.1.weight", "layers.1.bias"]
    theirs = ["mlp.0.weight", "mlp.0.bias", "mlp.2.weight", "mlp.2.bias"]
    head = {foreign: tensors[f"head.{key}"] for key, foreign in zip(ours, theirs, strict=True)}
    torch.save(head | {"bandwidth": tensors["log_sigma"].exp()}, tmp_path / "head.pth")
    foreign = tmp_path / "foreign.toml"
    lines = [f'"{key}" = "{name}"' for key, name in zip([*ours, "sigma"], [*theirs, "bandwidth"], strict=True)]
    mapped = f"signature = 8, key_map = {{ {', '.join(lines)} }}"
    foreign.write_text(recipe.read_text().replace("signature = 8", mapped))
    source = ("--recipe", foreign, "--backbone-weights", tmp_path / "backbone.safetensors")
    output = tmp_path / "foreign.mdmf"
    result = mdmf("export", tmp_path / "head.pth", *source, "--reals", reals, "-o", output)
    assert result.exit_code == 0, result.stderr
    same, new = Bundle.open(exported[0]).manifest, Bundle.open(output).manifest
    assert new.files["probes.safetensors"] == same.files["probes.safetensors"]
    assert new.model.sigma == pytest.approx(same.model.sigma, rel=1e-6)
    result = mdmf("verify", output, photos, "--checkpoint", tmp_path / "head.pth", *source, "--no-record")
    assert result.exit_code == 0, result.stderr


def test_an_existing_bundle_is_replaced_only_by_force(
    exported: tuple[Path, str], checkpoint: Path, reals: Path
) -> None:
    result = mdmf("export", checkpoint, "--reals", reals, "-o", exported[0])
    assert result.exit_code == 2
    assert "--force" in result.stderr


def test_too_few_photographs_are_one_line(checkpoint: Path, recipe: Path, photos: Path, tmp_path: Path) -> None:
    result = mdmf("export", checkpoint, "--recipe", recipe, "--reals", photos, "-o", tmp_path / "b.mdmf")
    assert result.exit_code == 2
    assert "12 distinct images; expected at least 16" in result.stderr
    assert not (tmp_path / "b.mdmf").exists()


def test_verify_needs_nothing_but_the_bundle_and_records(bundle_copy: Path) -> None:
    before = Bundle.open(bundle_copy)
    result = mdmf("verify", bundle_copy, "--runtime", "onnxruntime")
    assert result.exit_code == 0, result.stderr
    assert "passed" in result.stdout
    for figure in ("max score change", "rank correlation", "flipped verdicts", "fpr change"):
        assert figure in result.stdout
    after = Bundle.open(bundle_copy)
    assert len(after.manifest.verification) == len(before.manifest.verification) + 1
    assert after.bundle_id == before.bundle_id


def test_all_installed_runtimes_are_verified_in_one_go(bundle_copy: Path) -> None:
    before = len(Bundle.open(bundle_copy).manifest.verification)
    result = mdmf("verify", bundle_copy, "--runtime", "all", "--runtime", "onnxruntime", "--json")
    assert result.exit_code == 0, result.stderr
    told = json.loads(result.stdout)["records"]
    assert [record["runtime"] for record in told] == installed()
    assert all(record["images_per_second"] > 0 for record in told)
    assert len(Bundle.open(bundle_copy).manifest.verification) == before + len(told)
    table = mdmf("verify", bundle_copy, "--runtime", "all", "--no-record").stdout
    assert all(name in table for name in installed())


class Broken:
    """An engine that opens and cannot run."""

    name, precision = "broken", "fp32"

    def __init__(self, bundle: Bundle, threads: int | None = None) -> None:
        pass

    def __call__(self, images: object) -> None:
        raise RuntimeError("Unsupported operator:\n Foo")

    def close(self) -> None:
        pass


class Closed(Broken):
    """One that does not even open."""

    def __init__(self, bundle: Bundle, threads: int | None = None) -> None:
        raise RuntimeUnavailable("runtime 'closed': no such device")


def engines(monkeypatch: pytest.MonkeyPatch, **own: type) -> None:
    """The table of runtimes: ONNX Runtime, if asked for, among these."""
    table = {name: (__name__, kind.__name__, "cpu") for name, kind in own.items() if kind is not OrtEngine}
    table |= {name: ("mdmf_deploy.runtime.ort", "OrtEngine", "cpu") for name, kind in own.items() if kind is OrtEngine}
    monkeypatch.setattr("mdmf_deploy.runtime.ENGINES", table)


@pytest.mark.parametrize("options", [(), ("--json",)])
def test_all_of_no_runtimes_is_an_error(
    bundle_copy: Path, options: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    engines(monkeypatch)
    result = mdmf("verify", bundle_copy, "--runtime", "all", *options)
    assert result.exit_code == 2
    assert "no runtime is installed; run: pip install 'mdmf-deploy[cpu]'" in result.stderr
    assert result.stdout == ""


def test_of_all_runtimes_those_that_do_not_work_are_told_and_the_others_go_on(
    bundle_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engines(monkeypatch, broken=Broken, closed=Closed, onnxruntime=OrtEngine)
    before = len(Bundle.open(bundle_copy).manifest.verification)
    result = mdmf("verify", bundle_copy, "--runtime", "all", "--json")
    assert result.exit_code == 1
    assert "mdmf: broken: not verified, Unsupported operator: Foo\n" in result.stderr
    assert "mdmf: closed: not verified, runtime 'closed': no such device\n" in result.stderr
    assert [record["runtime"] for record in json.loads(result.stdout)["records"]] == ["onnxruntime"]
    assert len(Bundle.open(bundle_copy).manifest.verification) == before + 1
    # One that is asked for by name is not passed over.
    named = mdmf("verify", bundle_copy, "--runtime", "all", "--runtime", "closed")
    assert named.exit_code == 2
    assert "no such device" in named.stderr


@pytest.mark.parametrize("options", [(), ("--json",)])
def test_where_no_runtime_works_nothing_is_verified(
    bundle_copy: Path, options: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engines(monkeypatch, broken=Broken)
    result = mdmf("verify", bundle_copy, "--runtime", "all", "-o", tmp_path / "new.mdmf", *options)
    assert result.exit_code == 1
    assert f"mdmf: {bundle_copy} on broken: not verified, Unsupported operator: Foo\n" in result.stderr
    assert not (tmp_path / "new.mdmf").exists()


def test_verify_without_record_leaves_the_bundle_alone(bundle_copy: Path) -> None:
    before = (bundle_copy / "manifest.json").read_bytes()
    result = mdmf("verify", bundle_copy, "--runtime", "onnxruntime", "--no-record", "--json")
    (record,) = json.loads(result.stdout)["records"]
    assert record["passed"] is True
    assert record["images_per_second"] > 0
    assert (bundle_copy / "manifest.json").read_bytes() == before


def test_a_missed_limit_is_exit_code_1_and_recorded(bundle_copy: Path) -> None:
    bundle = Bundle.open(bundle_copy)
    manifest = msgspec.structs.replace(bundle.manifest, limits=GateLimits(max_score_change=0.0))
    record(Bundle(bundle_copy, manifest), bundle.manifest.verification[0])
    result = mdmf("verify", bundle_copy, "--runtime", "onnxruntime")
    assert result.exit_code == 1
    assert "failed" in result.stdout
    assert "max_score_change" in result.stderr
    assert not Bundle.open(bundle_copy).covers("onnxruntime", "fp32")


def test_verify_runs_the_checkpoint_again(
    exported: tuple[Path, str], checkpoint: Path, recipe: Path, photos: Path
) -> None:
    options = ("--runtime", "onnxruntime", "--checkpoint", checkpoint, "--recipe", recipe, "--no-record", "--json")
    result = mdmf("verify", exported[0], photos, *options)
    assert result.exit_code == 0, result.stderr
    (gate,) = json.loads(result.stdout)["records"]
    assert gate["images"] == 12
    assert gate["reference"].startswith("pytorch")
    assert 0 < gate["max_signature_error"] < 1e-5


def test_another_checkpoint_is_refused(
    bundle_copy: Path, exported: tuple[Path, str], recipe: Path, photos: Path
) -> None:
    other = bundle_copy.parent / "other.safetensors"
    other.write_bytes(b"something else")
    result = mdmf("verify", exported[0], photos, "--checkpoint", other, "--recipe", recipe)
    assert result.exit_code == 2
    assert "not the checkpoint this bundle was made of" in result.stderr


def test_checkpoint_and_images_go_together(bundle_copy: Path, photos: Path) -> None:
    result = mdmf("verify", bundle_copy, photos)
    assert result.exit_code == 2
    assert "go together" in result.stderr
