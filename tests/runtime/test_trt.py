"""The TensorRT engine on a pretended GPU, against ONNX Runtime. See test_on_a_gpu.py for a real one."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
from fakes.host_device import HostDevice
from fakes.host_tensorrt import HostTensorRt
from helpers.handmade import WIDTH
from typer.testing import CliRunner

from mdmf_deploy.bundle.bundle import Bundle
from mdmf_deploy.bundle.manifest import MODEL
from mdmf_deploy.cli import app
from mdmf_deploy.errors import EngineError, OutOfMemory, RuntimeUnavailable
from mdmf_deploy.hardware.device import device_view, host_view
from mdmf_deploy.runtime import open_engine
from mdmf_deploy.runtime.building.obtain import deserialise
from mdmf_deploy.runtime.ort import OrtEngine
from mdmf_deploy.runtime.trt import TensorRtEngine

PROFILE = 'summary = "For tests."\nworkspace_mib = 64\n[batch]\nmin = {}\nopt = {}\nmax = {}\n'


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> HostTensorRt:
    """Pretend a machine with a GPU and TensorRT 11."""
    device = HostDevice(lambda source, options: {})
    made = HostTensorRt(device)
    monkeypatch.setenv("MDMF_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(sys.modules, "tensorrt", made)
    monkeypatch.setattr("mdmf_deploy.runtime.trt.open_device", lambda: device)
    monkeypatch.setattr("mdmf_deploy.runtime.trt.require", lambda runtime: None)
    monkeypatch.setattr("mdmf_deploy.runtime.building.obtain.probe", lambda: device.gpu)
    return made


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((11, 3, 56, 56)).astype(np.float32)


@pytest.fixture(scope="module")
def expected(small_bundle: Path, images: np.ndarray) -> np.ndarray:
    return OrtEngine(Bundle.open(small_bundle))(images)


@pytest.fixture
def opened(small_bundle: Path, tmp_path: Path) -> Callable[..., TensorRtEngine]:
    """A function that opens a small bundle with a profile of given batches."""

    def open_with(least: int = 1, opt: int = 2, most: int = 4) -> TensorRtEngine:
        path = tmp_path / f"of{least}to{most}.toml"
        path.write_text(PROFILE.format(least, opt, most))
        return open_engine(f"tensorrt:{path}", Bundle.open(small_bundle))

    return open_with


@pytest.mark.parametrize("count", [1, 3, 4, 5, 8, 11])
def test_it_takes_any_number_of_images(
    count: int,
    opened: Callable[..., TensorRtEngine],
    library: HostTensorRt,
    images: np.ndarray,
    expected: np.ndarray,
) -> None:
    engine = opened()
    np.testing.assert_array_equal(engine(images[:count]), expected[:count])
    assert max(library.batches) == 4
    # The memory has been used by now.
    np.testing.assert_array_equal(engine(images[11 - count :]), expected[11 - count :])
    engine.close()


def test_a_batch_above_the_profiles_max_is_split_and_reported_once(
    opened: Callable[..., TensorRtEngine],
    library: HostTensorRt,
    images: np.ndarray,
    messages: Callable[[], str],
) -> None:
    engine = opened()
    library.batches.clear()
    messages()
    for _ in range(2):
        engine(images[:9])
    assert library.batches == [4, 4, 1] * 2
    message = messages()
    assert "\n" not in message
    assert "batches of 9 images are run 4 at a time" in message
    assert "--runtime tensorrt:throughput" in message


def test_a_batch_below_the_profiles_min_is_padded(
    opened: Callable[..., TensorRtEngine], library: HostTensorRt, images: np.ndarray, expected: np.ndarray
) -> None:
    engine = opened(3, 3, 4)
    library.batches.clear()
    np.testing.assert_array_equal(engine(images[:5]), expected[:5])
    assert library.batches == [4, 3]


def test_if_signatures_depend_on_the_batch_every_batch_has_one_size(
    opened: Callable[..., TensorRtEngine], library: HostTensorRt, images: np.ndarray
) -> None:
    library.drift = 1e-3
    engine = opened()
    library.batches.clear()
    whole = engine(images)
    for size in (1, 2, 3, 5):
        parts = [engine(images[start : start + size]) for start in range(0, 11, size)]
        np.testing.assert_array_equal(np.concatenate(parts), whole)
    assert set(library.batches) == {2}


def test_a_result_on_the_device_is_ready_after_its_stream(
    opened: Callable[..., TensorRtEngine], library: HostTensorRt, images: np.ndarray, expected: np.ndarray
) -> None:
    engine = opened()
    for count in (3, 9):
        made = engine.on_device(images[:count])
        view = device_view(made)
        assert view.shape == (count, 4, WIDTH)
        assert made.stream == view.stream
        # A consumer waits for its stream.
        library.device.streams[view.stream].synchronize()
        extracted = host_view(view.pointer, int(np.prod(view.shape)) * 4).view(np.float32).reshape(view.shape)
        np.testing.assert_array_equal(extracted, expected[:count])


def test_batches_follow_each_other_without_waiting(
    opened: Callable[..., TensorRtEngine], library: HostTensorRt, images: np.ndarray, expected: np.ndarray
) -> None:
    """A consumer reads them on its own stream, and lets the engine's stream wait until it has."""
    engine, device = opened(), library.device
    mine, made, read = device.stream(), device.event(), device.event()
    counts = [3, 4, 1, 9, 2, 2, 4]
    kept = []
    for count in counts:
        signatures = engine.on_device(images[11 - count :])
        view = device_view(signatures)
        kept.append(device.allocate(int(np.prod(view.shape)) * 4, ""))
        theirs = device.stream(view.stream)
        made.record(theirs)
        mine.wait(made)
        device.copy(kept[-1], signatures.owner, kept[-1].nbytes, mine)
        read.record(mine)
        theirs.wait(read)
    mine.synchronize()
    for count, memory in zip(counts, kept, strict=True):
        extracted = host_view(memory.pointer, memory.nbytes).view(np.float32).reshape(count, 4, WIDTH)
        np.testing.assert_array_equal(extracted, expected[11 - count :])


