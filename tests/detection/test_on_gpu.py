"""An engine that leaves signatures on the GPU: the same rows, little copied back, and no batch harms another.

Engine and reduction run on tests/fakes/host_device.py, where every result comes as late as it may.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from fakes.gpu_engine import PATCHES, WIDTH, GpuEngine
from fakes.host_tensorrt import HostTensorRt
from fakes.on_host import host_device
from helpers.clips import write_clip
from helpers.rows import timeless

from mdmf_deploy import Detector
from mdmf_deploy.bundle.bundle import Bundle
from mdmf_deploy.detection import detector as detector_module
from mdmf_deploy.detection.feed import Extraction
from mdmf_deploy.detection.on_gpu import Fused
from mdmf_deploy.detection.probes import check_probes
from mdmf_deploy.detection.rows import Row
from mdmf_deploy.errors import OutOfMemory, RuntimeUnavailable, UsageError
from mdmf_deploy.mmd.cpu import CpuReduction
from mdmf_deploy.mmd.cuda import reduction as cuda
from mdmf_deploy.mmd.cuda.reduction import CudaReduction
from mdmf_deploy.runtime import trt
from mdmf_deploy.runtime.building import obtain

# height, width, colours of images with four crops, one, and two.
SHAPES = ((340, 340, 3), (230, 240, 3), (300, 400, 3))


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Any:
    device = host_device()
    monkeypatch.setattr(cuda, "open_device", lambda: device)
    return device


@pytest.fixture
def engines(device: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[GpuEngine]]:
    """The engines that detectors open, each a GpuEngine. What the check of probes copies is not counted."""
    made: list[GpuEngine] = []

    def open_gpu(name: str, bundle: Bundle, threads: int | None) -> GpuEngine:
        made.append(GpuEngine(bundle, device, names_stream=name != "no-stream"))
        return made[-1]

    def check(bundle: Bundle, engine: GpuEngine) -> None:
        check_probes(bundle, engine)
        engine.on_host = 0

    monkeypatch.setattr(detector_module, "open_engine", open_gpu)
    monkeypatch.setattr(detector_module, "check_probes", check)
    return made


@pytest.fixture(scope="module")
def sources(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Eleven images and two files that are not images."""
    folder = tmp_path_factory.mktemp("broken")
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "noise.png").write_bytes(b"not an image")
    found = sorted(photos.iterdir())[:11]
    return [*found[:4], folder / "empty.jpg", *found[4:], folder / "noise.png"]


@pytest.fixture(scope="module")
def on_cpu(sources: list[Path]) -> list[Row]:
    with Detector("starter", "onnxruntime") as detector:
        return detector.detect(sources)


@pytest.mark.parametrize("runtime", ["stream", "no-stream"])
@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_rows_are_those_of_the_cpu(
    runtime: str, batch_size: int, engines: list[GpuEngine], device: Any, sources: list[Path], on_cpu: list[Row]
) -> None:
    with Detector("starter", runtime, batch_size=batch_size) as detector:
        assert isinstance(detector.reduction, CudaReduction)
        rows = detector.detect(sources)
        again = detector.detect(sources)
    assert timeless(rows) == timeless(again)
    for row, wanted in zip(rows, on_cpu, strict=True):
        if wanted.status == "error":
            assert timeless([row]) == timeless([wanted])
            continue
        assert row.score == pytest.approx(wanted.score, rel=1e-6)
        assert row.contributions == pytest.approx(wanted.contributions, abs=2e-6)
        assert row.ms_engine > 0
        assert row.ms_mmd == pytest.approx(0.25 / batch_size, rel=batch_size)
        rest = {"score": wanted.score, "contributions": wanted.contributions, "p_value": wanted.p_value}
        assert timeless([msgspec.structs.replace(row, **rest)]) == timeless([wanted])
    # Nothing was copied to the host. The GPU writes scores and contributions there.
    assert engines[0].on_host == 0
    assert device.to_host == 0
    assert device.allocated == 4 * 8 * PATCHES * WIDTH


def test_auto_reports_the_reduction_it_chose(
    engines: list[GpuEngine], device: Any, sources: list[Path], messages: Callable[[], str]
) -> None:
    Detector("starter").close()
    assert messages() == "reduction cuda (signatures stay on the GPU)"
    Detector("starter", reduction="cuda").close()
    assert messages() == ""


