"""The first-run kit for a GPU, without one: checks and timings on the fake GPU, sources that compile, shell scripts."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes.on_host import host_device
from helpers.libraries import needed

from mdmf_deploy.mmd.cuda.kernels import Kernel, prepare_bank

ROOT = Path(__file__).parents[2]
GPU = ROOT / "benchmarks" / "gpu"
SHELL = sorted(GPU.glob("*.sh"))
EACH = [Kernel("plain", "fp32", 64), Kernel("tensor", "fp16", 64)]


def ids(kernel: Kernel) -> str:
    return f"{kernel.version}-{kernel.operand}"


@pytest.mark.parametrize("kernel", EACH, ids=ids)
@pytest.mark.parametrize("check", ["inputs", "headline", "written", "shifted", "shapes"])
def test_a_right_kernel_passes_every_check(
    check: str, kernel: Kernel, gpu: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu.check, "FAKE", True)
    monkeypatch.setattr(gpu.check, "HEADLINE", (2, 49, 500))
    monkeypatch.setattr(gpu.check, "SHAPES", gpu.check.SHAPES[:3])
    good, text = gpu.check.outcome(getattr(gpu.check, check), host_device(sm=90), kernel)
    assert good, text


@pytest.mark.parametrize("check", ["headline", "written", "shapes"])
def test_a_wrong_kernel_fails_the_checks(check: str, gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each check compares with the expectation for another bank."""
    expected = gpu.correctness.expected

    def other(given: Any, *arguments: Any) -> Any:
        wrong = gpu.inputs.random_input(1, 1, len(given.bank.weights), given.x.shape[2], seed=77).bank
        return expected(gpu.inputs.KernelInput("other", given.x, wrong), *arguments)

    monkeypatch.setattr(gpu.check, "expected", other)
    monkeypatch.setattr(gpu.check, "HEADLINE", (2, 9, 300))
    monkeypatch.setattr(gpu.check, "SHAPES", ((3, 33, 129),))
    good, text = gpu.check.outcome(getattr(gpu.check, check), host_device(sm=90), EACH[0])
    assert not good
    assert "of the tolerance" in text or "off by" in text


def test_an_exception_in_a_check_is_a_failure_that_names_its_line(gpu: Any) -> None:
    def broken(device: Any, kernel: Kernel) -> tuple[bool, str]:
        raise ValueError("no such thing\nsecond line")

    good, text = gpu.check.outcome(broken, host_device(), EACH[0])
    assert not good
    assert re.fullmatch(r"ValueError: no such thing at .*test_gpu_kit\.py:\d+", text)


def test_every_kernel_is_checked_and_the_tensor_cores_come_first(gpu: Any) -> None:
    plan = gpu.check.plan(host_device(sm=90))
    assert len({kernel for kernel, _ in plan}) == 30
    assert plan[0][0].version in ("tensor", "wgmma")
    assert plan[0][0].width == 128
    assert {check.__name__ for _, check in plan} == {"inputs", "headline", "written", "shifted", "shapes"}


def test_each_launch_and_the_whole_are_timed(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu.kernel_times, "kernels", lambda: [*EACH, Kernel("tiled", "fp32", 128)])
    device = host_device(sm=90)
    case = gpu.floors.Case(2, 7, 300, 64)
    card = gpu.floors.Card(1e12, 1e12, {"fp16": 8e14})
    rows = gpu.kernel_times.pieces(device, gpu.clock.Clock(device, 4096), case, {}, card)
    assert [row[0] for row in rows] == ["plain fp32", "tensor fp16"]
    assert all(len(row) == len(gpu.kernel_times.COLUMNS) for row in rows)
    # The fake GPU's events are 0.25 ms apart.
    assert rows[0][3:6] == ("250.0",) * 3


def test_variants_edit_the_kernel_of_today(gpu: Any) -> None:
    for operand in ("fp16", "fp16x2"):
        kernel = Kernel("tensor", operand, 128)
        for variant in gpu.variants.VARIANTS.values():
            source = gpu.launcher.edited_source(kernel, variant.edits)
            assert (source.read_text() != kernel.source.read_text()) == bool(variant.edits)
            shutil.rmtree(source.parent)
    with pytest.raises(LookupError, match=r"0 times, not once, in 3_tensor\.cu"):
        gpu.launcher.edited_source(kernel, (("no such text", ""),))