def test_a_batch_is_copied_in_while_the_engine_works_on_two(
    opened: Callable[..., TensorRtEngine], library: HostTensorRt, images: np.ndarray
) -> None:
    engine = opened()
    stream = library.device.streams[engine.on_device(images[:2]).stream]
    ran = stream.done
    for _ in range(2):
        engine.on_device(images[:2])
    assert stream.done == ran


def test_the_caller_owns_the_result_and_the_images(
    opened: Callable[..., TensorRtEngine], library: HostTensorRt, images: np.ndarray, expected: np.ndarray
) -> None:
    engine = opened()
    given = images[::2].copy()
    given.flags.writeable = False
    first = engine(given)
    engine(images[:3])
    np.testing.assert_array_equal(first, expected[::2])
    np.testing.assert_array_equal(engine(np.asfortranarray(given)), expected[::2])
    assert engine(images[:0]).shape == (0, 4, WIDTH)


def test_closing_frees_all_memory(opened: Callable[..., TensorRtEngine], library: HostTensorRt) -> None:
    engine = opened()
    assert library.device.allocated
    engine.close()
    assert not library.device.allocated
    given = [len(stream.given) for stream in library.device.streams.values()]
    with pytest.raises(AttributeError):
        engine(np.zeros((1, 3, 56, 56), np.float32))
    # No copy used its freed memory.
    assert [len(stream.given) for stream in library.device.streams.values()] == given


def test_the_engine_is_built_once(
    opened: Callable[..., TensorRtEngine], library: HostTensorRt, messages: Callable[[], str]
) -> None:
    opened().close()
    message = messages()
    assert "tensorrt: there is no engine yet; building for a pretended GPU, profile of1to4" in message
    opened().close()
    assert library.built == 1
    assert messages() == ""
    opened(1, 2, 5).close()
    assert library.built == 2


