"""The GPU reduction: overlapping batches do not disturb each other, bits never change, and arrays are not copied.

The device is fakes/host_device.py. Nothing runs before somebody waits for it, so memory reused too soon is wrong.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest
from fakes.on_host import host_device
from helpers.float32_mmd import EPS
from helpers.kernel_inputs import draw

from mdmf_deploy.bundle.bank import Bank
from mdmf_deploy.errors import OutOfMemory, ShapeMismatch, UsageError
from mdmf_deploy.mmd import Scores
from mdmf_deploy.mmd.cuda.reduction import CudaReduction, Pending
from mdmf_deploy.mmd.reference import ReferenceReduction

WIDTH = 64
OPERANDS = ["fp32", "fp16x2", "fp16"]


@dataclass
class Array:
    """A float32 array on the fake GPU that belongs to another library."""

    memory: object
    __cuda_array_interface__: dict[str, object]


def put(device: object, values: np.ndarray, stream: object = None, changes: dict[str, object] | None = None) -> Array:
    """Copy values to the GPU. With a stream, they arrive only once it has run. changes: to the interface."""
    source = device.allocate(values.nbytes, "-", pinned=True)
    source.host[:] = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
    memory = device.allocate(values.nbytes, "-")
    on = stream or device.stream()
    device.copy(memory, source, values.nbytes, on)
    if stream is None:
        on.synchronize()
    interface = {
        "shape": values.shape,
        "typestr": "<f4",
        "data": (memory.pointer, False),
        "version": 3,
        "strides": None,
    }
    return Array(memory, interface | {"stream": stream.handle if stream else None} | (changes or {}))


def close_to(scores: Scores, exact: Scores, operand: str = "fp32") -> None:
    allowed = {"fp32": 8 * EPS, "fp16x2": 16 * EPS, "fp16": 3e-3}[operand]
    np.testing.assert_allclose(scores.mmd2, exact.mmd2, rtol=0, atol=allowed)
    np.testing.assert_allclose(scores.contributions, exact.contributions, rtol=0, atol=allowed)


def same(one: Scores, other: Scores) -> None:
    np.testing.assert_array_equal(one.mmd2, other.mmd2)
    np.testing.assert_array_equal(one.contributions, other.contributions)


@pytest.fixture(scope="module")
def drawn() -> tuple[np.ndarray, Bank]:
    return draw(1, 9, 7, 100, WIDTH)


@pytest.fixture(params=[None, "fp16"])
def reduction(request: pytest.FixtureRequest) -> Iterator[CudaReduction]:
    """Plain float32, the fastest here, and fp16, whose operands have another size in memory."""
    version = None if request.param else "plain"
    reduction = CudaReduction(host_device(), operand=request.param or "fp32", version=version)
    yield reduction
    reduction.close()


def quick() -> CudaReduction:
    return CudaReduction(host_device(), operand="fp32", version="plain")


@pytest.mark.parametrize("operand", OPERANDS)
def test_every_operand_gives_the_score_and_the_same_bits_in_any_batch(
    operand: str, drawn: tuple[np.ndarray, Bank]
) -> None:
    x, bank = drawn
    reduction = CudaReduction(host_device(), operand=operand)
    whole = reduction(x, bank)
    close_to(whole, ReferenceReduction()(x, bank), operand)
    for size in (1, 4):
        # Three passes: launched one by one, recorded, and as a graph.
        for _ in range(3):
            parts = [reduction(x[start : start + size], bank) for start in range(0, len(x), size)]
            np.testing.assert_array_equal(np.concatenate([part.mmd2 for part in parts]), whole.mmd2)
            np.testing.assert_array_equal(np.concatenate([part.contributions for part in parts]), whole.contributions)


def test_fp16x2_is_taken_where_it_is_faster() -> None:
    chosen = {sm: CudaReduction(host_device(sm=sm)).operand for sm in (75, 80, 89, 90, 120)}
    assert chosen == {75: "fp32", 80: "fp16x2", 89: "fp32", 90: "fp16x2", 120: "fp32"}


def test_batches_in_flight_do_not_touch_each_other(reduction: CudaReduction, drawn: tuple[np.ndarray, Bank]) -> None:
    x, bank = drawn
    alone = [reduction(x[i : i + 2], bank) for i in range(8)]
    given = x.copy()
    pending = []
    for i in range(8):
        batch = given[i : i + 2].copy()
        pending.append(reduction.submit(batch, bank))
        batch[:] = np.nan  # the caller's own, once submit has returned
    # Read in any order, twice, and after later batches took their place on the GPU.
    for i in [7, 0, 3, 3, 6, 1, 2, 5, 4]:
        same(pending[i].scores(), alone[i])


def test_two_batches_are_in_flight_before_anybody_waits(drawn: tuple[np.ndarray, Bank]) -> None:
    x, bank = drawn
    reduction = quick()
    for _ in range(4):
        reduction(x[:2], bank)
    launched = reduction.device.launched
    launched.clear()
    pending = [reduction.submit(x[i : i + 2], bank) for i in (0, 2)]
    assert launched == []
    # The third takes the place of the first, and so waits only for it.
    reduction.submit(x[4:6], bank)
    assert launched == ["mdmf_prepare", "mdmf_cross", "mdmf_finish"]
    assert [one.scores().mmd2[0] for one in pending] == [reduction(x[i : i + 1], bank).mmd2[0] for i in (0, 2)]


def test_scores_may_be_read_by_other_threads_or_by_nobody(drawn: tuple[np.ndarray, Bank]) -> None:
    x, bank = drawn
    reduction = quick()
    alone = [reduction(x[i : i + 1], bank) for i in range(9)]
    read: dict[int, Scores] = {}

    def wait(i: int, pending: Pending) -> None:
        read[i] = pending.scores()

    for everybody in (False, True):
        pending = [reduction.submit(x[i : i + 1], bank) for i in range(9)]
        threads = [threading.Thread(target=wait, args=(i, pending[i])) for i in range(9) if everybody or i % 2]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for i in range(9):
        same(read[i], alone[i])


def test_repeated_launches_become_a_graph(drawn: tuple[np.ndarray, Bank]) -> None:
    x, bank = drawn
    device = host_device()
    reduction = CudaReduction(device, operand="fp32", version="plain")
    for _ in range(8):
        reduction(x[:4], bank)
    # One per lane, made when its shape came for the second time, and launched from then on.
    assert [graph.launches for graph in device.graphs] == [3, 3]
    reduction(x[:1], bank)
    assert len(device.graphs) == 2


def test_a_larger_batch_takes_new_memory_and_new_graphs(drawn: tuple[np.ndarray, Bank]) -> None:
    x, bank = drawn
    device = host_device()
    reduction = CudaReduction(device, operand="fp32", version="plain")
    small = reduction(x[:2], bank)
    large = reduction(x, bank)
    for _ in range(6):
        same(reduction(x[:2], bank), small)
        same(reduction(x, bank), large)
    for _ in range(2):
        reduction(x, bank)
    held = device.allocated
    for _ in range(4):
        reduction(x, bank)
    assert device.allocated == held
    reduction.close()
    assert device.allocated == 0


def test_many_shapes_do_not_leave_many_graphs(drawn: tuple[np.ndarray, Bank], monkeypatch: pytest.MonkeyPatch) -> None:
    x, bank = drawn
    monkeypatch.setattr("mdmf_deploy.mmd.cuda.lane.MAX_GRAPHS", 2)
    device = host_device()
    reduction = CudaReduction(device, operand="fp32", version="plain")
    whole = reduction(x, bank)
    for _ in range(3):
        for count in (1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3):
            np.testing.assert_array_equal(reduction(x[:count], bank).mmd2, whole.mmd2[:count])
            # Two in each of two lanes.
            assert len(device.graphs) <= 4


def test_a_batch_too_large_for_one_pass_is_cut(drawn: tuple[np.ndarray, Bank], monkeypatch: pytest.MonkeyPatch) -> None:
    x, bank = drawn
    reduction = quick()
    whole = reduction(x, bank)
    monkeypatch.setattr("mdmf_deploy.mmd.cuda.reduction.MAX_ROWS", 15)
    same(reduction(x, bank), whole)
    same(reduction(put(reduction.device, x), bank), whole)


def test_arrays_on_the_gpu_are_scored_where_they_are(reduction: CudaReduction, drawn: tuple[np.ndarray, Bank]) -> None:
    x, bank = drawn
    device = reduction.device
    array = put(device, x)
    before = len(device.memories)
    scores = reduction(array, bank)
    same(scores, reduction(x, bank))
    # They were not copied: no memory of their size was allocated.
    taken = [memory.nbytes for memory in device.memories[before : before + 8]]
    assert x.nbytes not in taken


def test_an_array_still_being_computed_is_waited_for(reduction: CudaReduction, drawn: tuple[np.ndarray, Bank]) -> None:
    x, bank = drawn
    expected = reduction(x, bank)
    for _ in range(4):
        same(reduction(put(reduction.device, x, reduction.device.stream()), bank), expected)


def test_an_array_may_be_overwritten_once_it_was_read(reduction: CudaReduction, drawn: tuple[np.ndarray, Bank]) -> None:
    """The next call of an engine overwrites its output. Its work waits on its own stream."""
    x, bank = drawn
    device = reduction.device
    expected = [reduction(x[i : i + 2], bank) for i in range(6)]
    stream = device.stream()
    array = put(device, np.zeros_like(x[:2]), stream)
    pending = []
    for i in range(6):
        source = device.allocate(x[:2].nbytes, "-", pinned=True)
        source.host[:] = x[i : i + 2].copy().reshape(-1).view(np.uint8)
        device.copy(array.memory, source, x[:2].nbytes, stream)
        pending.append(reduction.submit(array, bank))
        if i % 2:
            # Let the engine run far ahead of the reduction.
            stream.synchronize()
    stream.synchronize()
    for waiting, wanted in zip(pending, expected, strict=True):
        same(waiting.scores(), wanted)


def test_an_array_of_an_older_interface_waits_for_the_default_stream(drawn: tuple[np.ndarray, Bank]) -> None:
    x, bank = drawn
    reduction = quick()
    default = reduction.device.stream(1)
    array = put(reduction.device, x, default, {"version": 2})
    array.__cuda_array_interface__.pop("stream")
    same(reduction(array, bank), reduction(x, bank))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"typestr": "<f2"}, "expected float32, got <f2"),
        ({"strides": (7 * 64 * 4, 4, 7 * 4)}, r"expected C-contiguous .*, got strides \(1792, 4, 28\)"),
        ({"strides": (2 * 7 * 64 * 4, 64 * 4, 4)}, "C-contiguous"),
        ({"stream": 0}, "stream 0 is ambiguous"),
        ({"shape": (9, 448)}, r"expected \(B, N, 64\)"),
        ({"mask": object()}, "float32"),
    ],
)
def test_arrays_that_would_be_read_wrongly_are_refused(
    changes: dict[str, object], message: str, drawn: tuple[np.ndarray, Bank]
) -> None:
    x, bank = drawn
    reduction = quick()
    with pytest.raises(ShapeMismatch, match=message) as caught:
        reduction(put(reduction.device, x, changes=changes), bank)
    assert "\n" not in str(caught.value)


def test_explicit_strides_of_a_contiguous_array_are_accepted(drawn: tuple[np.ndarray, Bank]) -> None:
    x, bank = drawn
    reduction = quick()
    same(reduction(put(reduction.device, x, changes={"strides": (7 * 64 * 4, 64 * 4, 4)}), bank), reduction(x, bank))
    # The stride of an axis of length 1 means nothing.
    same(reduction(put(reduction.device, x[:1], changes={"strides": (12345, 64 * 4, 4)}), bank), reduction(x[:1], bank))


@pytest.mark.parametrize("operand", OPERANDS)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_an_image_that_is_not_finite_loses_only_its_own_score(
    operand: str, bad: float, drawn: tuple[np.ndarray, Bank]
) -> None:
    x, bank = drawn
    x = x[:3].copy()
    reduction = CudaReduction(host_device(), operand=operand)
    whole = reduction(x, bank)
    x[1, 3, 5] = bad
    scores = reduction(x, bank)
    assert np.isnan(scores.mmd2[1])
    assert np.isnan(scores.contributions[1]).any()
    for image in (0, 2):
        assert scores.mmd2[image] == whole.mmd2[image]
        np.testing.assert_array_equal(scores.contributions[image], whole.contributions[image])


@pytest.mark.parametrize("operand", OPERANDS)
@pytest.mark.parametrize(("images", "patches", "points"), [(1, 1, 1), (3, 1, 5), (1, 49, 1), (2, 33, 129)])
def test_the_smallest_shapes(operand: str, images: int, patches: int, points: int) -> None:
    x, bank = draw(5, images, patches, points, WIDTH)
    close_to(CudaReduction(host_device(), operand=operand)(x, bank), ReferenceReduction()(x, bank), operand)


@pytest.mark.parametrize("operand", ["fp32", "fp16x2"])
def test_a_bank_much_wider_than_its_bandwidth_costs_no_accuracy(operand: str) -> None:
    x, bank = draw(2, 1, 5, 40, WIDTH, bandwidth=0.02)
    x = bank.signatures[None, :5] + (0.1 * bank.sigma / 8 * np.sign(x)).astype(np.float32)
    exact = ReferenceReduction()(x, bank)
    scores = CudaReduction(host_device(), operand=operand)(x, bank)
    np.testing.assert_allclose(scores.contributions, exact.contributions, rtol=0, atol=8 * EPS)
    # The faster version would not be accurate enough.
    version = {"fp32": "tiled", "fp16x2": "tensor"}[operand]
    fast = CudaReduction(host_device(), operand=operand, version=version)(x, bank)
    assert np.abs(fast.contributions - exact.contributions).max() > 8 * EPS


def test_the_steepest_bank_for_tensor_cores_moves_no_score_by_more_than_ten_millionths() -> None:
    """A short bank and wide signatures, all about sigma from a point of the bank, are the hardest case."""
    _, bank = draw(2, 1, 1, 64, 256, bandwidth=(1 / (4 * 120)) ** 0.5)
    near = np.random.default_rng(2).normal(0, bank.sigma / 16, (2, 64, 256))
    x = (bank.signatures + near).astype(np.float32)
    exact = ReferenceReduction()(x, bank)
    scores = CudaReduction(host_device(), operand="fp16x2")(x, bank)
    same(scores, CudaReduction(host_device(), operand="fp16x2", version="tensor")(x, bank))
    assert 1e-6 < np.abs(scores.mmd2 / exact.mmd2 - 1).max() < 1e-5


def test_another_bank_replaces_the_last(drawn: tuple[np.ndarray, Bank]) -> None:
    x, bank = drawn
    other = draw(4, 1, 1, 300, WIDTH)[1]
    device = host_device()
    reduction = CudaReduction(device, operand="fp32", version="plain")
    first, second = reduction(x, bank), quick()(x, other)
    held = device.allocated
    for _ in range(3):
        # Still in flight when the next bank arrives.
        waiting = reduction.submit(x, bank)
        same(reduction(x, other), second)
        same(waiting.scores(), first)
    reduction(x, bank)
    assert device.allocated == held
    # A bank with the same values is another bank: identity decides, not contents.
    same(reduction(x, dataclasses.replace(bank)), first)


def test_closing_frees_all_memory_and_finishes_running_work(drawn: tuple[np.ndarray, Bank]) -> None:
    x, bank = drawn
    device = host_device()
    reduction = CudaReduction(device, operand="fp32", version="plain")
    expected = reduction(x, bank)
    waiting = reduction.submit(x, bank)
    reduction.close()
    reduction.close()
    assert device.allocated == 0
    same(waiting.scores(), expected)
    same(reduction(x, bank), expected)


def test_too_little_memory_is_an_error_with_a_remedy_and_the_next_call_works(drawn: tuple[np.ndarray, Bank]) -> None:
    x, bank = drawn
    with pytest.raises(OutOfMemory, match=r"a pretended GPU: 0\.0 MiB asked for, 0\.0 MiB free; compress the bank"):
        CudaReduction(host_device(memory=10_000), operand="fp32", version="plain")(x, bank)
    large = np.repeat(x, 60, axis=0)
    reduction = CudaReduction(host_device(memory=1 << 20), operand="fp32", version="plain")
    expected = reduction(x, bank)
    for _ in range(3):
        with pytest.raises(OutOfMemory, match=r"MiB asked for, .* MiB free; lower --batch-size") as caught:
            reduction(large, bank)
        assert "\n" not in str(caught.value)
        same(reduction(x, bank), expected)


def test_widths_and_operands_without_a_kernel_are_refused_in_one_line(drawn: tuple[np.ndarray, Bank]) -> None:
    x, bank = drawn
    narrow = dataclasses.replace(bank, signatures=bank.signatures[:, :48].copy())
    with pytest.raises(UsageError, match="signatures of width 48: the GPU kernels are for 64, 128 or 256"):
        quick()(x[..., :48], narrow)
    with pytest.raises(UsageError, match=r"bf16 and d = 64: GPUs of compute capability 7\.5 cannot"):
        CudaReduction(host_device(sm=75), operand="bf16")(x, bank)
    with pytest.raises(UsageError, match="operand 'int8' is not known"):
        CudaReduction(host_device(), operand="int8")(x, bank)


def test_no_images_give_no_scores(drawn: tuple[np.ndarray, Bank]) -> None:
    x, bank = drawn
    scores = quick()(x[:0], bank)
    assert scores.mmd2.shape == (0,)
    assert scores.contributions.shape == (0, 7)


def test_the_gpu_time_is_reported(drawn: tuple[np.ndarray, Bank]) -> None:
    x, bank = drawn
    assert quick().submit(x, bank).milliseconds == 0.25
