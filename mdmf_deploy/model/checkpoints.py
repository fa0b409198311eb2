"""Read and write checkpoints: strictly, without running pickles, and atomically.

Our own keys are "backbone.*" (official DINOv2 names), "head.layers.N.weight", "head.layers.N.bias" and "log_sigma".
A head trained elsewhere needs `[head.key_map]` in its recipe. It maps our keys to the file's: "layers.N.weight",
"layers.N.bias", "log_sigma" or "sigma", and "backbone" for the prefix of the backbone's keys. Dots address the nested
dictionaries of a .pth file: {"model": {"mlp": ...}} is "model.mlp".
"""

from __future__ import annotations

import hashlib
import json
import math
import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mdmf_deploy.bundle.recipe import Recipe
from mdmf_deploy.errors import CheckpointError
from mdmf_deploy.files import atomic_file, file_sha256
from mdmf_deploy.model.dinov2 import DinoV2
from mdmf_deploy.model.layouts import official
from mdmf_deploy.model.pfs import MdmfModel

_LISTED = 8


def checkpoint_sha256(path: Path) -> str:
    """Return the SHA-256 of a checkpoint's bytes, in hex. Raises CheckpointError if it cannot be read."""
    try:
        return file_sha256(path)
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror}; give the path of a readable checkpoint") from error


def save_model(path: Path, model: MdmfModel, metadata: dict[str, str]) -> None:
    """Write a model to a safetensors file, atomically.

    The metadata are stored as one JSON text with sorted keys, under "mdmf", so that equal models make equal files.
    Raises CheckpointError if the file cannot be written.
    """
    tensors = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    try:
        with atomic_file(path) as scratch:
            save_file(tensors, scratch, metadata={"mdmf": json.dumps(metadata, sort_keys=True)})
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"cannot write checkpoint {path}: {error}; choose a writable place") from error


def load_model(path: Path, recipe: Recipe) -> MdmfModel:
    """Load a model from a checkpoint that holds backbone, head and bandwidth.

    Raises CheckpointError naming the file and every missing, extra or misshapen key (the first eight of each).
    """
    tensors = read_tensors(path)
    model = MdmfModel(recipe)
    prefix = _key_map(tensors, recipe).get("backbone", "backbone") + "."
    backbone = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
    if not backbone:
        raise CheckpointError(f"{path} holds no backbone ({prefix}*); pass its weights in a file of their own")
    _fill_backbone(model.backbone, backbone, path)
    _fill_head(model, {key: value for key, value in tensors.items() if not key.startswith(prefix)}, path, recipe)
    return model


def load_backbone(backbone: DinoV2, path: Path) -> None:
    """Fill a backbone from an official, Hugging Face or timm state dict, .pth or .safetensors (see layouts.py).

    Raises CheckpointError naming the file, its layout and every missing, extra or misshapen key.
    """
    _fill_backbone(backbone, read_tensors(path), path)


def load_head(model: MdmfModel, path: Path, recipe: Recipe) -> None:
    """Fill a model's head and bandwidth from a file. A backbone in that file is ignored.

    Raises CheckpointError naming the file and every missing, extra or misshapen key.
    """
    tensors = read_tensors(path)
    prefix = _key_map(tensors, recipe).get("backbone", "backbone") + "."
    _fill_head(model, {key: value for key, value in tensors.items() if not key.startswith(prefix)}, path, recipe)


def load_source(checkpoint: Path, recipe: Recipe, backbone_weights: Path | None = None) -> MdmfModel:
    """Load a model from a whole checkpoint, or from its head's checkpoint and the backbone's own file.

    Raises CheckpointError as the functions above do.
    """
    if backbone_weights is None:
        return load_model(checkpoint, recipe)
    model = MdmfModel(recipe)
    load_head(model, checkpoint, recipe)
    load_backbone(model.backbone, backbone_weights)
    return model