def test_a_row_does_not_depend_on_its_batch(engines: list[GpuEngine], sources: list[Path]) -> None:
    rows = []
    for batch_size in (1, 5, 8):
        with Detector("starter", batch_size=batch_size) as detector:
            rows.append(timeless(detector.detect(sources)))
    assert rows[0] == rows[1] == rows[2]


def test_extractions_are_fetched_and_the_rows_stay_the_same(engines: list[GpuEngine], sources: list[Path]) -> None:
    """Whoever keeps signatures needs them on the host."""
    seen: list[Extraction] = []
    with Detector("starter", batch_size=4) as detector:
        fused = detector.detect(sources)
        rows = [row for [row] in detector.stream_by_source(sources, on_extraction=seen.append)]
    assert timeless(rows) == timeless(fused)
    assert [one.uri for one in seen] == [row.uri for row in rows]
    assert [one.signatures is None for one in seen] == [row.status == "error" for row in rows]
    assert all(one.signatures is None or one.signatures.shape == (1, PATCHES, WIDTH) for one in seen)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_non_finite_score_costs_only_its_own_row(value: float, engines: list[GpuEngine], sources: list[Path]) -> None:
    with Detector("starter", batch_size=4) as detector:
        whole = timeless(detector.detect(sources[:3]))
        engines[0].spoil = 1, value
        before, bad, after = timeless(detector.detect(sources[:3]))
    assert [before, after] == [whole[0], whole[2]]
    assert (bad.status, bad.error_code, bad.score, bad.contributions) == ("error", "not_finite", None, None)


def test_an_image_of_several_crops_scores_as_on_the_cpu(engines: list[GpuEngine], device: Any) -> None:
    """Also if its crops do not fit into one call of the engine."""
    images = [np.random.default_rng(n).integers(0, 256, shape, np.uint8) for n, shape in enumerate(SHAPES)]
    with Detector("starter", reduction="cpu", crops=4) as detector:
        wanted = detector.detect(images)
    runs = []
    for batch_size in (3, 8):
        with Detector("starter", crops=4, batch_size=batch_size) as detector:
            rows = detector.detect(images)
        runs.append(timeless(rows))
        for row, other in zip(rows, wanted, strict=True):
            assert row.crop == other.crop
            assert row.score == pytest.approx(other.score, rel=1e-6)
            assert row.contributions == pytest.approx(other.contributions, abs=2e-6)
            assert row.ms_engine > 0
            assert row.ms_mmd > 0
    assert runs[0] == runs[1]
    assert [row.crop for row in wanted] == ["grid 2x2", "center", "grid 1x2"]
    assert [engine.on_host > 0 for engine in engines] == [True, False, False]


def test_a_second_look_leaves_no_signatures_on_the_gpu(engines: list[GpuEngine], sources: list[Path]) -> None:
    """Its calls of the engine come beside the stream's, and would overwrite them."""
    rows = []
    for probe in (False, True):
        with Detector("starter", batch_size=3, probe=probe) as detector:
            rows.append([row.score for row in detector.detect(sources)])
    assert rows[0] == rows[1]
    assert [engine.on_host > 0 for engine in engines] == [False, True]


def test_a_video_scores_as_on_the_cpu(engines: list[GpuEngine], device: Any, tmp_path: Path) -> None:
    pytest.importorskip("cv2")
    clip = write_clip(tmp_path / "a.mkv", 7, size=(300, 250))
    with Detector("starter", "onnxruntime", frames=7) as detector:
        [wanted] = detector.detect(clip)
    with Detector("starter", frames=7, batch_size=3) as detector:
        [row] = detector.detect(clip)
    assert (row.frames, row.highest_time, engines[-1].on_host) == (7, wanted.highest_time, 0)
    assert row.score == pytest.approx(wanted.score, rel=1e-6)
    assert row.contributions == pytest.approx(wanted.contributions, abs=2e-6)


