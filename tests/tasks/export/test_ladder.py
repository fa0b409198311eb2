"""The first rung that passes wins, and an int8 graph keeps as few layers in fp32 as the gate allows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mdmf_deploy.bundle.manifest import Verification
from mdmf_deploy.bundle.recipe import GateLimits, Preprocessing
from mdmf_deploy.hardware.host import saturates_int8
from mdmf_deploy.runtime import Engine, installed
from mdmf_deploy.tasks.export.export import verify_everywhere
from mdmf_deploy.tasks.export.int8 import Restorable
from mdmf_deploy.tasks.export.ladder import Candidate, Ladder, fewest, most_worth_keeping, rank
from mdmf_deploy.tasks.verify import Gate, SourceSignatures

MakeLadder = Callable[..., Ladder]
LAYERS = [f"layer{i}" for i in range(30)]
COARSE = ("blocks.3.attn.proj", "head.layers.0")


@given(st.integers(1, 30), st.integers(0, 30))
def test_the_search_finds_the_fewest_that_pass_in_few_trials(needed: int, most: int) -> None:
    tried: list[int] = []

    def passes(kept: Sequence[str]) -> bool:
        assert list(kept) == LAYERS[: len(kept)]
        tried.append(len(kept))
        return len(kept) >= needed

    found = fewest(LAYERS, passes, most)
    assert found == (LAYERS[:needed] if needed <= most else None)
    assert len(tried) == len(set(tried)) <= 11
    assert all(1 <= size <= most for size in tried)


@given(st.sets(st.integers(1, 30)), st.integers(0, 30))
def test_the_result_of_the_search_has_passed(good: set[int], most: int) -> None:
    found = fewest(LAYERS, lambda kept: len(kept) in good, most)
    assert found is None or (len(found) in good and len(found) <= most)


def test_the_worst_come_first_and_equals_stay_in_order() -> None:
    errors = dict.fromkeys(LAYERS, 1.0) | {"layer7": 3.0, "layer3": 2.0, "layer9": np.nan}
    assert rank(LAYERS, errors.__getitem__)[:4] == ["layer9", "layer7", "layer3", "layer0"]


def test_half_of_the_layers_may_stay() -> None:
    assert [most_worth_keeping(count) for count in (0, 1, 25)] == [0, 0, 12]


def coarsened(restorable: Restorable, int8: onnx.ModelProto) -> onnx.ModelProto:
    """The int8 graph with the activations of the coarse layers rounded to steps three hundred times as wide."""

    def inputs(kept: Sequence[str]) -> dict[str, list[str]]:
        model = onnx.load(restorable.variant(kept, "names"), load_external_data=False)
        return {node.name: list(node.input) for node in model.graph.node if node.op_type == "MatMul"}

    none, kept = inputs(()), inputs(COARSE)
    model = onnx.ModelProto()
    model.CopyFrom(int8)
    made_by = {output: node for node in model.graph.node for output in node.output}
    for node in model.graph.node:
        if node.name in kept and kept[node.name] != none[node.name]:
            scale = made_by[node.input[0]].input[1]
            (tensor,) = (tensor for tensor in model.graph.initializer if tensor.name == scale)
            tensor.CopyFrom(onnx.numpy_helper.from_array(300 * onnx.numpy_helper.to_array(tensor), scale))
    return model


class Strict:
    """Held-back images on which an engine is refused whenever `refuse(engine, gate)` says so."""

    def __init__(self, held: SourceSignatures, refuse: Callable[[Engine, Gate], bool]) -> None:
        self.paths, self.by_hash = held.paths, held.by_hash
        self._held, self._refuse = held, refuse

    def judge(self, engine: Engine, preprocessing: Preprocessing, gate: Gate) -> Verification:
        if self._refuse(engine, gate):
            gate = replace(gate, limits=GateLimits(max_fpr_change=-1.0))
        return self._held.judge(engine, preprocessing, gate)


@pytest.fixture(scope="module")
def searched(
    make_ladder: MakeLadder,
    candidate: Candidate,
    restorable: Restorable,
    tiny_quantised: onnx.ModelProto,
    loose: GateLimits,
) -> tuple[Ladder, Candidate, list[str]]:
    """A ladder, its candidate, and its log. Two layers are quantised far too coarsely.

    The gate refuses the first graph that is judged against its own bank.
    """
    coarse = coarsened(restorable, tiny_quantised)
    own_banks: list[str] = []

    def first_own_bank(engine: Engine, gate: Gate) -> bool:
        if engine.precision == "int8" and gate.bank.model_sha256 != candidate.bank.bank.model_sha256:
            own_banks.append(gate.bank.model_sha256)
        return len(own_banks) == 1

    lines: list[str] = []
    ladder = make_ladder(loose, quantise=lambda fp32, crops: coarse, log=lines.append)
    ladder.held = Strict(ladder.held, first_own_bank)
    found, refused = ladder.climb(["int8"])
    assert found is not None, lines
    assert refused == ()
    return ladder, found, lines


def test_only_layers_that_change_decisions_stay_in_fp32(searched: tuple[Ladder, Candidate, list[str]]) -> None:
    _, _, lines = searched
    assert any("ranking 24 layers" in line for line in lines)
    assert "int8: 2 layers in fp32 are too few against its own bank" in lines
    trials = [line for line in lines if line.startswith("int8: 2 of 24 layers in fp32")]
    assert trials
    assert all(line.endswith("passes") and all(name in line for name in COARSE) for line in trials)
    assert not any(line.startswith("int8: 1 of 24") and line.endswith("passes") for line in lines)


def test_an_int8_graph_refused_by_its_own_bank_keeps_more_layers(
    searched: tuple[Ladder, Candidate, list[str]],
) -> None:
    _, found, _ = searched
    assert found.manifest.model.precision == "int8"
    assert len(found.manifest.model.kept) == 3
    assert set(found.manifest.model.kept[:2]) == set(COARSE)


def test_every_runtime_verifies_the_mixed_graph(searched: tuple[Ladder, Candidate, list[str]]) -> None:
    ladder, found, _ = searched
    records = verify_everywhere(ladder, found, installed())
    # OpenVINO is refused for int8 where sums saturate.
    able = [name for name in installed() if name != "openvino" or not saturates_int8()]
    assert [(record.runtime, record.passed) for record in records] == [(name, True) for name in able]
    assert all(record.images_per_second > 0 for record in records)
    assert all(record.reference.endswith("; the layers in fp32 were chosen on them") for record in records)


def test_a_refused_rung_falls_back_and_says_why(make_ladder: MakeLadder, tiny_quantised: onnx.ModelProto) -> None:
    # Between the rounding of int8 and that of fp32 on this model.
    strict = GateLimits(max_score_change=1e-4)
    found, refused = make_ladder(strict, quantise=lambda fp32, crops: tiny_quantised).climb(["int8", "fp32"])
    assert found is not None
    assert found.manifest.model.precision == "fp32"
    (refusal,) = refused
    assert refusal.precision == "int8"
    assert refusal.reason.startswith(
        "more than half of its 24 layers would have to stay in fp32; with 12 it misses max_score_change"
    )


def test_int8_is_not_tried_where_fp32_misses_the_limits(make_ladder: MakeLadder) -> None:
    def never(fp32: Path, crops: np.ndarray) -> onnx.ModelProto:
        raise AssertionError

    ladder = make_ladder(GateLimits(), quantise=never)
    ladder.held = Strict(ladder.held, lambda engine, gate: True)
    found, refused = ladder.climb(["int8"])
    assert found is None
    assert [refusal.reason for refusal in refused] == ["the fp32 graph that it is made from misses the limits"]
