"""`mdmf build`, and the messages about GPU runtimes on a machine without a GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.libraries import needed
from helpers.mdmf import mdmf

from mdmf_deploy.runtime import ON_GPU
from mdmf_deploy.tasks import doctor


@pytest.fixture(scope="module", autouse=True)
def no_gpu(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MDMF_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setattr("mdmf_deploy.hardware.gpu.LIBRARY", "libno-such-driver.so.1")
        yield


@pytest.fixture(scope="module")
def found(no_gpu: None) -> dict[str, doctor.Runtime]:
    """Every runtime as the doctor finds it without a GPU."""
    return {one.name: one for one in doctor.diagnose().runtimes}


@pytest.fixture(scope="module")
def printed(no_gpu: None) -> str:
    """The doctor's lines as one, because long ones are wrapped."""
    shown = mdmf("doctor")
    assert shown.exit_code == 0
    return " ".join(shown.stdout.split())


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
    command: str, runtime: str, tiny_bundle: Path, photos: Path, found: dict[str, doctor.Runtime], printed: str
) -> None:
    if command == "detect":
        result = mdmf("detect", photos, "--bundle", tiny_bundle, "--runtime", runtime)
    else:
        result = mdmf("verify", tiny_bundle, "--runtime", runtime)
    assert result.exit_code == 2
    missing, enable = found[runtime].missing, found[runtime].enable
    assert missing is not None
    assert "there is no NVIDIA driver" in missing
    assert result.stderr == f"mdmf: runtime '{runtime}': {missing}; {enable}\n"
    assert f" {runtime} no: {missing} {enable} " in printed


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
