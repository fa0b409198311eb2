"""The contract of mdmf_deploy.runtime.Engine, held by every implementation."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from mdmf_deploy.bundle import MODEL, Bundle
from mdmf_deploy.errors import BundleError, RuntimeUnavailable
from mdmf_deploy.model.pfs import Detector
from mdmf_deploy.recipe import Recipe
from mdmf_deploy.runtime import ENGINES, Engine, open_engine
from mdmf_deploy.runtime.torch_reference import TorchEngine

REFERENCE = "pytorch"


@pytest.fixture(scope="module", params=[*ENGINES, REFERENCE])
def engine(request: pytest.FixtureRequest, tiny_bundle: Path, tiny_recipe: Recipe) -> Iterator[Engine]:
    if request.param == REFERENCE:
        torch.manual_seed(0)
        yield TorchEngine(Detector(tiny_recipe))
        return
    try:
        opened = open_engine(request.param, Bundle.open(tiny_bundle))
    except RuntimeUnavailable as error:
        pytest.skip(str(error))
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((32, 3, 56, 56)).astype(np.float32)


def test_it_gives_float32_signatures_and_names_itself(engine: Engine, images: np.ndarray) -> None:
    signatures = engine(images[:3])
    assert signatures.shape == (3, 4, 8)
    assert signatures.dtype == np.float32
    assert engine.name in (*ENGINES, REFERENCE)
    assert engine.precision == "fp32"


@pytest.mark.parametrize("batch", [1, 7, 8])
def test_a_signature_does_not_depend_on_its_batch(engine: Engine, images: np.ndarray, batch: int) -> None:
    whole = engine(images)
    parts = np.concatenate([engine(images[start : start + batch]) for start in range(0, 32, batch)])
    np.testing.assert_array_equal(parts, whole)


def test_the_caller_owns_the_result(engine: Engine, images: np.ndarray) -> None:
    first = engine(images[:2])
    kept = first.copy()
    engine(images[2:4])
    np.testing.assert_array_equal(first, kept)
    first += 1
    np.testing.assert_array_equal(engine(images[:2]), kept)


def test_images_are_left_as_they_were(engine: Engine, images: np.ndarray) -> None:
    given = images[:2].copy()
    given.flags.writeable = False
    engine(given)
    np.testing.assert_array_equal(given, images[:2])


@pytest.mark.parametrize("name", list(ENGINES))
def test_a_closed_engine_cannot_be_called(name: str, tiny_bundle: Path, images: np.ndarray) -> None:
    try:
        opened = open_engine(name, Bundle.open(tiny_bundle))
    except RuntimeUnavailable as error:
        pytest.skip(str(error))
    opened.close()
    with pytest.raises(AttributeError):
        opened(images[:1])


def test_an_unknown_runtime_names_the_known_ones(tiny_bundle: Path) -> None:
    with pytest.raises(RuntimeUnavailable, match="onnxruntime"):
        open_engine("onxruntime", Bundle.open(tiny_bundle))


def test_a_runtime_that_is_not_installed_says_how_to_get_it(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ENGINES, "absent", ("no_such_module", "Engine", "gpu"))
    with pytest.raises(RuntimeUnavailable, match=r"no_such_module; run: pip install 'mdmf-deploy\[gpu\]'"):
        open_engine("absent", Bundle.open(tiny_bundle))


def test_auto_says_what_it_chose(tiny_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chosen = open_engine("auto", Bundle.open(tiny_bundle))
    assert chosen.name == next(iter(ENGINES))
    assert chosen.name in capsys.readouterr().err
    chosen.close()


def test_auto_passes_over_what_is_missing(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rest = dict(ENGINES)
    for name in rest:
        monkeypatch.delitem(ENGINES, name)
    monkeypatch.setitem(ENGINES, "absent", ("no_such_module", "Engine", "gpu"))
    with pytest.raises(RuntimeUnavailable, match="no runtime is installed"):
        open_engine("auto", Bundle.open(tiny_bundle))
    monkeypatch.setitem(ENGINES, "onnxruntime", rest["onnxruntime"])
    open_engine("auto", Bundle.open(tiny_bundle)).close()
    assert "no_such_module" in capsys.readouterr().err


def test_a_graph_that_cannot_be_loaded_is_one_line(bundle_copy: Path) -> None:
    bundle = Bundle.open(bundle_copy)
    (bundle_copy / MODEL).write_bytes(b"not a graph")
    with pytest.raises(BundleError, match=r"model\.onnx: onnxruntime .* cannot load it") as failure:
        open_engine("onnxruntime", bundle)
    assert "\n" not in str(failure.value)
