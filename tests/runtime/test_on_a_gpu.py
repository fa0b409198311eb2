"""The GPU runtimes on a real GPU. Their contract is in test_engines.py."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from mdmf_deploy.bundle.bundle import Bundle
from mdmf_deploy.errors import RuntimeUnavailable
from mdmf_deploy.hardware.device import DeviceView, device_view, open_device
from mdmf_deploy.hardware.gpu import probe
from mdmf_deploy.runtime import ON_GPU, Engine, open_engine
from mdmf_deploy.tasks.verify import verify_probes

pytestmark = pytest.mark.gpu


def opened_or_skipped(name: str, bundle: Bundle) -> Engine:
    """Open an engine. Skip the test if its library is missing, and fail if the GPU is missing."""
    probe()
    try:
        return open_engine(name, bundle)
    except RuntimeUnavailable as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module", params=sorted(ON_GPU))
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    opened = opened_or_skipped(request.param, Bundle.open("starter"))
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((70, 3, 224, 224)).astype(np.float32)


def test_the_starters_decisions_hold(engine: Engine) -> None:
    record = verify_probes(Bundle.open("starter"), engine)
    assert record.passed, record.reasons
    assert record.environment["gpu"] == open_device().gpu.name


@pytest.mark.parametrize("count", [1, 8, 33, 70])
def test_a_signature_depends_on_neither_its_batch_nor_its_place(count: int, engine: Engine, images: np.ndarray) -> None:
    order = np.random.default_rng(count).permutation(70)[:count]
    np.testing.assert_array_equal(engine(images[order]), engine(images)[order])


@pytest.mark.parametrize("count", [5, 70])
def test_a_result_on_the_gpu_equals_that_of_a_call(count: int, engine: Engine, images: np.ndarray) -> None:
    device = open_device()
    made = engine.on_device(images[:count])  # type: ignore[attr-defined]
    view = device_view(made)
    stream = device.stream() if view.stream is None else device.stream(view.stream)
    nbytes = 4 * int(np.prod(view.shape))
    fetched = device.allocate(nbytes, "", pinned=True)
    device.copy(fetched, _At(view), nbytes, stream)
    stream.synchronize()
    extracted = fetched.host.view(np.float32).reshape(view.shape).copy()
    np.testing.assert_array_equal(extracted, engine(images[:count]))


class _At:
    """Memory to copy from that the engine owns."""

    def __init__(self, view: DeviceView) -> None:
        self.pointer, self.nbytes = view.pointer, 4 * int(np.prod(view.shape))


def test_a_second_start_builds_nothing(engine: Engine, messages: Callable[[], str]) -> None:
    open_engine(engine.name, Bundle.open("starter")).close()
    assert "building" not in messages()


@pytest.mark.parametrize("name", ["tensorrt", "rtx"])
def test_a_plan_that_was_cut_short_is_built_again(
    name: str, tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, messages: Callable[[], str]
) -> None:
    monkeypatch.setenv("MDMF_CACHE", str(tmp_path))
    images = np.zeros((2, 3, 56, 56), np.float32)
    first = opened_or_skipped(name, Bundle.open(tiny_bundle))
    extracted = first(images)
    first.close()
    (plan,) = tmp_path.rglob("*.plan")
    plan.write_bytes(plan.read_bytes()[: -(plan.stat().st_size // 3)])
    messages()
    again = open_engine(name, Bundle.open(tiny_bundle))
    np.testing.assert_allclose(again(images), extracted, atol=1e-4)
    again.close()
    assert "is damaged" in messages()