def test_variants_compile(gpu: Any) -> None:
    needed("cuda.bindings.nvrtc")
    from mdmf_deploy.hardware.cubin import Nvrtc

    # The narrowest kernel has the same lines as the others and compiles fastest.
    kernel = Kernel("tensor", "fp16", 64)
    for variant in gpu.variants.VARIANTS.values():
        source = gpu.launcher.edited_source(kernel, variant.edits)
        assert Nvrtc()(source, kernel.options(90), 90)[:4] == b"\x7fELF"
        shutil.rmtree(source.parent)


@pytest.mark.parametrize(("name", "architectures"), [("exp2_rate.cu", (75, 90, 120)), ("mma_rates.cu", (80, 90))])
def test_rates_compile(name: str, architectures: tuple[int, ...], gpu: Any) -> None:
    needed("cuda.bindings.nvrtc")
    from mdmf_deploy.hardware.cubin import Nvrtc

    for sm in architectures:
        cubin = Nvrtc()(GPU / name, ("--std=c++17",), sm)
        assert cubin[:4] == b"\x7fELF"
    if name == "mma_rates.cu":
        assert all(entry.encode() in cubin for entry in gpu.kernel_times.RATE_KERNELS)


def test_variants_of_step_4_edit_the_kernel_of_today_and_compile(gpu: Any) -> None:
    needed("cuda.bindings.nvrtc")
    from mdmf_deploy.hardware.cubin import Nvrtc

    kernel = Kernel("wgmma", "fp16", 64)
    for variant in gpu.variants.HOPPER_VARIANTS.values():
        for option in variant.options:
            assert f"#ifndef {option[2:].split('=')[0]}\n" in kernel.source.read_text()
        if variant.edits:
            source = gpu.wgmma.source(kernel, variant)
            assert Nvrtc()(source, gpu.wgmma.compiled_with(kernel, variant), 90)[:4] == b"\x7fELF"
            shutil.rmtree(source.parent)


def test_a_variant_of_step_4_is_launched_and_laid_out_as_it_is_compiled(gpu: Any) -> None:
    kernel = Kernel("wgmma", "fp16", 256)
    altered = gpu.wgmma.Altered.of(kernel, gpu.variants.HopperVariant(consumers=2, tile=64))
    assert (altered.rows, altered.threads, altered.tile) == (128, 384, 64)
    assert gpu.wgmma.Altered.of(kernel, gpu.variants.HopperVariant()).launches(3, 49, 1024, 132) == kernel.launches(
        3, 49, 1024, 132
    )


def test_poison_is_nan_until_a_kernel_writes(gpu: Any) -> None:
    given = gpu.inputs.random_input(2, 7, 60, 64)
    launcher = gpu.launcher.KernelLauncher(host_device(), EACH[0], given.x, prepare_bank(given.bank, EACH[0]))
    launcher.poison(launcher.partial, launcher.partial.nbytes)
    assert np.isnan(launcher.partial_sums()).all()
    launcher.cross(launcher.stream)
    assert np.isfinite(launcher.partial_sums()).all()
    launcher.free()
    assert launcher.device.allocated == 0


def test_counters_are_summarised_a_metric_a_line(gpu: Any) -> None:
    page = ["ID,Kernel Name,launch__registers,gpu__name", ",,register,", "0,mdmf_cross,168,x", "1,mdmf_finish,40,x"]
    assert list(gpu.counters.summary(page)) == [
        "kernels: mdmf_cross | mdmf_finish",
        "launch__registers | register | 168 | 40",
    ]


@pytest.mark.parametrize("script", SHELL, ids=lambda path: path.name)
def test_shell_scripts_are_bash_and_name_files_that_exist(script: Path) -> None:
    subprocess.run(["bash", "-n", script], check=True)
    text = re.sub(r"^\s*#.*$", "", script.read_text(encoding="utf-8"), flags=re.MULTILINE)
    named = {ROOT / name for name in re.findall(r"(?<![\w/$])(?:benchmarks|tests)/[\w/]+\.(?:py|sh)", text)}
    named |= {GPU / name for name in re.findall(r"\$kit/(\w+\.\w+)", text)}
    named |= {ROOT / "tests/hardware" / name for name in re.findall(r" (\w+\.py)$", text, flags=re.MULTILINE)}
    assert named
    assert [str(path) for path in named if not path.is_file()] == []


