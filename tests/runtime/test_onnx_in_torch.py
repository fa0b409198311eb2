"""Exported graphs in PyTorch next to ONNX Runtime without its optimisations."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from helpers.backbones import TINY, randomised
from helpers.libraries import needed_for_int8
from helpers.synthetic_photos import write_photos
from onnx import ModelProto, TensorProto, helper, numpy_helper
from torch.utils._python_dispatch import TorchDispatchMode

from mdmf_deploy.bundle.bundle import Bundle
from mdmf_deploy.bundle.manifest import INPUT, MODEL, OUTPUT
from mdmf_deploy.bundle.recipe import Backbone, Export, Head, Preprocessing, Recipe
from mdmf_deploy.errors import BundleError
from mdmf_deploy.model.architectures import ARCHITECTURES
from mdmf_deploy.model.pfs import MdmfModel
from mdmf_deploy.runtime.onnx_in_torch import OnnxGraph
from mdmf_deploy.tasks.export.int8 import quantise
from mdmf_deploy.tasks.export.ladder import center_crops
from mdmf_deploy.tasks.export.precision import to_fp16
from mdmf_deploy.tasks.export.trace import trace

# Name, operator set and head of each form of graph. Later sets have operators for GELU and attention.
# The starter is a plain model in 18, with GELU in its head.
MODELS = [
    ("swiglu_registers", 18, {"norm": "layernorm", "normalise": True}),
    ("plain", 23, {"activation": "softplus", "norm": "batchnorm"}),
]
# A sum in another order moves a signature by this much, and an int8 rounding that it tips by more.
ERROR = {"fp32": 1e-5, "fp16": 4e-3, "int8": 2e-2}


def run(path: Path, images: np.ndarray, *, apart: bool = False, **options: bool) -> np.ndarray:
    program = OnnxGraph(path, **options).program(len(images), images.shape[1:], apart=apart)
    with torch.inference_mode():
        return program(torch.tensor(images)).numpy()


def as_written(path: Path, images: np.ndarray) -> np.ndarray:
    """Return ONNX Runtime's signatures, operator by operator."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    (signatures,) = onnxruntime.InferenceSession(path, options).run(None, {INPUT: images})
    return signatures


@pytest.fixture(scope="module", params=MODELS, ids=lambda param: f"{param[0]}-{param[1]}")
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a function that gives the graph of a small model in a precision."""
    name, opset, head = request.param
    folder = tmp_path_factory.mktemp("graphs")
    recipe = Recipe(
        name="tiny",
        summary="A random model for tests.",
        backbone=Backbone(architecture="tiny"),
        preprocessing=Preprocessing(crop=56),
        head=Head(pool=3, hidden=(16,), signature=8, **head),
        export=Export(opset=opset),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ARCHITECTURES, "tiny", replace(TINY[name], depth=1))
        model = randomised(MdmfModel(recipe))
        fp32 = trace(model, recipe, folder / "fp32.onnx", {})

    def graph(precision: str) -> Path:
        path = folder / f"{precision}.onnx"
        if path.exists():
            return path
        if precision == "fp16":
            to_fp16(fp32, path)
        elif precision == "int8":
            needed_for_int8()
            write_photos(folder, 4, first_seed=0)
            photos = sorted(one for one in folder.iterdir() if one.suffix != ".onnx")
            onnx.save(quantise(fp32, center_crops(photos, recipe.preprocessing)), path)
        return path

    return graph


@pytest.mark.parametrize("precision", ERROR)
def test_signatures_are_those_of_the_graph(precision: str, exported: Callable[[str], Path]) -> None:
    path = exported(precision)
    images = np.random.default_rng(0).standard_normal((3, 3, 56, 56)).astype(np.float32)
    expected = as_written(path, images)
    assert expected.std() > 0.05
    for merge, apart in itertools.product((False, True), repeat=2):
        extracted = run(path, images, merge=merge, apart=apart)
        assert extracted.dtype == np.float32
        np.testing.assert_allclose(extracted, expected, rtol=0, atol=ERROR[precision])


class Operators(TorchDispatchMode):
    """Count the calls of PyTorch's own operators by their names."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls[function.overloadpacket.__name__] += 1
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("merge", [False, True])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_products_apart_mix_the_rows_of_no_two_images(
    precision: str, merge: bool, exported: Callable[[str], Path]
) -> None:
    graph = OnnxGraph(exported(precision), merge=merge)
    mixing = {"mm", "addmm", "convolution"}
    for apart in (False, True):
        program = graph.program(2, (3, 56, 56), apart=apart)
        # Without inference mode: in it, no mode sees an operator's parts.
        with torch.no_grad(), Operators() as seen:
            program(torch.zeros(2, 3, 56, 56))
        assert bool(mixing & seen.calls.keys()) is not apart, seen.calls


