"""The GPU benchmark without a GPU: the mistakes it finds, floors, baselines, tables and exit codes."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from fakes.on_host import host_device
from helpers.libraries import needed

from mdmf_deploy.bundle.recipe import load_recipe
from mdmf_deploy.hardware import gpu as probing
from mdmf_deploy.hardware.memory import upload
from mdmf_deploy.mmd import Scores
from mdmf_deploy.mmd.cuda import reduction as cuda
from mdmf_deploy.mmd.cuda.kernels import Kernel, kernels
from mdmf_deploy.mmd.cuda.reduction import CudaReduction
from mdmf_deploy.mmd.reference import ReferenceReduction

BENCHMARKS = Path(__file__).parents[2] / "benchmarks" / "gpu"
NAMES = ("run", "inputs", "floors", "baselines", "end_to_end", "clock", "common")


@pytest.fixture(scope="module")
def gpu() -> Iterator[SimpleNamespace]:
    """The benchmark's modules, by name."""
    sys.path.insert(0, str(BENCHMARKS))
    try:
        yield SimpleNamespace(**{name: __import__(name) for name in NAMES})
    finally:
        sys.path.remove(str(BENCHMARKS))
        for name in NAMES:
            sys.modules.pop(name)


def few(gpu: Any) -> list[Any]:
    """All kinds of input, in few signatures."""
    return list(gpu.inputs.all_given(64, images=3, patches=7, points=60))


