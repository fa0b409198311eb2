"""The tiny bundle's graph, quantised and restorable, and a ladder over it that needs neither PyTorch nor tracing."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest

from mdmf_deploy.bundle.bundle import Bundle
from mdmf_deploy.bundle.manifest import MODEL
from mdmf_deploy.bundle.recipe import GateLimits
from mdmf_deploy.runtime.ort import OrtEngine
from mdmf_deploy.tasks.export.export import split_reals
from mdmf_deploy.tasks.export.int8 import Restorable
from mdmf_deploy.tasks.export.ladder import Candidate, Ladder
from mdmf_deploy.tasks.verify import SourceSignatures, signatures_by_hash


@pytest.fixture(scope="session")
def images() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((4, 3, 56, 56)).astype(np.float32)


@pytest.fixture(scope="session")
def restorable(
    tiny_bundle: Path, tiny_quantised: onnx.ModelProto, tmp_path_factory: pytest.TempPathFactory
) -> Restorable:
    return Restorable(tiny_bundle / MODEL, tiny_quantised, tmp_path_factory.mktemp("variants"))


@pytest.fixture(scope="session")
def reals(tiny_bundle: Path) -> list[Path]:
    return sorted(path for path in tiny_bundle.parent.iterdir() if path.is_file())


@pytest.fixture(scope="session")
def loose() -> GateLimits:
    """Limits that int8 on random weights keeps, and that a layer quantised far too coarsely misses."""
    return GateLimits(max_score_change=1.0, min_rank_correlation=0.0, max_flipped_verdicts=1.0, max_fpr_change=1.0)


@pytest.fixture(scope="session")
def make_ladder(
    tiny_bundle: Path, reals: list[Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Ladder]:
    """Make a ladder in a folder of its own, with these limits. Its source is the fp32 graph itself."""
    bundle = Bundle.open(tiny_bundle)
    banked, paths = split_reals(reals)
    engine = OrtEngine(bundle)
    held = SourceSignatures(paths, signatures_by_hash(paths, engine, bundle.manifest.preprocessing))
    engine.close()

    def make(limits: GateLimits, **changes: object) -> Ladder:
        graph = tmp_path_factory.mktemp("ladder") / "fp32" / MODEL
        graph.parent.mkdir()
        shutil.copy(tiny_bundle / MODEL, graph)
        draft = msgspec.structs.replace(bundle.manifest, files={}, verification=(), limits=limits)
        return Ladder(graph, draft, banked, held, **changes)  # type: ignore[arg-type]

    return make


@pytest.fixture(scope="session")
def candidate(make_ladder: Callable[..., Ladder]) -> Candidate:
    """The fp32 rung."""
    return make_ladder(GateLimits()).candidate("fp32")