def test_the_starters_signatures_stay_with_products_apart() -> None:
    path = Bundle.open("starter").model_path
    images = np.random.default_rng(0).standard_normal((2, 3, 224, 224)).astype(np.float32)
    together, apart = (run(path, images, merge=True, apart=apart) for apart in (False, True))
    # Noise is no image: values near the border of two int8 steps differ more often than in photographs.
    np.testing.assert_allclose(apart, together, rtol=0, atol=2 * ERROR["int8"])


def test_a_matrix_before_a_stack_is_multiplied_with_each_image(tmp_path: Path) -> None:
    weight = np.arange(12, dtype=np.float32).reshape(3, 4)
    onnx.save(model_of(helper.make_node("MatMul", ["weight", INPUT], [OUTPUT]), weight=weight), tmp_path / MODEL)
    images = np.random.default_rng(0).standard_normal((2, 1, 4, 8)).astype(np.float32)
    np.testing.assert_allclose(run(tmp_path / MODEL, images, apart=True), weight @ images, rtol=1e-5)


def test_merging_calls_pytorchs_own_functions(exported: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    called: Counter[str] = Counter()
    for name in ("gelu", "linear", "scaled_dot_product_attention"):
        function = getattr(torch.nn.functional, name)

        def counting(*given: Any, name: str = name, function: Any = function, **options: Any) -> torch.Tensor:
            called[name] += 1
            return function(*given, **options)

        monkeypatch.setattr(torch.nn.functional, name, counting)
    program = OnnxGraph(exported("fp16"), merge=True).program(2, (3, 56, 56))
    called.clear()
    program(torch.zeros(2, 3, 56, 56))
    # Two in attention, two in the feed-forward layer, two in the head.
    assert called["linear"] == 6
    assert called["gelu"] >= 1
    assert called["scaled_dot_product_attention"] == 1


def test_the_starter_is_run_as_its_graph_says() -> None:
    bundle = Bundle.open("starter")
    images = np.random.default_rng(0).standard_normal((1, 3, 224, 224)).astype(np.float32)
    expected = as_written(bundle.model_path, images)
    for merge in (False, True):
        assert np.abs(run(bundle.model_path, images, merge=merge) - expected).max() < ERROR["int8"]


def model_of(*nodes: onnx.NodeProto, opset: int = 18, given: str = INPUT, **constants: np.ndarray) -> ModelProto:
    """Return a graph from images (batch, 1, 1, 8)."""
    graph = helper.make_graph(
        list(nodes),
        "test",
        [helper.make_tensor_value_info(given, TensorProto.FLOAT, ["batch", 1, 1, 8])],
        [helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def test_quantising_rounds_half_to_even_and_saturates(tmp_path: Path) -> None:
    model = model_of(
        helper.make_node("QuantizeLinear", [INPUT, "scale", "zero"], ["quantised"]),
        helper.make_node("DequantizeLinear", ["quantised", "scale", "zero"], [OUTPUT]),
        scale=np.float32(0.5).reshape(()),
        zero=np.int8(0).reshape(()),
    )
    onnx.save(model, tmp_path / MODEL)
    images = np.array([0.25, 0.75, -0.25, -0.75, 63.5, 64.0, -64.25, 1e9], np.float32).reshape(1, 1, 1, 8)
    assert run(tmp_path / MODEL, images).reshape(-1).tolist() == [0.0, 1.0, 0.0, -1.0, 63.5, 63.5, -64.0, 63.5]


TANH = helper.make_node("Tanh", [INPUT], [OUTPUT])
SOFTMAX = helper.make_node("Softmax", [INPUT], [OUTPUT])


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (model_of(TANH), "the operator Tanh"),
        (model_of(helper.make_node("Gelu", [INPUT], [OUTPUT], domain="com.microsoft")), "com.microsoft.Gelu"),
        (model_of(helper.make_node("Softmax", [INPUT], [OUTPUT], sharpness=2.0)), "Softmax's attribute 'sharpness'"),
        (model_of(SOFTMAX, opset=17), "operator sets .*17.*, expected one of 18 to 23"),
        (model_of(SOFTMAX, given="pixels"), "inputs and outputs other than 'images' and 'signatures'"),
        (model_of(helper.make_node("Softmax", [INPUT], ["other"])), "no operator makes 'signatures'"),
        (model_of(helper.make_node("Softmax", ["absent"], [OUTPUT])), "Softmax before its input 'absent'"),
        (
            model_of(helper.make_node("Cast", [INPUT], [OUTPUT], to=TensorProto.DOUBLE)),
            r"Cast at 'signatures' \(to=11\)",
        ),
        (model_of(helper.make_node("Add", [INPUT, "half"], [OUTPUT]), half=np.ones(8, np.float16)), "Add .*float16"),
        (model_of(helper.make_node("Add", [INPUT, "many"], [OUTPUT]), many=np.ones(7, np.float32)), "Add at 'sign"),
        (model_of(SOFTMAX, wide=np.ones(2, np.float64)), "'wide' of type DOUBLE"),
        (
            model_of(
                helper.make_node("QuantizeLinear", [INPUT, "scale", "zero"], ["quantised"]),
                helper.make_node("DequantizeLinear", ["quantised", "scale", "zero"], [OUTPUT]),
                scale=np.float32(0.5).reshape(()),
                zero=np.int8(3).reshape(()),
            ),
            "a zero point other than 0",
        ),
    ],
    ids=lambda given: given if isinstance(given, str) else "",
)
def test_anything_else_is_refused_by_its_name(model: ModelProto, reason: str, tmp_path: Path) -> None:
    path = tmp_path / MODEL
    onnx.save(model, path)
    with pytest.raises(BundleError, match=f"{MODEL}: the PyTorch runtimes do not run .*{reason}") as failure:
        OnnxGraph(path).program(2, (1, 1, 8))
    assert "\n" not in str(failure.value)
    assert str(failure.value).endswith("use another runtime, or export the bundle again")


def test_a_file_that_is_no_graph_is_an_error_of_one_line(tmp_path: Path) -> None:
    (tmp_path / MODEL).write_bytes(b"not a graph")
    with pytest.raises(BundleError, match=r"model\.onnx: onnx .* cannot read it") as failure:
        OnnxGraph(tmp_path / MODEL)
    assert "\n" not in str(failure.value)


def test_weights_may_lie_in_a_file_beside_the_graph(tmp_path: Path) -> None:
    weight = np.arange(16_384, dtype=np.float32).reshape(8, 2048)
    model = model_of(helper.make_node("MatMul", [INPUT, "weight"], [OUTPUT]), weight=weight)
    onnx.save(model, tmp_path / MODEL, save_as_external_data=True, location=f"{MODEL}.data")
    images = np.ones((2, 1, 1, 8), np.float32)
    np.testing.assert_array_equal(run(tmp_path / MODEL, images), images @ weight)
    (tmp_path / f"{MODEL}.data").unlink()
    with pytest.raises(BundleError, match="cannot read it"):
        OnnxGraph(tmp_path / MODEL)
