"""In ONNX Runtime, the exported preprocessing gives our bits, and the reduction our scores to float32 rounding."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from unittest import mock

import numpy as np
import onnxruntime
import pytest
from helpers.drawn_banks import drawn
from helpers.float32_mmd import EPS, naive_float32
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import ModelProto
from onnx.reference import ReferenceEvaluator

from mdmf_deploy.bundle.bank import Bank
from mdmf_deploy.bundle.bundle import Bundle
from mdmf_deploy.bundle.manifest import PROBES
from mdmf_deploy.bundle.probe_images import probe_crops, probes_from_bytes
from mdmf_deploy.bundle.recipe import Preprocessing
from mdmf_deploy.errors import BankError
from mdmf_deploy.images.crops import normalise
from mdmf_deploy.mmd.compress.bank_rows import MemoryRows
from mdmf_deploy.mmd.compress.fit import compress
from mdmf_deploy.mmd.operands import BankOperands
from mdmf_deploy.mmd.reference import ReferenceReduction
from mdmf_deploy.tasks.triton import graphs
from mdmf_deploy.tasks.triton.graphs import (
    CONTRIBUTIONS,
    CROPS,
    SCORE,
    SIGNATURES,
    preprocessing_graph,
    reduction_graph,
)

Outputs = dict[str, np.ndarray]


def opened(graph: ModelProto) -> Callable[[np.ndarray], Outputs]:
    """Return the graph in ONNX Runtime, as a function of signatures."""
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return lambda x: dict(zip(names, session.run(names, {SIGNATURES: x}), strict=True))


def run(graph: ModelProto, x: np.ndarray) -> Outputs:
    return opened(graph)(x)


def scored(x: np.ndarray, bank: Bank) -> Outputs:
    return run(reduction_graph(bank, x.shape[1], {}), x)


def assert_ours(outputs: Outputs, x: np.ndarray, bank: Bank) -> None:
    """Allow at most twice the error of plain float32, plus rounding."""
    exact = ReferenceReduction()(x, bank)
    assert outputs[SCORE].shape == (len(x), 1)
    assert outputs[CONTRIBUTIONS].shape == x.shape[:2]
    for image in range(len(x)):
        baseline = naive_float32(x[image], bank)
        allowed = 2 * np.abs(baseline - exact.contributions[image]).max() + 4 * EPS
        assert np.abs(outputs[CONTRIBUTIONS][image] - exact.contributions[image]).max() <= allowed
        allowed = 2 * abs(float(baseline.mean(dtype=np.float32)) - exact.mmd2[image]) + 4 * EPS
        assert abs(outputs[SCORE][image, 0] - exact.mmd2[image]) <= allowed


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize(
    "preprocessing", [Preprocessing(crop=28), Preprocessing(crop=28, mean=(0.1, 0.2, 0.3), std=(0.9, 0.7, 0.3))]
)
def test_the_preprocessing_gives_our_bits_for_every_value_of_every_channel(
    preprocessing: Preprocessing, batch: int
) -> None:
    crops = np.random.default_rng(0).integers(0, 256, (batch, 28, 28, 3), dtype=np.uint8)
    crops[0, :16, :16] = np.arange(256, dtype=np.uint8).reshape(16, 16, 1)
    graph = preprocessing_graph(preprocessing, {})
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    (images,) = session.run(None, {CROPS: crops})
    assert np.array_equal(images, normalise(crops, preprocessing))


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 2**32 - 1),
    images=st.integers(1, 3),
    patches=st.integers(1, 9),
    points=st.integers(1, 70),
    width=st.integers(1, 8),
    sigma=st.floats(0.1, 20),
    weights=st.sampled_from(["equal", "signed", "wild"]),
    tile=st.sampled_from([1, 32, 33, 1024]),
)
def test_the_reduction_is_the_specification(
    seed: int, images: int, patches: int, points: int, width: int, sigma: float, weights: str, tile: int
) -> None:
    x, bank = drawn(seed, images, patches, points, width, sigma, weights)
    with mock.patch.object(graphs, "TILE", tile):
        assert_ours(scored(x, bank), x, bank)


@pytest.mark.parametrize(
    ("patches", "points", "width", "sigma", "weights", "exponent"),
    [
        (49, 8192, 64, 8.0, "equal", np.float32),
        (49, 3000, 128, 16.0, "signed", np.float32),
        (49, 3000, 128, 2.0, "signed", np.float64),
        (16, 1025, 32, 8.0, "wild", np.float64),
        (1, 1, 64, 8.0, "equal", np.float32),
        (49, 1, 64, 0.5, "equal", np.float32),
        (1, 2049, 64, 8.0, "equal", np.float32),
    ],
)
def test_banks_of_all_kinds(
    patches: int, points: int, width: int, sigma: float, weights: str, exponent: type[np.floating]
) -> None:
    x, bank = drawn(points, 2, patches, points, width, sigma, weights)
    assert BankOperands(bank).exponent is exponent
    assert_ours(scored(x, bank), x, bank)


def test_the_starters_scores() -> None:
    bundle = Bundle.open("starter")
    crops = probe_crops(bundle.manifest.preprocessing.crop)
    x = probes_from_bytes((bundle.path / PROBES).read_bytes(), crops, PROBES)
    assert_ours(scored(x[:4], bundle.bank), x[:4], bundle.bank)


def test_a_compressed_bank() -> None:
    x, whole = drawn(10, 3, 49, 2000, 4, 4.0)
    fitted = compress(MemoryRows(whole.signatures, whole.weights), whole.sigma, whole.self_term, points=60)
    bank = dataclasses.replace(
        whole,
        signatures=fitted.signatures,
        weights=fitted.weights,
        self_term=fitted.self_term,
        source=whole.source[fitted.places],
    )
    assert (bank.weights < 0).any()
    assert_ours(scored(x, bank), x, bank)


def test_another_onnx_runtime_gives_the_same_scores() -> None:
    """ONNX's reference implementation of the operators shares no code with ONNX Runtime."""
    x, bank = drawn(0, 3, 5, 70, 4, 2.0, "signed")
    with mock.patch.object(graphs, "TILE", 32):
        graph = reduction_graph(bank, 5, {})
    there = ReferenceEvaluator(graph).run(None, {SIGNATURES: x})
    for expected, values in zip(run(graph, x).values(), there, strict=True):
        np.testing.assert_allclose(values, expected, rtol=4 * EPS, atol=4 * EPS)


