"""PyTorch's engines. The one for GPUs runs on the CPU here; see test_on_a_gpu.py for a real GPU."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.handmade import WIDTH

from mdmf_deploy.bundle.bundle import Bundle
from mdmf_deploy.errors import OutOfMemory, RuntimeUnavailable
from mdmf_deploy.hardware.device import Gpu, device_view, host_view
from mdmf_deploy.runtime import open_engine, pt
from mdmf_deploy.runtime.onnx_in_torch import OnnxGraph
from mdmf_deploy.runtime.ort import OrtEngine

GPU = Gpu("a pretended GPU", (9, 0), 1 << 34, (13, 0), 132)
PROFILE = 'summary = "For tests."\nworkspace_mib = 64\n[batch]\nopt = 4\nmax = 8\n'


class HostStream:
    """A stream whose work is done as soon as it is given. order: what was given to all streams, in order."""

    def __init__(self, handle: int, order: list[str]) -> None:
        self.cuda_stream, self.order = handle, order

    def wait_event(self, event: HostEvent) -> None:
        self.order.append(f"{self.cuda_stream} waits for {event.name}")

    def synchronize(self) -> None:
        pass


class HostEvent:
    def __init__(self, name: str, order: list[str]) -> None:
        self.name, self.order = name, order

    def record(self, stream: HostStream) -> None:
        self.order.append(f"{stream.cuda_stream} records {self.name}")

    def synchronize(self) -> None:
        self.order.append(f"the host waits for {self.name}")


# What else a signature may depend on: an offset from the images of a batch and the number of runs before.
Disturbance = Callable[[torch.Tensor, int], torch.Tensor]
DISTURBANCES: dict[str, tuple[Disturbance, str]] = {
    "a place that reversal hides": (lambda images, run: at_places(images, 0, 1, 1, 0), "depends on its place"),
    "a place that a shift of two hides": (lambda images, run: at_places(images, 0, 1, 0, 1), "depends on its place"),
    "the others": (lambda images, run: images[:, 0, 0, 0].max(), "depends on the images beside it"),
    "the run": (lambda images, run: torch.tensor(run % 3 == 2), "differs from one run to the next"),
}


def at_places(images: torch.Tensor, *offsets: int) -> torch.Tensor:
    return torch.tensor(offsets)[: len(images), None, None]


def disturbed(disturbance: Disturbance, *, together: bool = True, apart: bool = False, alone: bool = False) -> Any:
    """Return a class of graphs whose signatures are disturbed in these ways to multiply."""

    class Disturbed(OnnxGraph):
        def program(self, batch: int, image: Sequence[int], **options: bool) -> Any:
            run, runs = super().program(batch, image, **options), count()
            if not (alone if batch == 1 else apart if options.get("apart") else together):
                return run
            return lambda images: run(images) + 1e-3 * disturbance(images, next(runs))

    return Disturbed


@pytest.fixture
def order(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Pretend a machine with a GPU whose memory is the host's, and return what its streams are given."""
    given: list[str] = []
    streams, events = iter(range(7, 99)), iter(range(99))

    @contextlib.contextmanager
    def current(stream: HostStream) -> Iterator[None]:
        yield

    def captured(run: partial[torch.Tensor], stream: HostStream) -> tuple[Callable[[], None], torch.Tensor]:
        # A CUDA graph does not keep the memory that it reads either.
        program, arguments = weakref.ref(run.func), run.args
        kept = run().clone()
        del run

        def launch() -> None:
            given.append("launch")
            alive = program()
            assert alive is not None, "the graph reads weights whose memory is free"
            kept.copy_(alive(*arguments))

        return launch, kept

    monkeypatch.setattr(pt, "require", lambda runtime: None)
    monkeypatch.setattr(pt, "probe", lambda: GPU)
    monkeypatch.setattr(pt, "DEVICE", "cpu")
    monkeypatch.setattr(pt, "captured", captured)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: HostStream(next(streams), given))
    monkeypatch.setattr(torch.cuda, "Event", lambda blocking: HostEvent(f"event {next(events)}", given))
    monkeypatch.setattr(torch.cuda, "stream", current)
    return given


