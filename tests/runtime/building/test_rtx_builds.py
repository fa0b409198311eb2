"""The graphs of recipes, in each precision, parse and build in TensorRT-RTX without a GPU.

This proves little about TensorRT itself, which has kernels of its own and is not installed here. But both have the same
parser and the same rules of strong typing, so a graph that RTX refuses would hardly build there. No engine runs here:
that takes a GPU, and `mdmf verify --runtime rtx`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np
import pytest
import torch
from helpers import handmade
from helpers.libraries import needed, needed_for_int8

from mdmf_deploy.bundle.bundle import Bundle
from mdmf_deploy.bundle.manifest import MODEL, FileEntry
from mdmf_deploy.bundle.recipe import Precision, load_recipe
from mdmf_deploy.model.architectures import ARCHITECTURES
from mdmf_deploy.model.pfs import MdmfModel
from mdmf_deploy.runtime.building.flavours import RTX
from mdmf_deploy.runtime.building.obtain import obtain
from mdmf_deploy.runtime.building.plans import BuildRequest, PlanCard, find
from mdmf_deploy.runtime.building.profiles import BatchRange, Profile
from mdmf_deploy.tasks.export.int8 import quantise
from mdmf_deploy.tasks.export.precision import save_graph, to_fp16
from mdmf_deploy.tasks.export.trace import trace

if TYPE_CHECKING:
    from onnx import ModelProto

needed("tensorrt_rtx")

TURING, ADA, BLACKWELL = (7, 5), (8, 9), (12, 0)
# Blocks are all alike, so ViT-S is built with one of its 12.
BLOCKS = 1
LONG = os.environ.get("MDMF_LONG") == "1"
SMALL = Profile(summary="For tests.", batch=BatchRange(min=1, opt=4, max=8), workspace_mib=512, name="small")


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep the plans of this module, and shorten ViT-S."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MDMF_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setitem(ARCHITECTURES, "dinov2_vits14", replace(ARCHITECTURES["dinov2_vits14"], depth=BLOCKS))
        yield


def lowered(graph: Path, precision: Precision, folder: Path) -> Path:
    destination = folder / precision / MODEL
    destination.parent.mkdir()
    if precision == "fp32":
        return graph
    if precision == "fp16":
        return to_fp16(graph, destination)
    needed_for_int8()
    images = np.random.default_rng(0).standard_normal((2, 3, 224, 224)).astype(np.float32)
    return save_graph(quantise(graph, images), destination, precision)


def built(graph: Path, precision: Precision, capability: tuple[int, int] = ADA) -> PlanCard:
    manifest = handmade.manifest(files={MODEL: FileEntry.of(graph)})
    card = msgspec.structs.replace(manifest.model, precision=precision)
    bundle = Bundle(graph.parent, msgspec.structs.replace(manifest, model=card))
    return obtain(BuildRequest(bundle, RTX, RTX.load(), SMALL, capability), lambda text: None).card


def test_the_shipped_starter() -> None:
    shipped = Bundle.open("starter")
    assert shipped.manifest.model.precision == "int8"
    plan = obtain(BuildRequest(shipped, RTX, RTX.load(), SMALL, BLACKWELL), lambda text: None)
    assert find(plan.card.key) == plan
    assert_complete(plan.card, (3, 224, 224), (49, 64))


def test_the_starters_architecture_in_lower_precisions(
    tiny_bundle: Path, tiny_quantised: ModelProto, tmp_path: Path
) -> None:
    """test_compile.py builds it in fp32, and the next test an architecture of the same layers in fp16 for Ada."""
    # Turing has no float32 products. This builds because fused attention computes its scores inside one kernel.
    half = built(lowered(tiny_bundle / MODEL, "fp16", tmp_path), "fp16", TURING)
    assert_complete(half, (3, 56, 56), (4, 8))
    assert half.fused_attention == ARCHITECTURES["starter_vit14"].depth
    (tmp_path / "int8").mkdir()
    whole = save_graph(tiny_quantised, tmp_path / "int8" / MODEL, "int8")
    assert_complete(built(whole, "int8"), (3, 56, 56), (4, 8))


def test_vits_in_half_precision_or_all(tmp_path: Path) -> None:
    """fp32 and int8 take MDMF_LONG=1. Smaller models are built in them in any case."""
    recipe = load_recipe("dinov2_vits14")
    torch.manual_seed(0)
    detector = MdmfModel(recipe)
    torch.nn.init.trunc_normal_(detector.backbone.pos_embed, std=0.02)
    (tmp_path / "traced").mkdir()
    graph = trace(detector, recipe, tmp_path / "traced" / MODEL, {})
    precisions: tuple[Precision, ...] = ("fp32", "fp16", "int8") if LONG else ("fp16",)
    cards = {precision: built(lowered(graph, precision, tmp_path), precision) for precision in precisions}
    for card in cards.values():
        assert_complete(card, (3, 224, 224), (49, 128))
    # Weights keep the graph's types, of 4, 2 and 1 bytes. Kernels take up part of the difference.
    weights = sum(file.stat().st_size for file in graph.parent.iterdir()) / 4
    half = cards["fp16"]
    assert 2 * weights < half.size < 3 * weights
    if LONG:
        assert cards["fp32"].size - half.size > 0.8 * 2 * weights
        assert half.size - cards["int8"].size > 0.5 * weights
    # The attention of each block is one kernel.
    assert half.fused_attention == BLOCKS


def assert_complete(card: PlanCard, image: tuple[int, ...], signature: tuple[int, ...]) -> None:
    (images,), (signatures,) = card.inputs, card.outputs
    assert (images.name, images.shape, images.type) == ("images", (-1, *image), "FLOAT")
    assert (signatures.name, signatures.shape, signatures.type) == ("signatures", (-1, *signature), "FLOAT")
    assert card.layers
    assert card.fused_attention is not None