def test_the_inspectors_report_is_kept_beside_the_plan(
    opened: Callable[..., TensorRtEngine], library: HostTensorRt, tmp_path: Path
) -> None:
    opened().close()
    (layers,) = (tmp_path / "cache").rglob("*.layers.json")
    assert json.loads(layers.read_text())["Layers"][2] == "named by a string"
    (card,) = (path for path in (tmp_path / "cache").rglob("*.json") if path != layers)
    about = json.loads(card.read_text())
    assert (about["layers"], about["fused_attention"]) == (3, 1)
    assert about["inputs"] == [{"name": "images", "shape": [-1, 3, 56, 56], "type": "FLOAT"}]
    assert about["key"]["gpu"] == "a pretended GPU"
    layers.write_text("reported once")
    opened().close()
    assert layers.read_text() == "reported once"


def test_a_plan_that_was_cut_short_is_built_again(
    opened: Callable[..., TensorRtEngine],
    library: HostTensorRt,
    tmp_path: Path,
    images: np.ndarray,
    expected: np.ndarray,
    messages: Callable[[], str],
) -> None:
    opened().close()
    (plan,) = (tmp_path / "cache").rglob("*.plan")
    plan.write_bytes(plan.read_bytes()[:-9])
    messages()
    np.testing.assert_array_equal(opened()(images), expected)
    assert library.built == 2
    message = messages()
    assert f"{plan} is damaged: " in message
    assert "building" in message


def test_a_plan_of_another_gpu_is_not_used(
    opened: Callable[..., TensorRtEngine], library: HostTensorRt, messages: Callable[[], str]
) -> None:
    opened().close()
    library.device.gpu = replace(library.device.gpu, name="another GPU")
    messages()
    opened().close()
    assert library.built == 2
    assert "the closest engine differs: gpu a pretended GPU in place of another GPU" in messages()


def test_a_plan_that_does_not_load_is_built_once_more(
    opened: Callable[..., TensorRtEngine], library: HostTensorRt, messages: Callable[[], str]
) -> None:
    opened().close()
    library.refusals = 1
    opened().close()
    assert library.built == 2
    assert "is whole, but tensorrt does not load it" in messages()
    library.refusals = 2
    with pytest.raises(EngineError, match="does not load what it has just built"):
        opened()


def test_too_little_memory_is_reported_with_its_size_and_a_remedy(
    opened: Callable[..., TensorRtEngine], library: HostTensorRt
) -> None:
    library.full = True
    with pytest.raises(OutOfMemory, match=r"a pretended GPU: .* 3\.0 MiB .* --runtime tensorrt:latency"):
        opened()


@pytest.mark.parametrize(("version", "flags"), [("10.13.3.9", 2), ("10.16.1.11", 2), ("11.4.0.106", 0)])
def test_networks_are_strongly_typed_in_every_version(
    version: str, flags: int, opened: Callable[..., TensorRtEngine], library: HostTensorRt, tmp_path: Path
) -> None:
    library.__version__ = version
    opened().close()
    assert library.network_flags == [flags]
    (card,) = (path for path in (tmp_path / "cache").rglob("*.json") if "layers" not in path.name)
    key = json.loads(card.read_text())["key"]
    assert ("STRONGLY_TYPED" in key["flags"]) is bool(flags)
    assert key["version"] == version


def test_timings_are_kept_and_those_of_another_gpu_refused(
    opened: Callable[..., TensorRtEngine], library: HostTensorRt, tmp_path: Path
) -> None:
    opened().close()
    (cache,) = (tmp_path / "cache").rglob("*.cache")
    assert cache.read_bytes() == b"timed,"
    opened(1, 2, 5).close()
    assert cache.read_bytes() == b"timed,timed,"
    cache.write_bytes(b"of another GPU")
    opened(1, 2, 6).close()
    assert library.timing_caches[-2:] == [b"of another GPU", b""]
    assert cache.read_bytes() == b"timed,"


def test_a_graph_that_does_not_parse_is_an_error_of_one_line(bundle_copy: Path, library: HostTensorRt) -> None:
    bundle = Bundle(bundle_copy, Bundle.open(bundle_copy).manifest)
    (bundle_copy / MODEL).write_bytes(b"not a graph")
    with pytest.raises(EngineError, match=r"model\.onnx: tensorrt 11\.4\.0\.106 cannot parse it \(it is no graph\)"):
        open_engine("tensorrt", bundle)