def test_the_first_run_calls_scripts_with_options_they_have() -> None:
    text = (GPU / "first_run.sh").read_text(encoding="utf-8").replace("\\\n", " ")
    calls = re.findall(r"\"\$kit/(\w+\.py)\"([^\n|>')]*)", text)
    assert {name for name, _ in calls} == {"facts.py", "sanitize.py", "check.py", "kernel_times.py", "run.py"} | {
        "counters.py",
        "detect_folder.py",
        "wgmma.py",
    }
    for name, arguments in calls:
        for option in re.findall(r"--[\w-]+", arguments):
            assert f'"{option}"' in (GPU / name).read_text(encoding="utf-8"), (name, option)


def test_the_first_run_deselects_and_runs_tests_that_exist() -> None:
    text = (GPU / "first_run.sh").read_text(encoding="utf-8")
    [(file, test)] = re.findall(r"--deselect ([\w/.]+)::(\w+)", text)
    assert f"def {test}(" in (ROOT / file).read_text(encoding="utf-8")
    for file in re.findall(r"tests/[\w/]+\.py", text):
        assert "mark.gpu" in (ROOT / file).read_text(encoding="utf-8")


def test_the_gpu_tests_import_only_what_the_machine_or_the_kit_has() -> None:
    staged = re.findall(r"([\w-]+)==", (GPU / "prepare.sh").read_text(encoding="utf-8"))
    known = {*sys.stdlib_module_names, "mdmf_deploy", "fakes", "helpers", "numpy", "pytest", *staged}
    text = (GPU / "first_run.sh").read_text(encoding="utf-8")
    files = {ROOT / name for name in re.findall(r"tests/[\w/]+\.py", text)}
    files |= {ROOT / "tests" / name for name in ("conftest.py", "hardware/conftest.py", "hardware/device_contract.py")}
    for file in files:
        # Imports at the start of a line run on every machine. Those inside functions and `if TYPE_CHECKING` do not.
        imported = re.findall(r"^(?:from|import) (\w+)", file.read_text(encoding="utf-8"), re.MULTILINE)
        assert set(imported) <= known, file


@pytest.mark.skipif(sys.platform != "linux", reason="the kit is for Linux")
def test_the_first_run_works_on_the_fake_gpu(tmp_path: Path) -> None:
    ncu = tmp_path / "bin" / "ncu"
    ncu.parent.mkdir()
    ncu.write_text('#!/bin/sh\necho "$@"\nexit 3\n')
    ncu.chmod(0o755)
    variables = {"OUT": str(tmp_path / "out"), "PYTHON": sys.executable, "TMPDIR": str(tmp_path), "MDMF_FAKE_GPU": "1"}
    variables["PATH"] = f"{ncu.parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", GPU / "first_run.sh"],
        env={**os.environ, **variables, "RUN_ONLY": "ncu"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    # A part that fails does not stop the run, and its output is kept.
    assert re.search(r"^ncu: exit 3 ", done.stdout, re.MULTILINE), done.stdout
    [file] = (tmp_path / "out").iterdir()
    assert f"{GPU}/counters.py" in file.read_text(encoding="utf-8")


@pytest.mark.skipif(sys.platform != "linux", reason="the kit is for Linux")
def test_the_first_run_installs_the_staged_wheels_and_runs_the_staged_checkout(tmp_path: Path) -> None:
    staged, wheel = tmp_path / ".gpu_run", tmp_path / ".whl" / "a-1.0-py3-none-any.whl"
    for folder in (staged, wheel.parent):
        folder.mkdir()
    wheel.touch()
    shutil.copy(GPU / "first_run.sh", staged)
    with tarfile.open(staged / "checkout.tar.gz", "w:gz") as archive:
        archive.add(GPU / "wgmma.py", "benchmarks/gpu/wgmma.py")
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nfor last; do :; done\necho "$1 $2 $3 $last" >>{tmp_path}/calls\n')
    python.chmod(0o755)
    variables = {"PYTHON": str(python), "TMPDIR": str(tmp_path), "RUN_ONLY": "wgmma", "MDMF_FAKE_GPU": ""}
    subprocess.run(
        ["bash", ".gpu_run/first_run.sh"],
        env={**os.environ, **variables},
        cwd=tmp_path,
        check=True,
        capture_output=True,
    )
    calls = (tmp_path / "calls").read_text(encoding="utf-8").splitlines()
    [install] = [call for call in calls if call.startswith("-m pip install")]
    assert (tmp_path / install.split()[-1]).resolve() == wheel.resolve()
    assert any(call.endswith("/checkout/benchmarks/gpu/wgmma.py") for call in calls)
    assert (staged / "results" / "3_times.txt").is_file()
