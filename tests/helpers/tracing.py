"""Tracing a model whose graph is there already."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from mdmf_deploy.bundle.recipe import Recipe
from mdmf_deploy.model.pfs import MdmfModel
from mdmf_deploy.tasks.export.trace import trace

Trace = Callable[[MdmfModel, Recipe, Path, Mapping[str, str]], Path]


def known_or_traced(known: Mapping[str, torch.Tensor], graph: Path) -> Trace:
    """Return a function that copies this graph for a model with exactly these tensors, and traces every other model.

    The bandwidth may differ, since it is not part of a graph. Tracing takes seconds, and test_trace.py tests it.
    """

    def traced(detector: MdmfModel, recipe: Recipe, path: Path, metadata: Mapping[str, str]) -> Path:
        own = detector.state_dict()
        parts = own.keys() - {"log_sigma"}
        if own.keys() == known.keys() and all(torch.equal(own[key], known[key]) for key in parts):
            return Path(shutil.copy(graph, path))
        return trace(detector, recipe, path, metadata)

    return traced
