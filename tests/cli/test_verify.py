"""`mdmf verify`: a gate per runtime, recorded in the bundle."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import msgspec
import pytest
from fakes.failing_engines import BrokenEngine, ClosedEngine
from helpers.mdmf import mdmf

from mdmf_deploy.bundle.bundle import Bundle, write_bundle
from mdmf_deploy.bundle.recipe import GateLimits
from mdmf_deploy.runtime import installed
from mdmf_deploy.runtime.ort import OrtEngine
from mdmf_deploy.tasks.verify import record


def test_verify_needs_only_the_bundle_and_records_the_result(bundle_copy: Path) -> None:
    before = Bundle.open(bundle_copy)
    result = mdmf("verify", bundle_copy, "--runtime", "onnxruntime")
    assert result.exit_code == 0, result.stderr
    following = f"next: mdmf calibrate {bundle_copy} REAL_PHOTOS"
    assert result.stderr.splitlines()[-1].startswith(
        f"mdmf: wrote the verification on onnxruntime to {bundle_copy}; {following}"
    )
    assert "passed" in result.stdout
    for figure in ("max score change", "rank correlation", "flipped verdicts", "fpr change"):
        assert figure in result.stdout
    # A limit that does not count must not stand beside a figure that misses it.
    assert re.search(r"rank correlation +\S+  not judged on probes$", result.stdout, re.MULTILINE)
    after = Bundle.open(bundle_copy)
    assert len(after.manifest.verification) == len(before.manifest.verification) + 1
    assert after.bundle_id == before.bundle_id


def test_all_installed_runtimes_are_verified_in_one_go(bundle_copy: Path) -> None:
    before = len(Bundle.open(bundle_copy).manifest.verification)
    result = mdmf("verify", bundle_copy, "--runtime", "all", "--runtime", "onnxruntime", "--json")
    assert result.exit_code == 0, result.stderr
    records = json.loads(result.stdout)["records"]
    assert [record["runtime"] for record in records] == installed()
    assert all(record["images_per_second"] > 0 for record in records)
    assert len(Bundle.open(bundle_copy).manifest.verification) == before + len(records)
    table = mdmf("verify", bundle_copy, "--runtime", "all", "--no-record").stdout
    assert all(name in table for name in installed())


def engines(monkeypatch: pytest.MonkeyPatch, **own: type) -> None:
    """Replace the table of runtimes by these."""
    table = {name: (kind.__module__, kind.__name__, "cpu") for name, kind in own.items()}
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


def test_all_reports_runtimes_that_do_not_work_and_verifies_the_others(
    bundle_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engines(monkeypatch, broken=BrokenEngine, closed=ClosedEngine, onnxruntime=OrtEngine)
    before = len(Bundle.open(bundle_copy).manifest.verification)
    result = mdmf("verify", bundle_copy, "--runtime", "all", "--json")
    assert result.exit_code == 1
    assert "mdmf: broken: not verified, Exception from src/core.cpp:97: no memory\n" in result.stderr
    assert "mdmf: closed: not verified, runtime 'closed': no such device\n" in result.stderr
    assert [record["runtime"] for record in json.loads(result.stdout)["records"]] == ["onnxruntime"]
    assert len(Bundle.open(bundle_copy).manifest.verification) == before + 1
    # A runtime asked for by name is not passed over.
    named = mdmf("verify", bundle_copy, "--runtime", "all", "--runtime", "closed")
    assert named.exit_code == 2
    assert "no such device" in named.stderr


@pytest.mark.parametrize("options", [(), ("--json",)])
def test_nothing_is_verified_if_no_runtime_works(
    bundle_copy: Path, options: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engines(monkeypatch, broken=BrokenEngine)
    result = mdmf("verify", bundle_copy, "--runtime", "all", "-o", tmp_path / "new.mdmf", *options)
    assert result.exit_code == 1
    assert f"mdmf: {bundle_copy} on broken: not verified, Exception from src/core.cpp:97: no memory\n" in result.stderr
    assert not (tmp_path / "new.mdmf").exists()


def test_verify_without_record_leaves_the_bundle_alone(bundle_copy: Path) -> None:
    before = (bundle_copy / "manifest.json").read_bytes()
    result = mdmf("verify", bundle_copy, "--runtime", "onnxruntime", "--no-record", "--json")
    (record,) = json.loads(result.stdout)["records"]
    assert record["passed"] is True
    assert record["images_per_second"] > 0
    assert "wrote" not in result.stderr
    assert (bundle_copy / "manifest.json").read_bytes() == before


def test_a_copy_with_the_record_replaces_nothing_without_force(bundle_copy: Path, tmp_path: Path) -> None:
    there = Path(shutil.copytree(bundle_copy, tmp_path / "there.mdmf"))
    before = (there / "manifest.json").read_bytes()
    command = ("verify", bundle_copy, "--runtime", "onnxruntime", "-o", there)
    result = mdmf(*command)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "or --force to replace this one" in result.stderr
    assert (there / "manifest.json").read_bytes() == before
    assert mdmf(*command, "--force").exit_code == 0
    assert len(Bundle.open(there).manifest.verification) == 1 + len(Bundle.open(bundle_copy).manifest.verification)


def test_a_missed_limit_is_exit_code_1_and_recorded(bundle_copy: Path) -> None:
    bundle = Bundle.open(bundle_copy)
    manifest = msgspec.structs.replace(bundle.manifest, limits=GateLimits(max_score_change=0.0))
    record(Bundle(bundle_copy, manifest), bundle.manifest.verification[0])
    result = mdmf("verify", bundle_copy, "--runtime", "onnxruntime")
    assert result.exit_code == 1
    assert "failed" in result.stdout
    assert "max_score_change" in result.stderr
    assert not Bundle.open(bundle_copy).covers("onnxruntime", "fp32")


def test_verify_runs_the_checkpoint_again(tiny_bundle: Path, checkpoint: Path, photos: Path) -> None:
    options = ("--runtime", "onnxruntime", "--checkpoint", checkpoint, "--no-record", "--json")
    result = mdmf("verify", tiny_bundle, photos, *options)
    assert result.exit_code == 0, result.stderr
    (gate,) = json.loads(result.stdout)["records"]
    assert gate["images"] == 12
    assert gate["reference"].startswith("pytorch")
    assert 0 < gate["max_signature_error"] < 1e-5


def test_a_recipe_of_another_model_is_refused(tiny_bundle: Path, checkpoint: Path, photos: Path) -> None:
    result = mdmf("verify", tiny_bundle, photos, "--checkpoint", checkpoint, "--recipe", "starter", "--no-record")
    assert result.exit_code == 2
    assert "recipe 'starter' describes another model: " in result.stderr
    assert "head.pool (2 in the checkpoint, not " in result.stderr


def test_another_checkpoint_is_refused(bundle_copy: Path, checkpoint: Path, photos: Path) -> None:
    bundle = Bundle.open(bundle_copy)
    other = msgspec.structs.replace(bundle.manifest.provenance, checkpoint_sha256="0" * 64)
    write_bundle(bundle_copy, msgspec.structs.replace(bundle.manifest, provenance=other), bundle.files())
    result = mdmf("verify", bundle_copy, photos, "--checkpoint", checkpoint)
    assert result.exit_code == 2
    assert "not the checkpoint this bundle was made of" in result.stderr


def test_checkpoint_and_images_go_together(bundle_copy: Path, photos: Path) -> None:
    result = mdmf("verify", bundle_copy, photos)
    assert result.exit_code == 2
    assert "go together" in result.stderr
