"""The GPU benchmark without a GPU: the mistakes it finds, floors, baselines, tables and exit codes."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from fakes.host_kernels import builder
from fakes.on_host import host_device

from mdmf_deploy.bundle.recipe import Recipe, load_recipe
from mdmf_deploy.detection.detector import Detector
from mdmf_deploy.hardware import gpu as probing
from mdmf_deploy.hardware.device import upload
from mdmf_deploy.mmd import Scores
from mdmf_deploy.mmd.cuda import reduction as cuda
from mdmf_deploy.mmd.cuda.kernels import Kernel, kernels
from mdmf_deploy.mmd.cuda.reduction import CudaReduction
from mdmf_deploy.mmd.reference import ReferenceReduction

GPU = Path(__file__).parents[2] / "benchmarks" / "gpu"


def small_inputs(gpu: Any) -> list[Any]:
    """All kinds of input, with few signatures."""
    return list(gpu.inputs.all_inputs(64, images=3, patches=7, points=60))


def test_every_kernel_passes_on_every_input(gpu: Any) -> None:
    # The pretended GPU of the other tests has no warpgroup products.
    device = host_device(sm=90)
    tested = [kernel for kernel in kernels() if kernel.width == 64]
    builder().start(*tested)
    table, mistakes = gpu.run.validate(device, tested, small_inputs(gpu))
    assert mistakes == []
    assert len(table.splitlines()) == 2 + len(tested)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("weights", "off by .* times the tolerance"),
        ("one", "off by .* times the tolerance"),
        ("mean", "off by .* times the tolerance"),
        ("nan", "image 1 holds a NaN or an infinity, but scores"),
        ("bits", "the same input gives other bits"),
    ],
)
def test_mistakes_are_found(fault: str, message: str, gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
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
    _, mistakes = gpu.run.validate(host_device(), [Kernel("plain", "fp32", 64)], small_inputs(gpu))
    assert mistakes
    assert any(re.search(message, mistake) for mistake in mistakes), mistakes
    assert all("\n" not in mistake for mistake in mistakes)


def test_products_and_differences_expect_the_same(gpu: Any) -> None:
    given = gpu.inputs.random_input(2, 7, 300, 64)
    for kernel in (Kernel("tiled", "fp32", 64), Kernel("tensor", "bf16", 64)):
        fast = gpu.correctness.expected(given, kernel, gpu.correctness.from_products)
        slow = gpu.correctness.expected(given, kernel)
        for field in ("contributions", "cross", "tolerance"):
            np.testing.assert_allclose(getattr(fast, field), getattr(slow, field), rtol=1e-11)


def test_a_case_is_a_table_of_our_kernels_and_all_baselines(gpu: Any) -> None:
    device, case = host_device(), gpu.floors.Case(2, 3, 40, 64)
    card = gpu.floors.Card(1e12, 1e12, {"fp16": 1e14, "fp32": 1e13})
    rows, mistakes = gpu.run.compare(device, gpu.clock.Clock(device, flush=4096), case, card)
    assert mistakes == []
    cells = {row[0]: row[1:] for row in rows}
    assert cells["tiled, fp32"][:2] == ["250 µs", "0% (bytes)"]
    # The card's rate for bf16 is unknown.
    assert cells["tensor, bf16"][:2] == ["250 µs", ""]
    assert cells["CuPy"][0] == "skipped: cupy is not installed"
    assert cells["torch.compile"][0] == "skipped: this PyTorch sees no GPU"
    assert all(len(row) == 5 for row in rows)


def test_a_wrong_score_in_a_timed_case_is_found(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    class Faulty(CudaReduction):
        def __init__(self, device: Any, *, operand: str, version: str) -> None:
            super().__init__(device, operand=operand, version=version)
            self.factor = 1 + 1e-4 * (operand == "fp16x2")

        def __call__(self, x: Any, bank: Any) -> Scores:
            scores = super().__call__(x, bank)
            return Scores(scores.mmd2 * self.factor, scores.contributions)

    monkeypatch.setattr(gpu.run, "CudaReduction", Faulty)
    device, case = host_device(), gpu.floors.Case(2, 3, 40, 64)
    clock = gpu.clock.Clock(device, flush=4096)
    _, mistakes = gpu.run.compare(device, clock, case, gpu.floors.Card(1e12, 1e12))
    assert [mistake.split(",")[0] for mistake in mistakes] == ["tensor fp16x2"]


def test_real_images_keep_their_scores(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    every, deviation = gpu.inputs.real_images()
    few = replace(every, x=every.x[:1])  # The host computes every instruction of a warp one after the other.
    monkeypatch.setattr(gpu.run, "real_images", lambda: (few, deviation))
    report, mistakes = gpu.run.spread(host_device())
    assert mistakes == []
    assert "tensor fp16" in report
    monkeypatch.setattr(gpu.run, "OF_SPREAD", 1e-9)
    _, mistakes = gpu.run.spread(host_device())
    assert any("tensor fp16, real images: off by" in mistake for mistake in mistakes)


def test_the_floor_is_the_largest_of_its_parts(gpu: Any) -> None:
    floors, case = gpu.floors, gpu.run.HEADLINE
    # An H100's data sheet, and the times that engines/kernels/README.md derives from it.
    card = floors.Card(3.35e12, 132 * 16 * 1.83e9, {"fp16": 989e12, "fp32": 67e12})
    least = {name: floors.floor(case, Kernel(*name, 128), card) for name in [("tensor", "fp16"), ("tensor", "fp16x2")]}
    assert least["tensor", "fp16"].seconds == pytest.approx(53e-6, rel=0.02)
    assert least["tensor", "fp16x2"].seconds == pytest.approx(160e-6, rel=0.02)
    assert floors.floor(case, Kernel("tiled", "fp32", 128), card).seconds == pytest.approx(786e-6, rel=0.02)
    assert floors.floor(case, Kernel("plain", "fp32", 128), card).seconds == pytest.approx(1573e-6, rel=0.02)
    assert {one.limit for one in least.values()} == {"operations"}
    slow = floors.Card(1e9, 1e15, {"fp16": 1e18})
    assert floors.floor(case, Kernel("tensor", "fp16", 128), slow).limit == "bytes"
    slow = floors.Card(1e15, 1e9, {"fp16": 1e18})
    assert floors.floor(case, Kernel("tensor", "fp16", 128), slow).limit == "exponentials"
    assert floors.floor(case, Kernel("tensor", "bf16", 128), slow) is None


def test_baselines_compute_the_same_scores(gpu: Any) -> None:
    given = gpu.inputs.random_input(3, 9, 200, 64)
    exact = ReferenceReduction()(given.x, given.bank).mmd2
    made = 0
    for baseline in gpu.baselines.baselines(given.x, given.bank, device="cpu"):
        if baseline.make is None or baseline.name == "pykeops" or "compile" in baseline.name:
            continue
        np.testing.assert_allclose(baseline.to_numpy(baseline.make()()), exact, rtol=1e-5)
        made += 1
    assert made == 2
    np.testing.assert_allclose(gpu.baselines.array_module_reduction(np, given.x, given.bank)(), exact, rtol=1e-5)


class FakeEngine:
    """An engine that leaves meaningless signatures on the fake GPU."""

    name, precision = "fake", "fp16"

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


def test_the_stages_of_a_model_are_timed(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    device = host_device()
    monkeypatch.setattr(cuda, "open_device", lambda: device)
    bank = gpu.inputs.random_input(1, 1, 100, 128).bank
    files = gpu.end_to_end.photographs(6)
    stages = gpu.end_to_end.stages("vits", FakeEngine(device), load_recipe("dinov2_vits14"), bank, files, 4)
    assert stages.missing is None
    assert (stages.model, stages.engine) == ("vits", "fake, fp16")
    # The fake GPU's events are 0.25 ms apart, shared by four images.
    assert (stages.signatures, stages.reduction) == (0.0625, 0.0625)
    assert stages.decode > 0
    assert stages.images_per_second > 0


def test_engines_that_do_not_open_here_give_the_reason(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("here they may open")
    monkeypatch.setattr(gpu.end_to_end, "RECIPES", ("starter",))
    monkeypatch.setattr(gpu.end_to_end, "installed", list)
    measured = list(gpu.end_to_end.measure(100, 4, 4))
    missing = {stages.engine: stages.missing for stages in measured}
    assert missing["tensorrt, fp16"] == "tensorrt is not installed"
    assert set(missing) == {"tensorrt, fp16", "rtx, fp16", "ort-tensorrt, fp16", "cuda, fp16", "torch-cuda, fp16"}
    monkeypatch.setattr(gpu.end_to_end, "measure", lambda *_: iter(measured))
    lines = "".join(gpu.run.pipeline()).splitlines()
    assert lines[0].startswith("| model | engine |")
    assert "| starter | tensorrt, fp16 | skipped: tensorrt is not installed |" in "".join(lines)
    assert len(lines) == 2 + len(measured)


def test_a_random_model_is_a_bundle_that_detects(
    gpu: Any, tiny_recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu.detect_folder, "SECONDS", 0.01)
    monkeypatch.setattr(gpu.end_to_end, "SIDE", 240)
    torch = pytest.importorskip("torch")
    from mdmf_deploy.model.pfs import MdmfModel

    torch.manual_seed(0)
    bundle = gpu.end_to_end.random_bundle(MdmfModel(tiny_recipe), tiny_recipe, tmp_path / "random.mdmf", 200)
    paths = []
    for n, data in enumerate(gpu.end_to_end.photographs(3, 3)):
        paths.append(tmp_path / f"{n}.jpg")
        paths[n].write_bytes(data)
    with Detector(bundle.path, "torch") as detector:
        rows = detector.detect(paths)
        rates = dict(gpu.detect_folder.alone(detector, paths, 2))
    assert [(row.status, row.precision) for row in rows] == [("ok", "fp16")] * 3
    assert len({row.score for row in rows}) == 3
    assert len(rates) == 3
    assert all(rate > 0 for rate in rates.values())


def test_rows_of_two_runtimes_are_compared(gpu: Any) -> None:
    def row(n: int, **changed: Any) -> dict[str, Any]:
        plain = {
            "uri": str(n),
            "sha256": str(n),
            "score": float(n),
            "verdict": "real",
            "width": 8,
            "ms_engine": 1.0 + n,
        }
        return plain | changed

    expected = {str(n): row(n) for n in range(3)}
    found = [row(0, uri="a copy", ms_engine=9.0), row(1, score=1.5, verdict="generated"), row(2, width=9), row(2)]
    text = gpu.detect_folder.compared(found, expected, "another")
    assert "at most 5.00e-01" in text
    assert "1 of 4 verdicts differ, 1 rows differ otherwise" in text


def test_without_a_gpu_it_ends_with_one_line_and_exit_code_2(
    gpu: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(probing, "LIBRARY", str(tmp_path / "libcuda.so.1"))
    assert gpu.run.main([]) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("run.py: no GPU: there is no NVIDIA driver")
    assert (printed.out, printed.err.count("\n")) == ("", 1)


@pytest.mark.parametrize("mistakes", [[], ["tiled fp32: off"]])
def test_a_wrong_number_is_exit_code_1(
    mistakes: list[str], gpu: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    results = tmp_path / "RESULTS.md"
    results.write_text("# Results\n")
    monkeypatch.setattr(gpu.run, "RESULTS", results)
    monkeypatch.setattr(gpu.run, "open_device", lambda: None)
    monkeypatch.setattr(gpu.run, "run", lambda *_, **__: iter([gpu.run.Section("## GPU: one\n", mistakes)]))
    assert gpu.run.main([]) == (1 if mistakes else 0)
    assert results.read_text() == "# Results\n\n## GPU: one\n"
    assert gpu.run.main(["--no-record"]) == (1 if mistakes else 0)
    assert results.read_text() == "# Results\n\n## GPU: one\n"
    assert capsys.readouterr().err.count("wrong: tiled fp32: off") == 2 * len(mistakes)


def test_a_table_is_printed_before_the_next_is_measured(
    gpu: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def measured(*_: object, **__: object) -> Iterator[Any]:
        yield gpu.run.Section("first\n")
        assert capsys.readouterr().out == "first\n"
        yield gpu.run.Section("\nsecond\n")

    monkeypatch.setattr(gpu.run, "open_device", lambda: None)
    monkeypatch.setattr(gpu.run, "run", measured)
    assert gpu.run.main(["--no-record"]) == 0
    assert capsys.readouterr().out == "\nsecond\n"


@pytest.mark.parametrize(
    ("options", "sections"),
    [
        (
            ["--quick", "--no-pipeline"],
            ["## GPU", "Every kernel", "images", "B = 64, N = 49, M = 65,536, d = 128."],
        ),
        (["--only", "pipeline", "cases"], ["## GPU", "From files", "rows", *["B = "] * 4]),
    ],
)
def test_options_choose_the_parts_and_their_order(
    options: list[str],
    sections: list[str],
    gpu: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    device = host_device()
    for name, value in {
        "open_device": lambda: device,
        "Clock": lambda device: gpu.clock.Clock(device, 4096),
        "measure": lambda *_: gpu.floors.Card(1e12, 1e12),
        "validate": lambda device, tested: ("kernels", [] if {k.width for k in tested} == {128} else ["wrong widths"]),
        "spread": lambda device: ("images", []),
        "compare": lambda *_: ([], []),
        "pipeline": lambda: iter(["rows\n"]),
    }.items():
        monkeypatch.setattr(gpu.run, name, value)
    assert gpu.run.main([*options, "--no-record"]) == 0
    printed = capsys.readouterr().out
    at = [printed.index(section) for section in sections]
    assert at == sorted(at)
    assert printed.count("\nB = ") == sum(section.startswith("B = ") for section in sections)


def test_it_starts_without_torch_and_without_extras() -> None:
    """Some machines have PyTorch without our extras, or neither."""
    script = (
        "import sys\n"
        "for name in ('torch', 'onnx', 'onnxruntime', 'openvino', 'cupy', 'tensorrt', 'scipy', 'pandas'):\n"
        "    sys.modules[name] = None\n"
        f"sys.path.insert(0, {str(GPU)!r})\n"
        "import run, end_to_end\n"
        "print([one.missing for one in end_to_end.measure(10, 1, 1)])\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=GPU.parents[1])
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(["torch is not installed"] * 3)
