"""The contract of every device library. test_device.py runs this file on the fake driver and on a real GPU."""

from __future__ import annotations

import ctypes
import gc
import hashlib
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from helpers.kernel_inputs import draw

from mdmf_deploy.errors import OutOfMemory, RuntimeUnavailable
from mdmf_deploy.hardware.device import Device, Memory, Stream, open_device
from mdmf_deploy.mmd.cuda.kernels import VERSIONS, Kernel
from mdmf_deploy.mmd.cuda.reduction import CudaReduction
from mdmf_deploy.mmd.reference import ReferenceReduction

NAME = os.environ["MDMF_TEST_DEVICE"]
FAKE = "FAKE_KERNELS" in os.environ
SOURCE = Path(__file__).with_name("blend.cu")
COUNT = 1000
if FAKE:
    # The fake driver has only the functions used here. Lazy binding keeps pycuda from looking for all the others.
    ctypes.CDLL("libcuda.so.1", ctypes.RTLD_GLOBAL)
    sys.setdlopenflags(os.RTLD_LAZY)
fake_only = pytest.mark.skipif(not FAKE, reason="needs a driver whose answers can be chosen")


@pytest.fixture(scope="module")
def device() -> Device:
    return open_device(NAME)


@pytest.fixture
def stream(device: Device) -> Stream:
    return device.stream()