def test_contributions_average_to_the_score() -> None:
    x, bank = drawn(1, 4, 9, 300, 16, 4.0)
    outputs = scored(x, bank)
    assert outputs[CONTRIBUTIONS].mean(axis=1, dtype=np.float64) == pytest.approx(outputs[SCORE][:, 0], abs=EPS)


def test_a_score_does_not_depend_on_the_batch() -> None:
    x, bank = drawn(2, 33, 49, 2500, 16, 4.0)
    reduce = opened(reduction_graph(bank, 49, {}))
    whole = reduce(x)
    for size in (1, 7, 32):
        parts = [reduce(x[start : start + size]) for start in range(0, len(x), size)]
        for name in (SCORE, CONTRIBUTIONS):
            np.testing.assert_allclose(np.concatenate([part[name] for part in parts]), whole[name], rtol=0, atol=EPS)


def test_no_tile_is_larger_than_the_limit_and_hardly_a_point_is_added() -> None:
    for points in (1, 32, 1024, 1025, 5000):
        _, bank = drawn(3, 1, 1, points, 4, 2.0)
        graph = reduction_graph(bank, 1, {}).graph
        (count, width, length) = next(tuple(one.dims) for one in graph.initializer if one.name == "bank")
        assert width == 6
        assert length <= 1024
        assert points <= count * length < points + 32 + count


@pytest.mark.parametrize("sigma", [8.0, 0.5])
def test_signatures_that_are_not_finite_get_no_score(sigma: float) -> None:
    x, bank = drawn(4, 4, 5, 100, 16, sigma)
    x[0, 2, 3], x[1, 2, 3], x[2, 2] = np.nan, np.inf, -np.inf
    outputs = scored(x, bank)
    assert np.isnan(outputs[SCORE][:3]).all()
    assert np.isfinite(outputs[SCORE][3:]).all()


@pytest.mark.parametrize("sigma", [3.0, 0.5])
@pytest.mark.parametrize("far", [1e4, 1e18, 3e38])
def test_a_signature_far_from_all_others_is_like_none_but_itself(sigma: float, far: float) -> None:
    _, bank = drawn(5, 1, 1, 100, 16, sigma)
    x = np.zeros((1, 3, 16), np.float32)
    # Towards one point of the bank, so that not even its product with it is a float32.
    x[0, 0] = far * np.sign(bank.signatures[0] - bank.signatures.mean(axis=0))
    x[0, 1], x[0, 2, 5] = -x[0, 0], far
    outputs = scored(x, bank)
    assert outputs[CONTRIBUTIONS] == pytest.approx(1 / 3 + bank.self_term, rel=4 * EPS)


def test_an_image_far_from_the_bank_is_still_like_itself() -> None:
    """The image is so far away that float64 cannot hold its squared norm exactly."""
    x, bank = drawn(6, 1, 9, 100, 256, 64.0)
    x = 4 * x + np.float32(8e6)
    assert (ReferenceReduction()(x, bank).contributions > 0.2).all()
    assert_ours(scored(x, bank), x, bank)


def test_no_kernel_value_exceeds_1_however_small_the_bandwidth() -> None:
    _, bank = drawn(7, 1, 1, 40, 16, 1e-10)
    x = np.repeat(bank.signatures[:20], 2, axis=0).reshape(2, 20, 16)
    contributions = scored(x, bank)[CONTRIBUTIONS]
    assert (contributions >= bank.self_term - 2.0 - EPS).all()
    assert (contributions <= bank.self_term + 1.0 + EPS).all()


def test_only_standard_operators_of_an_old_opset() -> None:
    _, bank = drawn(8, 1, 1, 3, 4, 2.0)
    graph = reduction_graph(bank, 1, {"mdmf.bundle_id": "abc"})
    assert [(opset.domain, opset.version) for opset in graph.opset_import] == [("", 17)]
    (scan,) = (node for node in graph.graph.node if node.op_type == "Scan")
    (body,) = (attribute.g for attribute in scan.attribute if attribute.name == "body")
    assert all(node.domain == "" for node in [*graph.graph.node, *body.node])
    # ONNX Runtime 1.18 fuses these to an operator that it cannot run in float64.
    transposed = {name for node in graph.graph.node if node.op_type == "Transpose" for name in node.output}
    assert not any(transposed & set(node.input) for node in graph.graph.node if node.op_type == "MatMul")
    assert {entry.key: entry.value for entry in graph.metadata_props} == {"mdmf.bundle_id": "abc"}


def test_a_bank_too_large_for_a_graph_must_be_compressed(monkeypatch: pytest.MonkeyPatch) -> None:
    _, bank = drawn(9, 1, 1, 1000, 4, 2.0)
    monkeypatch.setattr(graphs, "LARGEST_GRAPH", 1000)
    with pytest.raises(BankError, match="mdmf bank compress"):
        reduction_graph(bank, 1, {})
