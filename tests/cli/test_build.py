"""`mdmf build`, and the messages about GPU runtimes on a machine without a GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.libraries import needed
from helpers.mdmf import mdmf

from mdmf_deploy.runtime import ON_GPU
from mdmf_deploy.tasks import doctor


@pytest.fixture(autouse=True)
def no_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MDMF_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("mdmf_deploy.hardware.gpu.LIBRARY", "libno-such-driver.so.1")


def test_rtx_builds_for_cards_that_are_not_here(tiny_bundle: Path) -> None:
    needed("tensorrt_rtx")
    targets = ("--compute-capability", "8.9", "--compute-capability", "120", "--compute-capability", "8.9")
    result = mdmf("build", tiny_bundle, "--flavour", "rtx", *targets, "--json")
    assert result.exit_code == 0, result.stderr
    engines = json.loads(result.stdout)["engines"]
    assert [engine["key"]["compute_capability"] for engine in engines] == ["8.9", "12.0"]
    for engine in engines:
        plan = Path(engine["path"])
        assert plan.stat().st_size == engine["size"]
        assert json.loads(plan.with_suffix(".json").read_text())["sha256"] == engine["sha256"]
    assert result.stderr.count("building for compute capability") == 2
    place = Path(engines[0]["path"]).parent
    following = f"mdmf detect photos/ --bundle {tiny_bundle} --runtime rtx"
    assert result.stderr.splitlines()[-1] == f"mdmf: wrote the engines to {place}; next: {following}"
    again = mdmf("build", tiny_bundle, "--flavour", "rtx", *targets)
    assert again.exit_code == 0
    assert again.stderr == ""
    assert "images FLOAT [-1, 3, 56, 56]" in again.stdout
    assert "fused attention: 0" in again.stdout
    assert "batches   1 to 32, fastest at 8 (profile default)" in again.stdout
    forced = mdmf("build", tiny_bundle, "--flavour", "rtx", "--compute-capability", "8.9", "--force")
    assert "asked to build again" in forced.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--flavour", "cuda"], "choose one of tensorrt, rtx"),
        (["--compute-capability", "8.9"], "leave it out, or use rtx"),
        (["--flavour", "rtx", "--compute-capability", "ada"], "give one as 8.9"),
        (["--flavour", "rtx", "--compute-capability", "9.0"], "it knows 7.5"),
        (["--profile", "fast"], "choose one of default, latency, throughput"),
        ([], "there is no NVIDIA driver"),
        (["--flavour", "rtx"], "or give --compute-capability, which needs no GPU"),
    ],
)
def test_engines_that_cannot_be_built_are_one_line(arguments: list[str], message: str, tiny_bundle: Path) -> None:
    result = mdmf("build", tiny_bundle, *arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stderr.splitlines()[-1].startswith("mdmf: ")
    assert result.stdout == ""


@pytest.mark.parametrize("runtime", sorted(ON_GPU))
@pytest.mark.parametrize("command", ["detect", "verify"])
def test_asking_for_a_gpu_runtime_gives_the_doctors_line(
    command: str, runtime: str, tiny_bundle: Path, photos: Path
) -> None:
    if command == "detect":
        result = mdmf("detect", photos, "--bundle", tiny_bundle, "--runtime", runtime)
    else:
        result = mdmf("verify", tiny_bundle, "--runtime", runtime)
    assert result.exit_code == 2
    found = next(one for one in doctor.diagnose().runtimes if one.name == runtime)
    assert found.missing is not None
    assert "there is no NVIDIA driver" in found.missing
    assert result.stderr == f"mdmf: runtime '{runtime}': {found.missing}; {found.enable}\n"
    shown = mdmf("doctor")
    assert shown.exit_code == 0
    lines = " ".join(shown.stdout.split())  # long ones are wrapped
    assert f" {runtime} no: {found.missing} {found.enable} " in lines


def test_a_profile_is_for_gpus(tiny_bundle: Path, photos: Path) -> None:
    result = mdmf("detect", photos, "--bundle", tiny_bundle, "--runtime", "onnxruntime:latency")
    assert result.exit_code == 2
    assert "has no build profiles" in result.stderr


def test_rtx_with_no_driver_does_not_end_the_process(tiny_bundle: Path, photos: Path) -> None:
    """Deserialising an engine would end it, so the driver is looked for first."""
    needed("tensorrt_rtx")
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    command = ["-m", "mdmf_deploy", "detect", str(photos), "--bundle", str(tiny_bundle), "--runtime", "rtx"]
    answer = subprocess.run([sys.executable, *command], capture_output=True, text=True, env=environment, check=False)
    assert answer.returncode == 2
    assert answer.stderr.startswith("mdmf: runtime 'rtx': ")


def test_gpus_are_not_mentioned_unless_asked_for(tiny_bundle: Path, photos: Path) -> None:
    result = mdmf("detect", photos, "--bundle", tiny_bundle)
    assert result.exit_code == 0
    assert not any(name in result.stderr for name in (*ON_GPU, "GPU", "driver"))