def source_sha256(checkpoint: Path, backbone_weights: Path | None = None) -> str:
    """Return the checkpoint's SHA-256, in hex.

    With a file for the backbone, hash the two files' hex digests, joined into one text. Raises CheckpointError if a
    file cannot be read.
    """
    if backbone_weights is None:
        return checkpoint_sha256(checkpoint)
    return hashlib.sha256((checkpoint_sha256(checkpoint) + checkpoint_sha256(backbone_weights)).encode()).hexdigest()


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read every tensor of a .safetensors or .pth file, by its key. Nothing in the file is ever executed.

    Numbers in a .pth file become 0-d tensors. Anything else in it is left out.
    Raises CheckpointError if the file is unreadable, damaged, or holds a pickle that would run code.
    """
    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        with warnings.catch_warnings():
            # Torch warns of odd pickles before it refuses them. The error is enough.
            warnings.simplefilter("ignore")
            content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror or error}; give the path of a readable checkpoint") from error
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} is damaged or holds more than tensors, and what it holds is not run; "
            "save its state dict alone, best as .safetensors"
        ) from error
    except (SafetensorError, RuntimeError, ValueError, EOFError, KeyError, TypeError, AttributeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"{path} is not a whole .safetensors or .pth file ({reason})") from error
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path} holds a {type(content).__name__}; expected a state dict of tensors")
    return _flatten(content)


def _flatten(content: Mapping[object, object], prefix: str = "") -> dict[str, Tensor]:
    flat: dict[str, Tensor] = {}
    for key, value in content.items():
        name = f"{prefix}{key}"
        if isinstance(value, Tensor):
            flat[name] = value
        elif isinstance(value, Mapping):
            flat |= _flatten(value, f"{name}.")
        elif isinstance(value, int | float):
            flat[name] = torch.tensor(float(value))
    return flat


def _fill_backbone(backbone: DinoV2, tensors: dict[str, Tensor], path: Path) -> None:
    layout, renamed = official(tensors, backbone.architecture)
    # Only masked training uses the mask token, and some releases leave it out.
    renamed.setdefault("mask_token", torch.zeros_like(backbone.mask_token))
    problems = _problems(backbone, renamed)
    if problems:
        raise CheckpointError(f"{path} (read as {layout} layout) does not fit this backbone: {problems}")
    backbone.load_state_dict(renamed)


def _fill_head(model: MdmfModel, tensors: dict[str, Tensor], path: Path, recipe: Recipe) -> None:
    key_map = _key_map(tensors, recipe)
    tensors = dict(tensors)
    log_sigma = _take_log_sigma(tensors, key_map, path)
    layers = _layers(tensors, key_map, list(model.head.state_dict()))
    problems = _problems(model.head, layers)
    if problems:
        found = _widths(layers) or f"the file's keys are {_listed(sorted(tensors))}"
        raise CheckpointError(f"{path}: the head does not fit recipe {recipe.name!r}: {problems}; {found}")
    model.head.load_state_dict(layers)
    with torch.no_grad():
        model.log_sigma.fill_(log_sigma)


def _key_map(tensors: Mapping[str, Tensor], recipe: Recipe) -> dict[str, str]:
    """Return the recipe's key map, or {} for a file with our own names, such as a foreign head that was saved again."""
    if "head.layers.0.weight" in tensors and "log_sigma" in tensors:
        return {}
    layers = [f"layers.{n}.{kind}" for n in range(len(recipe.head.hidden) + 1) for kind in ("weight", "bias")]
    known = [*layers, "log_sigma", "sigma", "backbone"]
    unknown = sorted(recipe.head.key_map.keys() - set(known))
    if unknown:
        raise CheckpointError(
            f"recipe {recipe.name!r}: head.key_map has {', '.join(unknown)}; its keys are {', '.join(known)}"
        )
    return recipe.head.key_map


def _layers(tensors: Mapping[str, Tensor], key_map: Mapping[str, str], names: list[str]) -> dict[str, Tensor]:
    """Return the head's tensors under our names. Tensors that do not fit keep the file's names and count as extra.

    In a file of our own, every other key is extra. In a foreign file, the extra keys are those in the same modules as
    the mapped layers: the map must not leave out a layer of the head, but it may leave out optimizer state.
    """
    theirs = {key_map.get(name, f"head.{name}"): name for name in names}
    modules: tuple[str, ...] = ("",)
    if any(name in key_map for name in names):
        modules = tuple({"".join(f"{part}." for part in key.split(".")[:-2]) for key in theirs})
    return {theirs.get(key, key): value for key, value in tensors.items() if key in theirs or key.startswith(modules)}


def _take_log_sigma(tensors: dict[str, Tensor], key_map: Mapping[str, str], path: Path) -> float:
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
        return value
    sought = " or ".join(key_map.get(name, name) for name in named)
    raise CheckpointError(
        f"{path} has no kernel bandwidth under {sought}; name its key in the recipe under [head.key_map], "
        'log_sigma = "..." if the file holds its logarithm, sigma = "..." if not'
    )


def _problems(module: nn.Module, tensors: Mapping[str, Tensor]) -> str:
    """Describe why these tensors cannot be this module's state, or return "" if they can."""
    expected = {key: tuple(value.shape) for key, value in module.state_dict().items()}
    misshapen = [
        f"{key} is {tuple(tensors[key].shape)}, not {shape}"
        for key, shape in expected.items()
        if key in tensors and tuple(tensors[key].shape) != shape
    ]
    lists = {
        "missing": [key for key in expected if key not in tensors],
        "extra": [key for key in tensors if key not in expected],
        "misshapen": misshapen,
    }
    return "; ".join(f"{kind}: {_listed(items)}" for kind, items in lists.items() if items)


def _listed(items: list[str]) -> str:
    more = f" and {len(items) - _LISTED} more" if len(items) > _LISTED else ""
    return ", ".join(items[:_LISTED]) + more


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