@pytest.mark.parametrize("name", ["tensorrt", "rtx"])
def test_without_a_driver_the_library_is_not_touched(
    name: str, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The library would end the process."""
    monkeypatch.setattr("mdmf_deploy.hardware.gpu.LIBRARY", "libno-such-driver.so.1")
    touched = HostTensorRt(HostDevice(lambda source, options: {}))
    monkeypatch.setattr(touched, "Runtime", lambda log: pytest.fail("touched without a driver"), raising=False)
    with pytest.raises(
        RuntimeUnavailable, match=r"runtime '.*': there is no NVIDIA driver .*; install NVIDIA's driver"
    ):
        open_engine(name, Bundle.open(tiny_bundle))
    with pytest.raises(RuntimeUnavailable, match="there is no NVIDIA driver"):
        deserialise(touched, b"")


def test_the_environment_names_the_gpu_its_driver_and_the_library(
    opened: Callable[..., TensorRtEngine], library: HostTensorRt
) -> None:
    assert opened().environment == {
        "gpu": "a pretended GPU",
        "driver": "CUDA 13.0",
        "tensorrt": "11.4.0.106",
        "profile": "of1to4",
    }


def test_verification_holds_on_the_gpu_it_was_made_on(
    bundle_copy: Path, library: HostTensorRt, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = library.device.gpu
    monkeypatch.setattr("mdmf_deploy.hardware.gpu.this_gpu", lambda: library.device.gpu.name)
    verified = CliRunner().invoke(app, ["verify", str(bundle_copy), "--runtime", "tensorrt:latency"])
    assert verified.exit_code == 0, verified.stderr
    record = Bundle.open(bundle_copy).manifest.verification[-1]
    assert (record.runtime, record.passed) == ("tensorrt", True)
    assert record.environment.items() >= {"gpu": gpu.name, "tensorrt": "11.4.0.106", "profile": "latency"}.items()
    assert record.images_per_second
    assert Bundle.open(bundle_copy).covers("tensorrt", "fp32")
    library.device.gpu = replace(gpu, name="another GPU")
    assert not Bundle.open(bundle_copy).covers("tensorrt", "fp32")


def test_build_describes_the_engine(tiny_bundle: Path, library: HostTensorRt, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mdmf_deploy.runtime.needs.require", lambda runtime: None)
    monkeypatch.setattr("mdmf_deploy.hardware.gpu.probe", lambda: library.device.gpu)
    built = CliRunner().invoke(app, ["build", str(tiny_bundle), "--profile", "latency"])
    assert built.exit_code == 0, built.stderr
    assert "for       a pretended GPU, compute capability 8.9, tensorrt 11.4.0.106\n" in built.stdout
    assert "batches   1 to 1, fastest at 1 (profile latency)\n" in built.stdout
    assert "layers    3, of them fused attention: 1\n" in built.stdout
    open_engine("tensorrt:latency", Bundle.open(tiny_bundle)).close()
    assert library.built == 1
    forced = CliRunner().invoke(app, ["build", str(tiny_bundle), "--profile", "latency", "--force"])
    assert forced.exit_code == 0
    assert "asked to build again" in forced.stderr
    assert library.built == 2


def test_auto_chooses_it_where_it_is_verified_and_faster(
    bundle_copy: Path, library: HostTensorRt, monkeypatch: pytest.MonkeyPatch, messages: Callable[[], str]
) -> None:
    bundle = Bundle.open(bundle_copy)
    (slow,) = bundle.manifest.verification
    fast = msgspec.structs.replace(
        slow,
        runtime="tensorrt",
        images_per_second=2 * slow.images_per_second,
        environment=slow.environment | {"gpu": library.device.gpu.name},
    )
    both = Bundle(bundle.path, msgspec.structs.replace(bundle.manifest, verification=(slow, fast)))
    for here, chosen in ((library.device.gpu.name, "tensorrt"), (None, "onnxruntime")):
        monkeypatch.setattr("mdmf_deploy.hardware.gpu.this_gpu", lambda here=here: here)
        engine = open_engine("auto", both)
        engine.close()
        assert engine.name == chosen
        assert f"runtime {chosen} (verified" in messages()