@pytest.fixture(scope="module")
def expected(small_bundle: Path, images: np.ndarray) -> np.ndarray:
    return OrtEngine(Bundle.open(small_bundle))(images)


@pytest.fixture
def opened(order: list[str], small_bundle: Path, tmp_path: Path) -> Callable[[], pt.TorchCudaEngine]:
    path = tmp_path / "four.toml"
    path.write_text(PROFILE)
    return lambda: open_engine(f"torch-cuda:{path}", Bundle.open(small_bundle))


@pytest.mark.parametrize("count", [0, 1, 4, 5, 9])
def test_signatures_stay_where_a_reduction_finds_them(
    count: int, opened: Callable[[], pt.TorchCudaEngine], images: np.ndarray, expected: np.ndarray
) -> None:
    engine = opened()
    for _ in range(3):  # The memory for images has been used before.
        extracted = engine(images[::-1][:count])
        np.testing.assert_allclose(extracted, expected[::-1][:count], atol=1e-5)
    view = device_view(engine.on_device(images[:count]))
    assert (view.shape, view.stream) == ((count, 4, WIDTH), 7)
    left = host_view(view.pointer, count * 4 * WIDTH * 4).view(np.float32).reshape(view.shape)
    np.testing.assert_array_equal(left, engine(images[:count]))
    engine.close()
    with pytest.raises(AttributeError):
        engine(images[:1])


def test_every_batch_has_one_size(
    opened: Callable[[], pt.TorchCudaEngine], images: np.ndarray, order: list[str]
) -> None:
    engine = opened()
    whole = engine(images)
    for batch, launches in ((1, 9), (2, 5), (4, 3), (5, 3)):
        order.clear()
        parts = [engine(images[start : start + batch]) for start in range(0, 9, batch)]
        np.testing.assert_array_equal(np.concatenate(parts), whole)
        assert order.count("launch") == launches


@pytest.mark.parametrize(("disturbance", "reason"), DISTURBANCES.values(), ids=DISTURBANCES)
@pytest.mark.parametrize(
    ("apart", "products", "launches"), [(False, "image by image", 3), (True, "one at a time", 9)], ids=("", "apart too")
)
def test_products_of_images_are_set_apart_where_a_signature_depends_on_more_than_its_image(
    apart: bool,
    products: str,
    launches: int,
    disturbance: Disturbance,
    reason: str,
    opened: Callable[[], pt.TorchCudaEngine],
    images: np.ndarray,
    expected: np.ndarray,
    order: list[str],
    monkeypatch: pytest.MonkeyPatch,
    messages: Callable[[], str],
) -> None:
    monkeypatch.setattr(pt, "OnnxGraph", disturbed(disturbance, apart=apart))
    engine = opened()
    message = messages()
    assert "\n" not in message
    assert f"images are run {products}" in message
    assert message.count(reason) == 1 + apart
    assert engine.environment["products"] == products
    order.clear()
    np.testing.assert_allclose(engine(images), expected, atol=1e-5)
    assert order.count("launch") == launches


def test_a_gpu_that_repeats_nothing_is_reported(
    opened: Callable[[], pt.TorchCudaEngine], monkeypatch: pytest.MonkeyPatch, messages: Callable[[], str]
) -> None:
    disturbance, reason = DISTURBANCES["the run"]
    monkeypatch.setattr(pt, "OnnxGraph", disturbed(disturbance, apart=True, alone=True))
    opened()
    assert messages().count(reason) == 3