@pytest.mark.parametrize("names_stream", [True, False])
def test_the_next_call_of_an_engine_does_not_overwrite_unread_signatures(names_stream: bool, device: Any) -> None:
    bundle = Bundle.open("starter")
    engine = GpuEngine(bundle, device, names_stream)
    crops = np.random.default_rng(0).standard_normal((6, 3, 224, 224)).astype(np.float32)
    exact = CpuReduction()(engine(crops), bundle.bank).mmd2
    fused = Fused(engine, CudaReduction(), bundle.bank)
    # No score is asked for before the last batch was queued.
    batches = [fused([crops[start : start + 2]], [1, 1]) for start in (0, 2, 4)]
    # With a known stream two batches run at a time, and the third takes the place of the first.
    assert device.launched.count("mdmf_prepare") == (1 if names_stream else 3)
    engine.stream.synchronize()
    scores = [batch.score(place).score for batch in batches for place in range(2)]
    np.testing.assert_allclose(scores, exact, rtol=1e-6)
    engine.close()


def test_the_cpu_reduction_can_be_requested(engines: list[GpuEngine], device: Any, sources: list[Path]) -> None:
    with Detector("starter", reduction="cpu") as detector:
        detector.detect(sources[0])
    assert (engines[0].on_host, device.launched) == (1, [])


def test_signatures_of_a_cpu_engine_can_be_scored_on_the_gpu(
    device: Any, sources: list[Path], on_cpu: list[Row]
) -> None:
    with Detector("starter", "onnxruntime", reduction="cuda") as detector:
        rows = detector.detect(sources)
    for row, wanted in zip(rows, on_cpu, strict=True):
        assert row.score == (None if wanted.score is None else pytest.approx(wanted.score, rel=1e-6))
    assert device.allocated == 0


def test_a_cpu_engine_does_not_look_for_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "open_device", lambda: pytest.fail("nobody asked for a GPU"))
    with Detector("starter", "onnxruntime") as detector:
        assert isinstance(detector.reduction, CpuReduction)


def test_a_requested_gpu_is_never_replaced(
    engines: list[GpuEngine],
    sources: list[Path],
    on_cpu: list[Row],
    monkeypatch: pytest.MonkeyPatch,
    messages: Callable[[], str],
) -> None:
    def refuse() -> None:
        raise RuntimeUnavailable("no GPU: as asked; ask for another")

    monkeypatch.setattr(cuda, "open_device", refuse)
    with pytest.raises(RuntimeUnavailable, match="as asked"):
        Detector("starter", reduction="cuda")
    assert engines[0].closed
    with Detector("starter") as detector:
        assert timeless(detector.detect(sources)) == timeless(on_cpu)
    assert "reduction cpu (no GPU: as asked; ask for another)" in messages()
    with pytest.raises(UsageError, match="reduction 'gpu' is not known; choose auto, cpu or cuda"):
        Detector("starter", reduction="gpu")


def test_a_gpu_that_fills_up_ends_the_run_in_one_line(
    engines: list[GpuEngine], device: Any, sources: list[Path]
) -> None:
    with Detector("starter", batch_size=8) as detector:
        detector.detect(sources[0])
        # Room for what is held and little more.
        object.__setattr__(device.gpu, "memory", device.allocated + 1000)
        with pytest.raises(OutOfMemory, match="lower --batch-size"):
            detector.detect(sources)


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> HostTensorRt:
    """TensorRT's engine by ONNX Runtime and our kernels by g++, on a pretended GPU."""
    device = host_device()
    made = HostTensorRt(device)
    monkeypatch.setenv("MDMF_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(sys.modules, "tensorrt", made)
    monkeypatch.setattr(trt, "open_device", lambda: device)
    monkeypatch.setattr(trt, "require", lambda runtime: None)
    monkeypatch.setattr(obtain, "probe", lambda: device.gpu)
    monkeypatch.setattr(cuda, "open_device", lambda: device)
    return made


def test_tensorrt_rows_of_the_starter_equal_those_of_the_cpu(library: HostTensorRt, photos: Path) -> None:
    paths = sorted(photos.iterdir())[:5]
    with Detector("starter", "onnxruntime") as on_cpu:
        expected = on_cpu.detect(paths)
    # Batches that the engine splits, and a last one that is smaller.
    with Detector("starter", "tensorrt:latency", batch_size=3) as on_gpu:
        assert on_gpu.reduction.name == "cuda"
        rows = on_gpu.detect(paths)
    assert library.device.launched
    for row, other in zip(rows, expected, strict=True):
        assert (row.runtime, row.precision, row.verdict) == ("tensorrt", "int8", "uncalibrated")
        assert row.score == pytest.approx(other.score, rel=1e-4, abs=1e-6)
        np.testing.assert_allclose(row.contributions, other.contributions, rtol=1e-3, atol=1e-5)
    assert not library.device.allocated