def test_every_kernel_passes_on_every_input(gpu: Any) -> None:
    tested = [kernel for kernel in kernels() if kernel.width == 64]
    table, mistakes = gpu.run.validate(host_device(), tested, few(gpu))
    assert mistakes == []
    assert len(table.splitlines()) == 2 + len(tested)


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        ("weights", "off by .* times what is allowed"),
        ("one", "off by .* times what is allowed"),
        ("mean", "off by .* times what is allowed"),
        ("nan", "image 1 is no number, but scores"),
        ("bits", "the same input gives other bits"),
    ],
)
def test_what_is_wrong_is_found(fault: str, told: str, gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    call, calls = CudaReduction.__call__, iter(range(10**6))

    def faulty(self: CudaReduction, x: np.ndarray, bank: Any) -> Scores:
        scores = call(self, x, bank)
        contributions, mmd2 = scores.contributions.copy(), scores.mmd2.copy()
        if fault == "weights":
            contributions = bank.self_term + (contributions - bank.self_term) * (1 + 1e-4)
            mmd2 = contributions.mean(axis=1)
        elif fault == "one":
            contributions[0, -1] += 1e-5
            mmd2[0] = contributions[0].mean()
        elif fault == "mean":
            mmd2 += 1e-9
        elif fault == "nan":
            contributions, mmd2 = np.nan_to_num(contributions), np.nan_to_num(mmd2)
        else:
            contributions = contributions * (1 + 1e-15 * next(calls))
        return Scores(mmd2, contributions)

    monkeypatch.setattr(CudaReduction, "__call__", faulty)
    _, mistakes = gpu.run.validate(host_device(), [Kernel("plain", "fp32", 64)], few(gpu))
    assert mistakes
    assert any(re.search(told, mistake) for mistake in mistakes), mistakes
    assert all("\n" not in mistake for mistake in mistakes)


def test_a_case_is_a_table_of_ours_and_of_everybody_else_s(gpu: Any) -> None:
    device, case = host_device(), gpu.floors.Case(2, 3, 40, 64)
    card = gpu.floors.Card(1e12, 1e12, {"fp16": 1e14, "fp32": 1e13})
    rows, mistakes = gpu.run.compare(device, gpu.clock.Clock(device, flush=4096), case, card)
    assert mistakes == []
    told = {row[0]: row[1:] for row in rows}
    assert told["tiled, fp32"][:2] == ["250 µs", "0% (bytes)"]
    # Its rate is not known.
    assert told["tensor, bf16"][:2] == ["250 µs", ""]
    assert told["CuPy"][0] == "skipped: cupy is not installed"
    assert told["torch.compile"][0] == "skipped: this PyTorch sees no GPU"
    assert all(len(row) == 5 for row in rows)


def test_a_wrong_score_in_a_timed_case_is_found(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    call = CudaReduction.__call__

    def faulty(self: CudaReduction, x: Any, bank: Any) -> Scores:
        scores = call(self, x, bank)
        return Scores(scores.mmd2 * (1 + 1e-4 * (self._operand == "tf32")), scores.contributions)

    monkeypatch.setattr(CudaReduction, "__call__", faulty)
    device, case = host_device(), gpu.floors.Case(2, 3, 40, 64)
    clock = gpu.clock.Clock(device, flush=4096)
    _, mistakes = gpu.run.compare(device, clock, case, gpu.floors.Card(1e12, 1e12))
    assert [mistake.split(",")[0] for mistake in mistakes] == ["tensor tf32"]


def test_real_images_keep_their_scores(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    report, mistakes = gpu.run.spread(host_device())
    assert mistakes == []
    assert "tensor fp16" in report
    monkeypatch.setattr(gpu.run, "OF_SPREAD", 1e-9)
    _, mistakes = gpu.run.spread(host_device())
    assert any("tensor fp16, real images: off by" in mistake for mistake in mistakes)


def test_the_floor_is_what_takes_longest(gpu: Any) -> None:
    floors, case = gpu.floors, gpu.run.HEADLINE
    # An H100's data sheet, and what engines/kernels/README.md makes of it.
    card = floors.Card(3.35e12, 132 * 16 * 1.83e9, {"fp16": 989e12, "tf32": 495e12, "fp32": 67e12})
    least = {name: floors.floor(case, Kernel(*name, 128), card) for name in [("tensor", "fp16"), ("tensor", "tf32")]}
    assert least["tensor", "fp16"].seconds == pytest.approx(53e-6, rel=0.02)
    assert least["tensor", "tf32"].seconds == pytest.approx(319e-6, rel=0.02)
    assert floors.floor(case, Kernel("tiled", "fp32", 128), card).seconds == pytest.approx(786e-6, rel=0.02)
    assert floors.floor(case, Kernel("plain", "fp32", 128), card).seconds == pytest.approx(1573e-6, rel=0.02)
    assert {one.limit for one in least.values()} == {"operations"}
    slow = floors.Card(1e9, 1e15, {"fp16": 1e18})
    assert floors.floor(case, Kernel("tensor", "fp16", 128), slow).limit == "bytes"
    slow = floors.Card(1e15, 1e9, {"fp16": 1e18})
    assert floors.floor(case, Kernel("tensor", "fp16", 128), slow).limit == "exponentials"
    assert floors.floor(case, Kernel("tensor", "bf16", 128), slow) is None


def test_peers_compute_the_same(gpu: Any) -> None:
    given = gpu.inputs.drawn(3, 9, 200, 64)
    exact = ReferenceReduction()(given.x, given.bank).mmd2
    made = 0
    for peer in gpu.baselines.peers(given.x, given.bank, device="cpu"):
        if peer.make is None or peer.name == "pykeops" or "compile" in peer.name:
            continue
        np.testing.assert_allclose(peer.to_numpy(peer.make()()), exact, rtol=1e-5)
        made += 1
    assert made == 2
    np.testing.assert_allclose(gpu.baselines.array_module_peer(np, given.x, given.bank)(), exact, rtol=1e-5)


class Engine:
    """Signatures of no meaning on the pretended GPU."""

    name, precision = "pretended", "fp16"

    def __init__(self, device: Any) -> None:
        self._device = device
        self._stream = device.stream()

    def on_device(self, images: np.ndarray) -> Any:
        signatures = np.repeat(images.reshape(len(images), 49, -1)[:, :, :128] + 0.1, 1, axis=0)
        memory = upload(self._device, signatures, self._stream, "-")
        interface = {"version": 3, "shape": signatures.shape, "typestr": "<f4", "data": (memory.pointer, False)}
        return SimpleNamespace(__cuda_array_interface__=interface | {"stream": self._stream.handle}, memory=memory)

    def close(self) -> None:
        pass


def test_a_model_s_stages_are_timed(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    device = host_device()
    monkeypatch.setattr(cuda, "open_device", lambda: device)
    bank = gpu.inputs.drawn(1, 1, 100, 128).bank
    files = gpu.end_to_end.photographs(6)
    stages = gpu.end_to_end.stages("vits", Engine(device), load_recipe("dinov2_vits14"), bank, files, 4)
    assert stages.missing is None
    assert (stages.model, stages.engine) == ("vits", "pretended, fp16")
    # What the pretended GPU says of its events, shared out among four images.
    assert (stages.signatures, stages.reduction) == (0.0625, 0.0625)
    assert stages.decode > 0
    assert stages.images_per_second > 0


def test_engines_that_do_not_open_here_say_why(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("here they may open")
    monkeypatch.setattr(gpu.end_to_end, "RECIPES", ("starter",))
    monkeypatch.setattr(gpu.end_to_end, "installed", list)
    told = {stages.engine: stages.missing for stages in gpu.end_to_end.measure(100, 4, 4)}
    assert told["tensorrt, fp16"] == "tensorrt is not installed"
    assert told["PyTorch, fp16"]
    assert set(told) == {"tensorrt, fp16", "rtx, fp16", "ort-tensorrt, fp16", "cuda, fp16", "PyTorch, fp16"}
    assert "skipped: tensorrt is not installed" in gpu.run.pipeline()


def test_the_exponential_s_kernel_compiles(tmp_path: Path) -> None:
    needed("cuda.bindings.nvrtc")
    from mdmf_deploy.hardware.cubin import Nvrtc

    for sm in (75, 90, 120):
        assert Nvrtc()(BENCHMARKS / "exp2_rate.cu", ("--std=c++17",), sm)[:4] == b"\x7fELF"


def test_without_a_gpu_it_ends_with_a_line_and_2(
    gpu: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(probing, "LIBRARY", str(tmp_path / "libcuda.so.1"))
    assert gpu.run.main([]) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("run.py: no GPU: there is no NVIDIA driver")
    assert (printed.out, printed.err.count("\n")) == ("", 1)


@pytest.mark.parametrize("mistakes", [[], ["tiled fp32: off"]])
def test_a_number_that_is_wrong_is_exit_code_1(
    mistakes: list[str], gpu: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    module: ModuleType = gpu.run
    results = tmp_path / "RESULTS.md"
    results.write_text("# Results\n")
    monkeypatch.setattr(module, "RESULTS", results)
    monkeypatch.setattr(module, "open_device", lambda: None)
    monkeypatch.setattr(module, "run", lambda device, given: ("## GPU: one\n", mistakes))
    assert module.main([]) == (1 if mistakes else 0)
    assert results.read_text() == "# Results\n\n## GPU: one\n"
    assert module.main(["--no-record"]) == (1 if mistakes else 0)
    assert results.read_text() == "# Results\n\n## GPU: one\n"
    assert capsys.readouterr().err.count("wrong: tiled fp32: off") == 2 * len(mistakes)


def test_it_needs_neither_torch_nor_an_extra_to_start() -> None:
    """Where only a torch without our extras is installed, or none at all."""
    script = (
        "import sys, runpy\n"
        "for name in ('torch', 'onnx', 'onnxruntime', 'openvino', 'cupy', 'tensorrt', 'scipy', 'pandas'):\n"
        "    sys.modules[name] = None\n"
        f"sys.path.insert(0, {str(BENCHMARKS)!r})\n"
        "import run, end_to_end\n"
        "print([one.missing for one in end_to_end.measure(10, 1, 1)])\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=BENCHMARKS.parents[1])
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(["torch is not installed"] * 3)