def test_one_unlike_place_of_a_large_batch_is_found(
    order: list[str], small_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "twenty.toml"
    path.write_text(PROFILE.replace("4", "20").replace("8", "20"))
    offsets = [place == 17 for place in range(20)]
    monkeypatch.setattr(pt, "OnnxGraph", disturbed(lambda images, run: at_places(images, *offsets)))
    assert open_engine(f"torch-cuda:{path}", Bundle.open(small_bundle)).environment["products"] == "image by image"


def test_no_memory_is_written_before_its_last_use(
    opened: Callable[[], pt.TorchCudaEngine], images: np.ndarray, order: list[str]
) -> None:
    engine = opened()
    engine(images)
    order.clear()
    engine(images[:8])
    first, second = (1, 0), (3, 2)  # Nine images have used the slots an odd number of times.
    expected = []
    for consumed, copied in (second, first):
        expected += [
            f"the host waits for event {copied}",
            f"8 waits for event {consumed}",
            f"8 records event {copied}",
            f"7 waits for event {copied}",
            f"7 records event {consumed}",
            "launch",
        ]
    assert order == expected


def test_a_large_batch_is_reported_once_with_the_profile_to_take(
    opened: Callable[[], pt.TorchCudaEngine], images: np.ndarray, messages: Callable[[], str]
) -> None:
    engine = opened()
    for _ in range(2):
        engine(images)
    message = messages()
    assert "\n" not in message
    assert "batches of 9 images are run 4 at a time" in message
    assert "--runtime torch-cuda:throughput" in message


def test_the_environment_names_what_decides_about_bits(opened: Callable[[], pt.TorchCudaEngine]) -> None:
    environment = opened().environment
    versions = {"driver": "CUDA 13.0", "torch": torch.__version__}
    assert environment == {"gpu": GPU.name, "profile": "four", "products": "together"} | versions
    # A record is written as JSON, which takes no subclass of str.
    assert {type(value) for value in environment.values()} == {str}


def test_too_little_memory_is_an_error_of_one_line(
    opened: Callable[[], pt.TorchCudaEngine], images: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nSee the docs.")

    monkeypatch.setattr(pt, "captured", full)
    with pytest.raises(OutOfMemory, match=r"a pretended GPU: .* 2 GiB\.; .* --runtime torch-cuda:latency") as failure:
        opened()
    assert "\n" not in str(failure.value)


def test_settings_of_the_process_are_put_back(
    opened: Callable[[], pt.TorchCudaEngine], tiny_bundle: Path, images: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    matmul, conv = torch.backends.cuda.matmul, torch.backends.cudnn.conv
    inside = []
    capture = pt.captured
    monkeypatch.setattr(
        pt, "captured", lambda *given: inside.append((matmul.fp32_precision, conv.fp32_precision)) or capture(*given)
    )

    def settings() -> tuple[Any, ...]:
        reduced = matmul.allow_fp16_reduced_precision_reduction
        cudnn = torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic
        return matmul.fp32_precision, conv.fp32_precision, reduced, *cudnn, torch.get_num_threads()

    before = settings()
    opened()(images)
    open_engine("torch", Bundle.open(tiny_bundle), 3)(images)
    assert settings() == before
    assert inside == [("ieee", "ieee")]


def test_without_a_driver_it_does_not_open(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mdmf_deploy.hardware.gpu.LIBRARY", "libno-such-driver.so.1")
    with pytest.raises(RuntimeUnavailable, match="runtime 'torch-cuda': there is no NVIDIA driver"):
        open_engine("torch-cuda", Bundle.open(tiny_bundle))


def test_operators_use_one_thread_each(tiny_bundle: Path, images: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    softmax, seen = torch.nn.functional.softmax, []

    def looking(*given: Any) -> torch.Tensor:
        seen.append((torch.get_num_threads(), given[0].shape[0]))
        return softmax(*given)

    monkeypatch.setattr(torch.nn.functional, "softmax", looking)
    engine = open_engine("torch", Bundle.open(tiny_bundle), 3)
    seen.clear()
    engine(images)
    engine.close()
    assert set(seen) == {(1, 1)}