@pytest.fixture
def kernel(device: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[object]:
    monkeypatch.setenv("MDMF_CACHE", str(tmp_path / "cache"))
    return device.module(SOURCE, ("--std=c++17",))["blend"]


def values(memory: Memory) -> np.ndarray:
    return memory.host[: 4 * COUNT].view(np.float32)


def blend(
    device: Device, kernel: object, memory: Memory, by: float, add: float, stream: Stream, shared: int = 0
) -> None:
    pointer = np.uintp(memory.pointer)
    arguments = pointer, pointer, np.float32(by), np.float64(add), np.int32(COUNT)
    device.launch(kernel, (2, 2, 2), 128, shared, arguments, stream)


def blocks(device: Device) -> tuple[Memory, Memory, Memory]:
    """Return three blocks of memory: pinned, on the GPU, pinned."""
    return tuple(device.allocate(4 * COUNT, "-", pinned=pinned) for pinned in (True, False, True))  # type: ignore[return-value]


def test_the_device_is_the_driver_s_first_gpu(device: Device) -> None:
    assert device.name == NAME
    assert device.gpu.multiprocessors > 0
    if FAKE:
        assert (device.gpu.name, device.gpu.sm) == ("Made-up 4090", 89)


def test_an_array_travels_to_the_gpu_and_back(device: Device, kernel: object, stream: Stream) -> None:
    source, memory, result = blocks(device)
    values(source)[:] = np.arange(COUNT)
    device.copy(memory, source, 4 * COUNT, stream)
    blend(device, kernel, memory, 0.5, 3.0, stream)
    device.copy(result, memory, 4 * COUNT, stream)
    if FAKE:
        # Nothing has run yet, because nobody has waited.
        assert np.isnan(values(result)).all()
    stream.synchronize()
    np.testing.assert_array_equal(values(result), np.float32(0.5) * np.arange(COUNT) + 3)


def test_part_of_a_block_can_be_copied_to_an_offset(device: Device, stream: Stream) -> None:
    source, memory, result = blocks(device)
    values(source)[:] = 1
    device.copy(memory, source, 4 * COUNT, stream)
    stream.synchronize()
    values(source)[:] = 2
    device.copy(memory, source, 40, stream, offset=80)
    # Within the GPU as well.
    other = device.allocate(4 * COUNT, "-")
    device.copy(other, memory, 4 * COUNT, stream)
    device.copy(other, memory, 4 * 21, stream, offset=4 * (COUNT - 21))
    device.copy(result, other, 4 * COUNT, stream)
    stream.synchronize()
    assert values(result).tolist() == [1] * 20 + [2] * 10 + [1] * (COUNT - 31) + [2]


def test_a_kernel_may_take_more_shared_memory_than_by_default(device: Device, kernel: object, stream: Stream) -> None:
    _, memory, _ = blocks(device)
    blend(device, kernel, memory, 1.0, 0.0, stream, shared=60 << 10)
    stream.synchronize()


def test_a_kernel_reads_and_writes_pinned_memory(device: Device, kernel: object, stream: Stream) -> None:
    memory, _, _ = blocks(device)
    values(memory)[:] = np.arange(COUNT)
    blend(device, kernel, memory, 2.0, 1.0, stream)
    stream.synchronize()
    np.testing.assert_array_equal(values(memory), 2 * np.arange(COUNT) + 1)


def test_a_graph_repeats_the_recorded_work(device: Device, kernel: object, stream: Stream) -> None:
    source, memory, result = blocks(device)
    values(source)[:] = 1
    device.copy(memory, source, 4 * COUNT, stream)

    def work() -> None:
        blend(device, kernel, memory, 2.0, 1.0, stream)
        device.copy(result, memory, 4 * COUNT, stream)

    graph = device.graph(work, stream)
    for _ in range(3):
        graph.launch(stream)
    stream.synchronize()
    # Recording itself runs nothing: 1 -> 3 -> 7 -> 15.
    assert set(values(result)) == {15.0}


def test_streams_wait_for_each_other_through_events(device: Device, kernel: object) -> None:
    first, second = device.stream(), device.stream()
    source, memory, result = blocks(device)
    values(source)[:] = 1
    made, looked = device.event(), device.event()
    device.copy(memory, source, 4 * COUNT, first)
    made.record(first)
    second.wait(made)
    device.copy(result, memory, 4 * COUNT, second)
    looked.record(second)
    # Another library's stream, known by its handle alone.
    device.stream(first.handle).wait(looked)
    blend(device, kernel, memory, 0.0, 9.0, first)
    first.synchronize()
    second.synchronize()
    assert set(values(result)) == {1.0}
    assert looked.since(made) >= 0.0


def test_an_event_can_be_recorded_on_the_default_stream(device: Device) -> None:
    event = device.event()
    event.record(device.stream(1))
    event.synchronize()


def test_any_thread_may_use_the_device(device: Device, kernel: object) -> None:
    results: list[float] = []

    def work() -> None:
        stream = device.stream()
        source, memory, result = blocks(device)
        values(source)[:] = 4
        device.copy(memory, source, 4 * COUNT, stream)
        blend(device, kernel, memory, 1.0, 1.0, stream)
        device.copy(result, memory, 4 * COUNT, stream)
        event = device.event()
        event.record(stream)
        event.synchronize()
        results.append(float(values(result)[-1]))
        memory.free()

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [5.0] * 3


def test_a_thread_that_has_never_seen_the_gpu_may_wait(device: Device, kernel: object, stream: Stream) -> None:
    source, memory, result = blocks(device)
    values(source)[:] = 3
    begun, ended = device.event(), device.event()
    begun.record(stream)
    device.copy(memory, source, 4 * COUNT, stream)
    graph = device.graph(lambda: device.copy(result, memory, 4 * COUNT, stream), stream)
    seen: list[object] = []

    def wait() -> None:
        try:
            graph.launch(stream)
            ended.record(stream)
            stream.wait(begun)
            ended.synchronize()
            seen.extend([values(result)[0], ended.since(begun) >= 0])
            stream.synchronize()
            memory.free()
        except Exception as error:
            seen.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    thread.join()
    assert seen == [3.0, True]


def test_too_little_memory_is_an_error_with_sizes_and_a_remedy(device: Device) -> None:
    with pytest.raises(OutOfMemory, match=r"1048576\.0 MiB asked for, [\d.]+ MiB free; lower --batch-size") as caught:
        device.allocate(1 << 40, "lower --batch-size")
    assert "\n" not in str(caught.value)


@fake_only
def test_freed_memory_can_be_allocated_again(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_MEMORY", str(64 << 20))
    for _ in range(5):
        memory = device.allocate(40 << 20, "-")
        memory.free()
        memory.free()
    device.allocate(40 << 20, "-")
    gc.collect()
    device.allocate(40 << 20, "-")


@fake_only
def test_a_cubin_that_the_driver_refuses_is_compiled_again(
    device: Device, kernel: object, stream: Stream, tmp_path: Path
) -> None:
    [file] = (tmp_path / "cache" / "kernels").iterdir()
    whole = file.read_bytes()
    file.write_bytes(hashlib.sha256(b"not for this GPU").digest() + b"not for this GPU")
    again = device.module(SOURCE, ("--std=c++17",))["blend"]
    assert file.read_bytes() == whole
    _, memory, _ = blocks(device)
    blend(device, again, memory, 1.0, 0.0, stream)
    stream.synchronize()


@fake_only
def test_a_driver_that_is_too_old_is_an_error_with_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_CUDA", "11040")
    with pytest.raises(RuntimeUnavailable, match=r"serves CUDA 11\.4, and 12\.0 is needed"):
        open_device(NAME)
    monkeypatch.setenv("FAKE_CUDA", "12090")
    if NAME == "cuda-core":
        with pytest.raises(RuntimeUnavailable, match=r"serves CUDA 12\.9, and 13\.0 is needed; update the driver"):
            open_device(NAME)


@pytest.mark.parametrize("version", ["plain"] if FAKE else list(VERSIONS))
def test_the_reduction_agrees_with_the_reference(device: Device, version: str) -> None:
    """Use this library's own launches, copies and graphs. On a GPU, test every version of the kernels."""
    for operand in VERSIONS[version][1]:
        kernel = Kernel(version, operand, 64)
        if (FAKE and operand != "fp32") or not kernel.supports(device.gpu.sm):
            continue
        x, bank = draw(1, 9, 7, 300, 64)
        exact = ReferenceReduction()(x, bank)
        reduction = CudaReduction(device, operand=operand, version=version)
        pending = [reduction.submit(x[start : start + 3], bank) for start in (0, 3, 6) * 4]
        allowed = {"fp32": 1e-6, "fp16x2": 2e-6, "fp16": 3e-3, "bf16": 3e-2}[operand]
        for place, waiting in enumerate(pending):
            start = place % 3 * 3
            scores = waiting.scores()
            assert np.abs(scores.mmd2 - exact.mmd2[start : start + 3]).max() <= allowed
            assert np.abs(scores.contributions - exact.contributions[start : start + 3]).max() <= allowed
            assert waiting.milliseconds > 0
            # The same bits, launched one by one and as a graph.
            np.testing.assert_array_equal(scores.mmd2, pending[place % 3].scores().mmd2)
        reduction.close()


def test_torch_tensors_are_scored_on_the_gpu(device: Device) -> None:
    if FAKE:
        pytest.skip("needs a GPU")
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("needs a torch for this GPU")
    x, bank = draw(1, 9, 7, 300, 64)
    reduction = CudaReduction(device)
    on_gpu = torch.from_numpy(x).cuda()
    np.testing.assert_array_equal(reduction(on_gpu, bank).mmd2, reduction(x, bank).mmd2)
