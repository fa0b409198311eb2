"""ONNX Runtime's GPU providers: their sessions and bindings, on the CPU. See test_on_a_gpu.py for a real GPU."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnxruntime
import pytest

from mdmf_deploy.bundle.bundle import Bundle
from mdmf_deploy.bundle.manifest import INPUT, MODEL
from mdmf_deploy.errors import BundleError, OutOfMemory, RuntimeUnavailable
from mdmf_deploy.hardware.device import Gpu, device_view, host_view
from mdmf_deploy.runtime import open_engine, ort_gpu
from mdmf_deploy.runtime.building.plans import EngineKey
from mdmf_deploy.runtime.building.profiles import load_profile
from mdmf_deploy.tasks.benchmark import subjects
from mdmf_deploy.tasks.benchmark.results import Settings

GPU = Gpu("a pretended GPU", (8, 9), 1 << 34, (13, 0), 128)
NAMES = Path(__file__).parent / "building" / "names" / "onnxruntime-gpu-1.31.1.json"
PROFILE = 'summary = "For tests."\nworkspace_mib = 64\n[batch]\nopt = 2\nmax = 4\n'


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pretend a machine with a GPU, whose provider is the CPU's."""
    monkeypatch.setattr(ort_gpu, "require", lambda runtime: None)
    monkeypatch.setattr(ort_gpu, "probe", lambda: GPU)
    monkeypatch.setattr(ort_gpu, "DEVICE", "cpu")
    monkeypatch.setattr(ort_gpu, "CUDA_PROVIDER", "CPUExecutionProvider")
    monkeypatch.setattr(ort_gpu, "cuda_options", lambda precision: {})


@pytest.fixture
def opened(here: None, tiny_bundle: Path, tmp_path: Path) -> Callable[[], ort_gpu.OrtGpuEngine]:
    path = tmp_path / "four.toml"
    path.write_text(PROFILE)
    return lambda: open_engine(f"cuda:{path}", Bundle.open(tiny_bundle))


@pytest.mark.parametrize("count", [0, 1, 4, 5, 9])
def test_the_bound_memory_holds_the_signatures(
    count: int, opened: Callable[[], ort_gpu.OrtGpuEngine], images: np.ndarray, expected: np.ndarray
) -> None:
    engine = opened()
    np.testing.assert_array_equal(engine(images[:count]), expected[:count])
    made = engine.on_device(images[:count])
    view = device_view(made)
    assert (view.shape, view.stream) == ((count, 4, 8), None)
    extracted = host_view(view.pointer, count * 4 * 8 * 4).view(np.float32).reshape(view.shape)
    np.testing.assert_array_equal(extracted, expected[:count])
    engine.close()
    with pytest.raises(AttributeError):
        engine(images[:1])


