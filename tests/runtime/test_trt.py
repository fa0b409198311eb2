"""The TensorRT engine: on a pretended GPU here, against ONNX Runtime; on a real one in test_engines.py."""

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
from typer.testing import CliRunner

from mdmf_deploy.bundle.bundle import Bundle
from mdmf_deploy.bundle.manifest import MODEL
from mdmf_deploy.cli import app
from mdmf_deploy.errors import EngineError, OutOfMemory, RuntimeUnavailable
from mdmf_deploy.hardware.memory import device_view, host_view
from mdmf_deploy.runtime import open_engine, trt
from mdmf_deploy.runtime.building import obtain as inspecting
from mdmf_deploy.runtime.ort import OrtEngine

PROFILE = 'summary = "For tests."\nworkspace_mib = 64\n[batch]\nmin = {}\nopt = {}\nmax = {}\n'


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> HostTensorRt:
    """A machine with a GPU and TensorRT 11, neither of them real."""
    device = HostDevice(lambda source, options: {})
    made = HostTensorRt(device)
    monkeypatch.setenv("MDMF_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(sys.modules, "tensorrt", made)
    monkeypatch.setattr(trt, "open_device", lambda: device)
    monkeypatch.setattr(trt, "require", lambda runtime: None)
    monkeypatch.setattr(inspecting, "probe", lambda: device.gpu)
    return made


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((11, 3, 56, 56)).astype(np.float32)


@pytest.fixture(scope="module")
def expected(tiny_bundle: Path, images: np.ndarray) -> np.ndarray:
    return OrtEngine(Bundle.open(tiny_bundle))(images)


@pytest.fixture
def opened(tiny_bundle: Path, tmp_path: Path) -> Callable[..., trt.TensorRtEngine]:
    """Opens the tiny bundle with a profile of these batches."""

    def open_with(least: int = 1, opt: int = 2, most: int = 4) -> trt.TensorRtEngine:
        path = tmp_path / f"of{least}to{most}.toml"
        path.write_text(PROFILE.format(least, opt, most))
        return open_engine(f"tensorrt:{path}", Bundle.open(tiny_bundle))

    return open_with


@pytest.mark.parametrize("count", [1, 3, 4, 5, 8, 11])
def test_it_signs_any_number_of_images(
    count: int,
    opened: Callable[..., trt.TensorRtEngine],
    library: HostTensorRt,
    images: np.ndarray,
    expected: np.ndarray,
) -> None:
    engine = opened()
    np.testing.assert_array_equal(engine(images[:count]), expected[:count])
    assert max(library.batches) == 4
    # Again, in memory that has been used.
    np.testing.assert_array_equal(engine(images[11 - count :]), expected[11 - count :])
    engine.close()


def test_a_batch_above_the_profiles_largest_is_split_and_said_once(
    opened: Callable[..., trt.TensorRtEngine],
    library: HostTensorRt,
    images: np.ndarray,
    capsys: pytest.CaptureFixture[str],
) -> None:
    engine = opened()
    library.batches.clear()
    capsys.readouterr()
    for _ in range(2):
        engine(images[:9])
    assert library.batches == [4, 4, 1] * 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "batches of 9 images are run 4 at a time" in said
    assert "mdmf build --profile" in said


def test_a_batch_below_the_profiles_smallest_is_padded(
    opened: Callable[..., trt.TensorRtEngine], library: HostTensorRt, images: np.ndarray, expected: np.ndarray
) -> None:
    engine = opened(3, 3, 4)
    library.batches.clear()
    np.testing.assert_array_equal(engine(images[:5]), expected[:5])
    assert library.batches == [4, 3]


def test_where_signatures_depend_on_the_batch_every_batch_is_the_same(
    opened: Callable[..., trt.TensorRtEngine], library: HostTensorRt, images: np.ndarray
) -> None:
    library.drift = 1e-3
    engine = opened()
    library.batches.clear()
    whole = engine(images)
    for size in (1, 2, 3, 5):
        parts = [engine(images[start : start + size]) for start in range(0, 11, size)]
        np.testing.assert_array_equal(np.concatenate(parts), whole)
    assert set(library.batches) == {2}


def test_on_the_device_nothing_has_to_have_run(
    opened: Callable[..., trt.TensorRtEngine], library: HostTensorRt, images: np.ndarray, expected: np.ndarray
) -> None:
    engine = opened()
    for count in (3, 9):
        made = engine.on_device(images[:count])
        view = device_view(made)
        assert view.shape == (count, 4, 8)
        assert made.stream == view.stream
        # Whoever takes it orders himself after its stream.
        library.device.streams[view.stream].synchronize()
        extracted = host_view(view.pointer, int(np.prod(view.shape)) * 4).view(np.float32).reshape(view.shape)
        np.testing.assert_array_equal(extracted, expected[:count])


def test_batches_follow_each_other_without_waiting(
    opened: Callable[..., trt.TensorRtEngine], library: HostTensorRt, images: np.ndarray, expected: np.ndarray
) -> None:
    """Whoever reads them does so on a stream of his own, and lets the engine's wait until he has."""
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
        extracted = host_view(memory.pointer, memory.nbytes).view(np.float32).reshape(count, 4, 8)
        np.testing.assert_array_equal(extracted, expected[11 - count :])


def test_a_batch_comes_in_while_the_last_two_are_in_work(
    opened: Callable[..., trt.TensorRtEngine], library: HostTensorRt, images: np.ndarray
) -> None:
    engine = opened()
    stream = library.device.streams[engine.on_device(images[:2]).stream]
    ran = stream.done
    for _ in range(2):
        engine.on_device(images[:2])
    assert stream.done == ran


def test_the_caller_owns_the_result_and_the_images(
    opened: Callable[..., trt.TensorRtEngine], library: HostTensorRt, images: np.ndarray, expected: np.ndarray
) -> None:
    engine = opened()
    given = images[::2].copy()
    given.flags.writeable = False
    first = engine(given)
    engine(images[:3])
    np.testing.assert_array_equal(first, expected[::2])
    np.testing.assert_array_equal(engine(np.asfortranarray(given)), expected[::2])
    assert engine(images[:0]).shape == (0, 4, 8)


def test_closing_gives_all_memory_back(opened: Callable[..., trt.TensorRtEngine], library: HostTensorRt) -> None:
    engine = opened()
    assert library.device.allocated
    engine.close()
    assert not library.device.allocated
    given = [len(stream.given) for stream in library.device.streams.values()]
    with pytest.raises(AttributeError):
        engine(np.zeros((1, 3, 56, 56), np.float32))
    # Its memory, which is no more, was not copied from or to.
    assert [len(stream.given) for stream in library.device.streams.values()] == given


def test_the_engine_is_built_once(
    opened: Callable[..., trt.TensorRtEngine], library: HostTensorRt, capsys: pytest.CaptureFixture[str]
) -> None:
    opened().close()
    said = capsys.readouterr().err
    assert "tensorrt: there is no engine yet; building for a pretended GPU, profile of1to4" in said
    opened().close()
    assert library.built == 1
    assert capsys.readouterr().err == ""
    opened(1, 2, 5).close()
    assert library.built == 2


def test_what_the_engine_tells_is_kept_beside_it(
    opened: Callable[..., trt.TensorRtEngine], library: HostTensorRt, tmp_path: Path
) -> None:
    opened().close()
    (layers,) = (tmp_path / "cache").rglob("*.layers.json")
    assert json.loads(layers.read_text())["Layers"][2] == "named by a string"
    (card,) = (path for path in (tmp_path / "cache").rglob("*.json") if path != layers)
    told = json.loads(card.read_text())
    assert (told["layers"], told["fused_attention"]) == (3, 1)
    assert told["inputs"] == [{"name": "images", "shape": [-1, 3, 56, 56], "type": "FLOAT"}]
    assert told["key"]["gpu"] == "a pretended GPU"
    layers.write_text("told once")
    opened().close()
    assert layers.read_text() == "told once"


def test_a_plan_that_was_cut_short_is_built_again(
    opened: Callable[..., trt.TensorRtEngine],
    library: HostTensorRt,
    tmp_path: Path,
    images: np.ndarray,
    expected: np.ndarray,
    capsys: pytest.CaptureFixture[str],
) -> None:
    opened().close()
    (plan,) = (tmp_path / "cache").rglob("*.plan")
    plan.write_bytes(plan.read_bytes()[:-9])
    capsys.readouterr()
    np.testing.assert_array_equal(opened()(images), expected)
    assert library.built == 2
    said = capsys.readouterr().err
    assert f"{plan} is damaged: " in said
    assert "building" in said


def test_a_plan_of_another_gpu_is_not_taken(
    opened: Callable[..., trt.TensorRtEngine], library: HostTensorRt, capsys: pytest.CaptureFixture[str]
) -> None:
    opened().close()
    library.device.gpu = replace(library.device.gpu, name="another GPU")
    capsys.readouterr()
    opened().close()
    assert library.built == 2
    assert "the engine at hand is another: gpu a pretended GPU in place of another GPU" in capsys.readouterr().err


def test_a_plan_that_does_not_load_is_built_once_more(
    opened: Callable[..., trt.TensorRtEngine], library: HostTensorRt, capsys: pytest.CaptureFixture[str]
) -> None:
    opened().close()
    library.refusals = 1
    opened().close()
    assert library.built == 2
    assert "is whole, but tensorrt does not load it" in capsys.readouterr().err
    library.refusals = 2
    with pytest.raises(EngineError, match="does not load what it has just built"):
        opened()


def test_too_little_memory_says_how_much_and_what_to_lower(
    opened: Callable[..., trt.TensorRtEngine], library: HostTensorRt
) -> None:
    library.full = True
    with pytest.raises(OutOfMemory, match=r"a pretended GPU: .* 3\.0 MiB .* --runtime tensorrt:latency"):
        opened()


@pytest.mark.parametrize(("version", "flags"), [("10.13.3.9", 2), ("10.16.1.11", 2), ("11.4.0.106", 0)])
def test_networks_are_strongly_typed_in_every_version(
    version: str, flags: int, opened: Callable[..., trt.TensorRtEngine], library: HostTensorRt, tmp_path: Path
) -> None:
    library.__version__ = version
    opened().close()
    assert library.network_flags == [flags]
    (card,) = (path for path in (tmp_path / "cache").rglob("*.json") if "layers" not in path.name)
    key = json.loads(card.read_text())["key"]
    assert ("STRONGLY_TYPED" in key["flags"]) is bool(flags)
    assert key["version"] == version


def test_timings_are_kept_and_those_of_another_gpu_refused(
    opened: Callable[..., trt.TensorRtEngine], library: HostTensorRt, tmp_path: Path
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


def test_a_graph_that_it_does_not_take_is_one_line(bundle_copy: Path, library: HostTensorRt) -> None:
    bundle = Bundle.open(bundle_copy)
    (bundle_copy / MODEL).write_bytes(b"not a graph")
    with pytest.raises(EngineError, match=r"model\.onnx: tensorrt 11\.4\.0\.106 cannot parse it \(it is no graph\)"):
        open_engine("tensorrt", bundle)


@pytest.mark.parametrize("name", ["tensorrt", "rtx"])
def test_with_no_driver_the_library_is_not_touched(
    name: str, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would end the process where it could raise."""
    monkeypatch.setattr("mdmf_deploy.hardware.gpu.LIBRARY", "libno-such-driver.so.1")
    touched = HostTensorRt(HostDevice(lambda source, options: {}))
    monkeypatch.setattr(touched, "Runtime", lambda log: pytest.fail("touched without a driver"), raising=False)
    with pytest.raises(
        RuntimeUnavailable, match=r"runtime '.*': there is no NVIDIA driver .*; install NVIDIA's driver"
    ):
        open_engine(name, Bundle.open(tiny_bundle))
    with pytest.raises(RuntimeUnavailable, match="there is no NVIDIA driver"):
        inspecting.deserialise(touched, b"")


def test_the_record_names_the_gpu_its_driver_and_the_library(
    opened: Callable[..., trt.TensorRtEngine], library: HostTensorRt
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


def test_build_tells_what_the_engine_is(
    tiny_bundle: Path, library: HostTensorRt, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mdmf_deploy.runtime.needs.require", lambda runtime: None)
    monkeypatch.setattr("mdmf_deploy.hardware.gpu.probe", lambda: library.device.gpu)
    built = CliRunner().invoke(app, ["build", str(tiny_bundle), "--profile", "latency"])
    assert built.exit_code == 0, built.stderr
    assert "for       a pretended GPU, compute capability 8.9, tensorrt 11.4.0.106\n" in built.stdout
    assert "batches   1 to 1, fastest at 1 (profile latency)\n" in built.stdout
    assert "layers    3, of them fused attention: 1\n" in built.stdout
    open_engine("tensorrt:latency", Bundle.open(tiny_bundle)).close()
    assert library.built == 1
    assert CliRunner().invoke(app, ["build", str(tiny_bundle), "--profile", "latency", "--force"]).exit_code == 0
    assert library.built == 2


def test_auto_takes_it_where_it_is_verified_and_faster(
    bundle_copy: Path, library: HostTensorRt, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
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
        assert f"mdmf: runtime {chosen} (verified" in capsys.readouterr().err
