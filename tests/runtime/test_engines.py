"""The contract of mdmf_deploy.runtime.Engine, for every implementation, and what is special to ONNX Runtime's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, nullcontext
from pathlib import Path

import msgspec
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from helpers import handmade
from helpers.libraries import needed_for_int8
from onnx.external_data_helper import set_external_data

from mdmf_deploy.bundle.bundle import Bundle, write_bundle
from mdmf_deploy.bundle.manifest import MODEL, MODEL_DATA
from mdmf_deploy.bundle.recipe import Recipe
from mdmf_deploy.errors import BundleError, RuntimeUnavailable
from mdmf_deploy.hardware.host import saturates_int8
from mdmf_deploy.model.pfs import MdmfModel, TorchEngine
from mdmf_deploy.runtime import ENGINES, Engine, open_engine
from mdmf_deploy.runtime.ort import OrtEngine
from mdmf_deploy.tasks.export.int8 import Restorable

REFERENCE = "pytorch"


@pytest.fixture(scope="module", params=[*ENGINES, REFERENCE])
def engine(request: pytest.FixtureRequest, tiny_bundle: Path, tiny_recipe: Recipe) -> Iterator[Engine]:
    if request.param == REFERENCE:
        torch.manual_seed(0)
        yield TorchEngine(MdmfModel(tiny_recipe))
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


@pytest.fixture
def many(engine: Engine, images: np.ndarray) -> np.ndarray:
    """All images, or fewer for PyTorch, which is slow."""
    return images[:9] if engine.name in (REFERENCE, "torch") else images


def test_signatures_are_float32_and_the_engine_names_itself(engine: Engine, images: np.ndarray) -> None:
    signatures = engine(images[:3])
    assert signatures.shape == (3, 4, 8)
    assert signatures.dtype == np.float32
    assert engine.name in (*ENGINES, REFERENCE)
    assert engine.precision == "fp32"


@pytest.mark.parametrize("batch", [1, 7, 8])
def test_a_signature_does_not_depend_on_its_batch(engine: Engine, many: np.ndarray, batch: int) -> None:
    whole = engine(many)
    parts = np.concatenate([engine(many[start : start + batch]) for start in range(0, len(many), batch)])
    np.testing.assert_array_equal(parts, whole)


def test_a_signature_does_not_depend_on_its_place(engine: Engine, many: np.ndarray) -> None:
    order = np.random.default_rng(1).permutation(len(many))
    np.testing.assert_array_equal(engine(many[order]), engine(many)[order])


@pytest.fixture(scope="module")
def int8_bundle(request: pytest.FixtureRequest, tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The tiny bundle's model in int8 except its first layer, with the weights in a file beside the graph."""
    needed_for_int8()
    graphs = Restorable(tiny_bundle / MODEL, request.getfixturevalue("tiny_quantised"), tmp_path_factory.mktemp("int8"))
    return Bundle(graphs.variant(["patch_embed.proj"], MODEL).parent, Bundle.open(tiny_bundle).manifest)


@pytest.mark.parametrize("name", list(ENGINES))
def test_int8_signatures_depend_on_neither_batch_nor_threads(
    name: str, int8_bundle: Bundle, images: np.ndarray
) -> None:
    try:
        engines = [open_engine(name, int8_bundle, threads) for threads in (1, 2)]
    except RuntimeUnavailable as error:
        pytest.skip(str(error))
    # PyTorch is slow.
    images = images[:9] if name == "torch" else images
    whole = engines[0](images)
    for engine in engines:
        for batch in (1, 7, 8, 32):
            parts = [engine(images[start : start + batch]) for start in range(0, len(images), batch)]
            np.testing.assert_array_equal(np.concatenate(parts), whole)
        engine.close()


@pytest.mark.parametrize("saturates", [False, True])
def test_onnxruntime_uses_exact_int8_products_only_where_it_must(
    saturates: bool, int8_bundle: Bundle, images: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[onnxruntime.SessionOptions] = []
    session = onnxruntime.InferenceSession
    monkeypatch.setattr(
        onnxruntime,
        "InferenceSession",
        lambda path, options, **rest: opened.append(options) or session(path, options, **rest),
    )
    exact = not saturates_int8()
    usual = OrtEngine(int8_bundle, 1)(images)
    monkeypatch.setattr("mdmf_deploy.runtime.ort.saturates_int8", lambda: saturates)
    extracted = OrtEngine(int8_bundle, 1)(images)
    with nullcontext() if saturates else pytest.raises(RuntimeError, match="does not have"):
        assert opened[-1].get_session_config_entry("session.x64quantprecision") == "1"
    # Another kernel computes the same products.
    if exact or saturates:
        np.testing.assert_array_equal(extracted, usual)


def test_the_caller_owns_the_result(engine: Engine, images: np.ndarray) -> None:
    first = engine(images[:2])
    kept = first.copy()
    engine(images[2:4])
    np.testing.assert_array_equal(first, kept)
    first += 1
    np.testing.assert_array_equal(engine(images[:2]), kept)


def test_images_are_not_changed(engine: Engine, images: np.ndarray) -> None:
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


def test_a_graph_that_cannot_be_loaded_is_one_line(bundle_copy: Path) -> None:
    bundle = Bundle(bundle_copy, Bundle.open(bundle_copy).manifest)
    (bundle_copy / MODEL).write_bytes(b"not a graph")
    with pytest.raises(BundleError, match=r"model\.onnx: onnxruntime .* cannot load it") as failure:
        open_engine("onnxruntime", bundle)
    assert "\n" not in str(failure.value)


@pytest.mark.parametrize("name", ["onnxruntime", "openvino", "torch"])
def test_weights_in_a_file_beside_the_graph_are_the_same_weights(name: str, tmp_path: Path) -> None:
    inside = handmade.make_bundle(tmp_path / "inside.mdmf")
    model = onnx.load(inside.model_path)
    set_external_data(model.graph.initializer[0], MODEL_DATA)
    (tmp_path / "moved").mkdir()
    onnx.save(model, tmp_path / "moved" / MODEL)
    files = {**inside.files(), MODEL: tmp_path / "moved" / MODEL, MODEL_DATA: tmp_path / "moved" / MODEL_DATA}
    write_bundle(tmp_path / "beside.mdmf", msgspec.structs.replace(inside.manifest, files={}), files)
    images = np.random.default_rng(0).standard_normal((2, 3, handmade.CROP, handmade.CROP)).astype(np.float32)
    signatures = []
    for folder in ("inside.mdmf", "beside.mdmf"):
        with closing(open_engine(name, Bundle.open(tmp_path / folder))) as engine:
            signatures.append(engine(images))
    np.testing.assert_array_equal(*signatures)
    assert signatures[0].std() > 0.1