def test_if_signatures_depend_on_the_batch_every_batch_has_one_size(
    opened: Callable[[], ort_gpu.OrtGpuEngine], images: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = onnxruntime.InferenceSession.run_with_iobinding
    sizes = []

    def drifting(session: onnxruntime.InferenceSession, binding: onnxruntime.IOBinding) -> None:
        run(session, binding)
        (made,) = binding.get_outputs()
        sizes.append(made.shape()[0])
        host_view(made.data_ptr(), made.tensor_size_in_bytes()).view(np.float32)[:] += np.float32(1e-3 * sizes[-1])

    monkeypatch.setattr(onnxruntime.InferenceSession, "run_with_iobinding", drifting)
    engine = opened()
    sizes.clear()
    whole = engine(images)
    parts = [engine(images[start : start + 3]) for start in range(0, 9, 3)]
    np.testing.assert_array_equal(np.concatenate(parts), whole)
    assert set(sizes) == {2}


def test_two_profiles_of_one_runtime_are_two_subjects(here: None, tiny_bundle: Path, tmp_path: Path) -> None:
    names = ["cuda", "cuda:latency"]
    with subjects.opened([str(tiny_bundle)], names, [], Settings(), [], tmp_path) as found:
        assert [subject.about.name for subject in found] == ["cuda fp32", "cuda:latency fp32"]


@pytest.mark.filterwarnings("ignore:Specified provider")
@pytest.mark.parametrize("name", ["cuda", "ort-tensorrt"])
def test_a_session_that_fell_back_to_the_cpu_is_an_error(
    name: str, tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The CPU's build falls back because it lacks the provider, the GPU's build if a library is missing."""
    monkeypatch.setenv("MDMF_CACHE", str(tmp_path))
    monkeypatch.setattr(ort_gpu, "require", lambda runtime: None)
    monkeypatch.setattr(ort_gpu, "probe", lambda: GPU)
    monkeypatch.setattr("mdmf_deploy.runtime.building.flavours.Flavour.load", lambda flavour: onnxruntime)
    session = onnxruntime.InferenceSession

    def talkative(*arguments: Any, **options: Any) -> onnxruntime.InferenceSession:
        print("EP Error ... Falling back to ['CPUExecutionProvider'] and retrying.")
        return session(*arguments, **options)

    monkeypatch.setattr(onnxruntime, "InferenceSession", talkative)
    with pytest.raises(RuntimeUnavailable, match=r"asked for \w+ExecutionProvider, got CPUExecutionProvider"):
        open_engine(name, Bundle.open(tiny_bundle))
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize("name", ["cuda", "ort-tensorrt"])
def test_without_a_driver_it_does_not_open(name: str, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mdmf_deploy.hardware.gpu.LIBRARY", "libno-such-driver.so.1")
    with pytest.raises(RuntimeUnavailable, match=rf"runtime '{name}': there is no NVIDIA driver"):
        open_engine(name, Bundle.open(tiny_bundle))


def test_a_graph_that_cannot_be_loaded_is_an_error_of_one_line(here: None, bundle_copy: Path) -> None:
    bundle = Bundle(bundle_copy, Bundle.open(bundle_copy).manifest)
    (bundle_copy / MODEL).write_bytes(b"not a graph")
    with pytest.raises(BundleError, match=r"model\.onnx: onnxruntime .* cannot load it on cuda") as failure:
        open_engine("cuda", bundle)
    assert "\n" not in str(failure.value)


def key(**changes: Any) -> EngineKey:
    whole = EngineKey(
        model="0" * 64,
        library="onnxruntime",
        version="1.31.1 10.16.1.11",
        compute_capability="8.9",
        gpu=GPU.name,
        profile=load_profile().key,
        flags=(),
        platform="Linux x86_64",
    )
    return msgspec.structs.replace(whole, **changes)


def test_every_option_is_known_to_its_provider() -> None:
    """The providers refuse others. The list is that of onnxruntime-gpu 1.31.1."""
    known = {provider: set(names) for provider, names in json.loads(NAMES.read_text()).items()}
    given = ort_gpu.tensorrt_options(key(), load_profile(), (3, 56, 56))
    assert given.keys() <= known["TensorrtExecutionProvider"]
    assert ort_gpu.cuda_options("fp32").keys() <= known["CUDAExecutionProvider"]
    assert all(isinstance(value, str) for value in given.values())


def test_tensorrt_gets_no_precision_and_folders_for_its_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MDMF_CACHE", str(tmp_path))
    given = ort_gpu.tensorrt_options(key(), load_profile(), (3, 56, 56))
    assert {given[f"trt_{precision}_enable"] for precision in ("fp16", "bf16", "int8")} == {"0"}
    assert given["trt_profile_max_shapes"] == f"{INPUT}:32x3x56x56"
    for cache in ("engine", "timing"):
        assert given[f"trt_{cache}_cache_enable"] == "1"
        assert Path(given[f"trt_{cache}_cache_path"]).is_relative_to(tmp_path)


@pytest.mark.parametrize("change", [{"model": "1" * 64}, {"version": "1.31.1 10.13"}, {"gpu": "another"}])
def test_every_key_has_a_folder_of_its_own(change: dict[str, Any]) -> None:
    ours, theirs = (ort_gpu.tensorrt_options(one, load_profile(), (3, 56, 56)) for one in (key(), key(**change)))
    assert ours["trt_engine_cache_path"] != theirs["trt_engine_cache_path"]


def test_too_little_memory_is_an_error_of_one_line(
    opened: Callable[[], ort_gpu.OrtGpuEngine], images: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, text = opened(), "BFCArena: Failed to allocate memory\nfor requested buffer of size 602112"

    def full(session: object, binding: object) -> None:
        raise RuntimeError(text)

    monkeypatch.setattr(onnxruntime.InferenceSession, "run_with_iobinding", full)
    with pytest.raises(OutOfMemory, match=r"a pretended GPU: .* of size 602112; .* --runtime cuda:latency") as failure:
        engine(images[:1])
    assert "\n" not in str(failure.value)
    text = "Non-zero status code"
    with pytest.raises(RuntimeError, match="Non-zero"):
        engine(images[:1])


@pytest.mark.parametrize(("precision", "tf32"), [("fp32", "0"), ("int8", "0"), ("fp16", "1")])
def test_tf32_is_used_only_where_it_loses_nothing(precision: str, tf32: str) -> None:
    assert ort_gpu.cuda_options(precision)["use_tf32"] == tf32
