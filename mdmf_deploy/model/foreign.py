"""Fill a PFS head from a file: one of ours, or one trained elsewhere, whose keys the recipe maps.

A head trained elsewhere needs `[head.key_map]` in its recipe. It maps our keys to the file's: "layers.N.weight",
"layers.N.bias", those of the norms ("norms.N.weight", ...), "log_sigma" or "sigma", and "backbone" for the prefix of
the backbone's keys. Dots address the nested dictionaries of a .pth file: {"model": {"mlp": ...}} is "model.mlp".
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from mdmf_deploy.bundle.recipe import Recipe
from mdmf_deploy.errors import CheckpointError
from mdmf_deploy.model.pfs import MdmfModel
from mdmf_deploy.model.tensors import listed, problems

# Buffers that a file may leave out. A head then has no standardisation, and a batch norm does not count its batches.
_OPTIONAL = ("mean", "scale")
_COUNT = ".num_batches_tracked"


def fill_head(model: MdmfModel, tensors: Mapping[str, Tensor], path: Path, recipe: Recipe) -> None:
    """Fill a model's head and bandwidth from these tensors of a file, which hold no backbone.

    A bandwidth of another kernel (head.kernel) is converted to ours.
    Raises CheckpointError naming the file and every missing, extra or misshapen key.
    """
    names = _key_map(tensors, recipe, model)
    tensors = dict(tensors)
    log_sigma = _take_log_sigma(tensors, names, path, recipe.head.kernel if names else "gaussian")
    state = model.head.state_dict()
    layers, extra = _layers(tensors, names, list(state))
    for key, value in state.items():
        if key in _OPTIONAL or key.endswith(_COUNT):
            layers.setdefault(key, value)
    if found := problems(model.head, layers, extra):
        widths = (
            _widths(layers | {key: tensors[key] for key in extra}) or f"the file's keys are {listed(sorted(tensors))}"
        )
        raise CheckpointError(f"{path}: the head does not fit recipe {recipe.name!r}: {found}; {widths}")
    model.head.load_state_dict(layers)
    with torch.no_grad():
        model.log_sigma.fill_(log_sigma)


def backbone_prefix(tensors: Mapping[str, Tensor], recipe: Recipe) -> str:
    """Return what the keys of the backbone begin with in this file."""
    return f"{'backbone' if _ours(tensors) else recipe.head.key_map.get('backbone', 'backbone')}."


def _ours(tensors: Mapping[str, Tensor]) -> bool:
    """Return whether the file has our own names. A foreign head that was saved again has."""
    return "head.layers.0.weight" in tensors and "log_sigma" in tensors


def _key_map(tensors: Mapping[str, Tensor], recipe: Recipe, model: MdmfModel) -> dict[str, str]:
    """Return the recipe's key map, or {} for a file with our own names."""
    if _ours(tensors):
        return {}
    state = [key for key in model.head.state_dict() if key not in _OPTIONAL and not key.endswith(_COUNT)]
    known = [*state, "log_sigma", "sigma", "backbone"]
    unknown = sorted(recipe.head.key_map.keys() - set(known))
    if unknown:
        raise CheckpointError(
            f"recipe {recipe.name!r}: head.key_map has {', '.join(unknown)}; its keys are {', '.join(known)}"
        )
    return recipe.head.key_map


def _layers(
    tensors: Mapping[str, Tensor], key_map: Mapping[str, str], names: list[str]
) -> tuple[dict[str, Tensor], list[str]]:
    """Return the head's tensors under our names, and the keys of the file that are extra.

    In a file of our own, every other key is extra. In a foreign file, the extra keys are those in the same modules as
    the mapped layers: the map must not leave out a layer of the head, but it may leave out optimizer state.
    """
    theirs = {key_map.get(name, f"head.{name}"): name for name in names}
    modules: tuple[str, ...] = ("",)
    if mapped := [key for key, name in theirs.items() if name in key_map]:
        modules = tuple({"".join(f"{part}." for part in key.split(".")[:-2]) for key in mapped})
    layers = {theirs[key]: value for key, value in tensors.items() if key in theirs}
    extra = [key for key in tensors if key not in theirs and key.startswith(modules) and not key.endswith(_COUNT)]
    return layers, extra


def _take_log_sigma(tensors: dict[str, Tensor], key_map: Mapping[str, str], path: Path, kernel: str) -> float:
    named = [name for name in ("log_sigma", "sigma") if name in key_map] or ["log_sigma", "sigma"]
    for ours in named:
        found = tensors.pop(key_map.get(ours, ours), None)
        if found is None:
            continue
        value = float(found) if found.numel() == 1 else math.nan
        if ours == "sigma":
            value = math.log(value) if value > 0 else math.nan
        if not math.isfinite(value):
            raise CheckpointError(f"{path}: {key_map.get(ours, ours)} must be one finite number, the kernel bandwidth")
        # exp(-d^2 / sigma0) = exp(-d^2 / (2 sigma^2)) for sigma = sqrt(sigma0 / 2).
        return (value - math.log(2)) / 2 if kernel == "mmd-mp" else value
    sought = " or ".join(key_map.get(name, name) for name in named)
    raise CheckpointError(
        f"{path} has no kernel bandwidth under {sought}; name its key in the recipe under [head.key_map], "
        'log_sigma = "..." if the file holds its logarithm, sigma = "..." if not'
    )


def _widths(layers: Mapping[str, Tensor]) -> str:
    """Describe the recipe that the file's MLP needs, as far as its weights show."""
    weights = [layers[key] for key in _in_order(layers) if layers[key].dim() == 2]
    if not weights:
        return ""
    *hidden, signature = [weight.shape[0] for weight in weights]
    return f"the file has {weights[0].shape[1]} inputs, hidden = {hidden}, signature = {signature}"


def _in_order(layers: Mapping[str, Tensor]) -> list[str]:
    numbered = [key for key in layers if key.endswith(".weight") and key.split(".")[-2].isdigit()]
    return sorted(numbered, key=lambda key: int(key.split(".")[-2]))
