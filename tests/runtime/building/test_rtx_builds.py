"""The graphs of recipes, in each precision, parse and build in TensorRT-RTX without a GPU.

This proves little about TensorRT itself, which has kernels of its own and is not installed here. But both have the same
parser and the same rules of strong typing, so a graph that RTX refuses would hardly build there. No engine runs here:
that takes a GPU, and `mdmf verify --runtime rtx`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

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

needed("tensorrt_rtx")

TURING, ADA, BLACKWELL = (7, 5), (8, 9), (12, 0)
# Blocks are all alike, so ViT-S is built with fewer of its 12.
BLOCKS = 4
SMALL = Profile(summary="For tests.", batch=BatchRange(min=1, opt=4, max=8), workspace_mib=512, name="small")


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep the plans of this module, and shorten ViT-S."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MDMF_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setitem(ARCHITECTURES, "dinov2_vits14", replace(ARCHITECTURES["dinov2_vits14"], depth=BLOCKS))
        yield


def fp32(recipe_name: str, folder: Path) -> Path:
    """Write the recipe's graph with random weights."""
    recipe = load_recipe(recipe_name)
    torch.manual_seed(0)
    detector = MdmfModel(recipe)
    torch.nn.init.trunc_normal_(detector.backbone.pos_embed, std=0.02)
    folder.mkdir()
    return trace(detector, recipe, folder / MODEL, {})


def lowered(graph: Path, precision: Precision) -> Path:
    destination = graph.parent.parent / precision / MODEL
    destination.parent.mkdir(exist_ok=True)
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


@pytest.fixture(scope="module")
def starter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fp32("starter", tmp_path_factory.mktemp("starter") / "fp32")


@pytest.fixture(scope="module")
def vits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fp32("dinov2_vits14", tmp_path_factory.mktemp("vits") / "fp32")


@pytest.mark.parametrize("capability", [ADA, BLACKWELL])
def test_the_shipped_starter(capability: tuple[int, int]) -> None:
    shipped = Bundle.open("starter")
    assert shipped.manifest.model.precision == "int8"
    plan = obtain(BuildRequest(shipped, RTX, RTX.load(), SMALL, capability), lambda text: None)
    assert find(plan.card.key) == plan
    assert_complete(plan.card, 64)


def test_the_starter_in_floating_point(starter: Path) -> None:
    half_graph = lowered(starter, "fp16")
    full, half = built(starter, "fp32"), built(half_graph, "fp16")
    for card in (full, half):
        assert_complete(card, 64)
    assert half.size < 0.75 * full.size
    # Turing has no float32 products. This builds because fused attention computes its scores inside one kernel.
    assert_complete(built(half_graph, "fp16", TURING), 64)


def test_vits_in_all_precisions(vits: Path) -> None:
    full, half, whole = (built(lowered(vits, precision), precision) for precision in ("fp32", "fp16", "int8"))
    for card in (full, half, whole):
        assert_complete(card, 128)
    # Weights keep the graph's types, of 4, 2 and 1 bytes. Kernels take up part of the difference.
    weights = sum(file.stat().st_size for file in vits.parent.iterdir()) / 4
    assert full.size - half.size > 0.8 * 2 * weights
    assert half.size - whole.size > 0.6 * weights
    # The attention of each block is one kernel.
    assert half.fused_attention == BLOCKS


def assert_complete(card: PlanCard, width: int) -> None:
    (images,), (signatures,) = card.inputs, card.outputs
    assert (images.name, images.shape, images.type) == ("images", (-1, 3, 224, 224), "FLOAT")
    assert (signatures.name, signatures.shape, signatures.type) == ("signatures", (-1, 49, width), "FLOAT")
    assert card.layers
    assert card.fused_attention is not None
