"""The detector as others would write it: files in, scores out, each on the plain path of one library.

Each decodes with Pillow, one file after the other, in batches of 32, and compares one image at a time with the whole
bank through a kernel matrix. Each is given the bank's self term.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mdmf_deploy  # noqa: F401  (first, so that onnxruntime reports nothing)

# isort: split
import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from mdmf_deploy.bundle.bank import Bank
from mdmf_deploy.bundle.recipe import Preprocessing
from mdmf_deploy.model.pfs import MdmfModel

BATCH = 32
Scores = NDArray[np.floating]
Peer = Callable[[Sequence[Path]], Scores]


@dataclass(frozen=True, slots=True)
class Task:
    """One model, its bank and its exported graph. detector: None if its weights are not at hand."""

    detector: MdmfModel | None
    graph: Path
    bank: Bank
    preprocessing: Preprocessing


def peers(task: Task) -> dict[str, Peer]:
    """Return every peer by name. Without the model's weights, the peers that need them are left out."""
    found: dict[str, Peer] = {}
    if task.detector is not None:
        found["PyTorch script"] = on_torch(task.detector, task)
        found["PyTorch script, decoding in 2 DataLoader workers"] = on_torch(task.detector, task, workers=2)
        found["PyTorch script, torch.compile"] = on_torch(torch.compile(task.detector), task)
        found["transformers' Dinov2Model"] = on_torch(TransformersDetector(task.detector, task.preprocessing), task)
    found["ONNX Runtime alone"] = on_onnxruntime(task)
    found["OpenVINO alone, as it comes"] = on_openvino(task, {})
    found["OpenVINO alone, precision hint f32"] = on_openvino(task, {"INFERENCE_PRECISION_HINT": "f32"})
    return found


class Crops(torch.utils.data.Dataset[Tensor]):
    """Crop, scale and normalise like torchvision's CenterCrop, ToTensor and Normalize."""

    def __init__(self, paths: Sequence[Path], preprocessing: Preprocessing) -> None:
        self.paths, self.size = paths, preprocessing.crop
        self.mean, self.std = (
            torch.tensor(values)[:, None, None] for values in (preprocessing.mean, preprocessing.std)
        )

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor:
        image = Image.open(self.paths[index]).convert("RGB")
        left, top = (image.width - self.size) // 2, (image.height - self.size) // 2
        crop = np.array(image.crop((left, top, left + self.size, top + self.size)))
        return (torch.from_numpy(crop).permute(2, 0, 1).float() / 255 - self.mean) / self.std


def batches(paths: Sequence[Path], preprocessing: Preprocessing, workers: int = 0) -> Iterator[Tensor]:
    """Iterate over batches, (B, 3, S, S) each."""
    return iter(torch.utils.data.DataLoader(Crops(paths, preprocessing), BATCH, num_workers=workers))


def on_torch(model: Callable[[Tensor], Tensor], task: Task, workers: int = 0) -> Peer:
    reference, sigma, bank_term = torch.from_numpy(task.bank.signatures), task.bank.sigma, task.bank.self_term
    weights = torch.from_numpy(task.bank.weights).float()

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return torch.exp(-(torch.cdist(a, b) ** 2) / (2 * sigma**2))

    @torch.inference_mode()
    def run(paths: Sequence[Path]) -> Scores:
        scores = []
        for images in batches(paths, task.preprocessing, workers):
            for x in model(images):
                cross = (kernel(x, reference) @ weights).mean()
                scores.append(float(kernel(x, x).mean() + bank_term - 2 * cross))
        return np.array(scores)

    return run


class TransformersDetector(nn.Module):
    """Transformers' Dinov2Model with our weights, followed by the PFS head."""

    def __init__(self, detector: MdmfModel, preprocessing: Preprocessing) -> None:
        from transformers import Dinov2Config, Dinov2Model

        super().__init__()
        a = detector.backbone.architecture
        side = preprocessing.crop // a.patch
        config = Dinov2Config(
            hidden_size=a.width,
            num_hidden_layers=a.depth,
            num_attention_heads=a.heads,
            image_size=preprocessing.crop,
            patch_size=a.patch,
            layer_norm_eps=1e-6,
        )
        self.backbone = Dinov2Model(config)
        tensors = dict(detector.backbone.state_dict())
        # Resampled here for this crop, because transformers would resample the trained grid differently.
        tensors["pos_embed"] = detector.backbone.position_embedding(side, side).detach()
        self.backbone.load_state_dict(to_transformers(tensors))
        self.head, self.side = detector.head, side
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.backbone(images).last_hidden_state[:, 1:]
        signatures: Tensor = self.head(tokens.transpose(1, 2).unflatten(2, (self.side, self.side)))
        return signatures


def to_transformers(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename official DINOv2 tensors to the names that transformers 5 uses in memory."""
    names = {
        "blocks.": "encoder.layer.",
        ".attn.proj.": ".attention.o_proj.",
        ".ls1.gamma": ".layer_scale1.lambda1",
        ".ls2.gamma": ".layer_scale2.lambda1",
        "patch_embed.proj.": "embeddings.patch_embeddings.projection.",
        "pos_embed": "embeddings.position_embeddings",
        "cls_token": "embeddings.cls_token",
        "mask_token": "embeddings.mask_token",
    }
    result: dict[str, Tensor] = {}
    for key, value in tensors.items():
        for ours, theirs in names.items():
            key = key.replace(ours, theirs)
        if key.startswith("norm."):
            key = f"layer{key}"
        if ".attn.qkv." in key:
            for part, rows in zip("qkv", value.chunk(3), strict=True):
                result[key.replace(".attn.qkv.", f".attention.{part}_proj.")] = rows
        else:
            result[key] = value
    return result


def on_onnxruntime(task: Task) -> Peer:
    session = onnxruntime.InferenceSession(task.graph)
    return _on_graph(task, lambda images: session.run(None, {"images": images})[0])


def on_openvino(task: Task, settings: dict[str, Any]) -> Peer:
    from mdmf_deploy.runtime.ov import openvino  # without its telemetry

    model = openvino.Core().compile_model(task.graph, "CPU", settings)
    return _on_graph(task, lambda images: model(images)[0])


def _on_graph(task: Task, run_graph: Callable[[NDArray[np.float32]], NDArray[np.float32]]) -> Peer:
    """Return a loop over batches, with the kernel matrix in NumPy."""
    bank = task.bank
    weights, norms = bank.weights.astype(np.float32), (bank.signatures**2).sum(1)

    def run(paths: Sequence[Path]) -> Scores:
        scores = []
        for images in batches(paths, task.preprocessing):
            for x in run_graph(images.numpy()):
                cross = (numpy_kernel(x, bank.signatures, norms, bank.sigma) @ weights).mean()
                within = numpy_kernel(x, x, (x**2).sum(1), bank.sigma).mean()
                scores.append(within + bank.self_term - 2 * cross)
        return np.array(scores)

    return run


def numpy_kernel(
    a: NDArray[np.float32], b: NDArray[np.float32], b_norms: NDArray[np.float32], sigma: float
) -> NDArray[np.float32]:
    """Return kernel values: (n, d), (m, d), (m,) -> (n, m)."""
    squared = (a**2).sum(1)[:, None] + b_norms - 2 * a @ b.T
    matrix: NDArray[np.float32] = np.exp(squared / np.float32(-2 * sigma**2))
    return matrix


def exact(task: Task, paths: Sequence[Path]) -> NDArray[np.float64]:
    """Return the scores of the whole chain in float64, or from the graph's signatures if there are no weights."""
    bank = task.bank
    if task.detector is None:
        session = onnxruntime.InferenceSession(task.graph)
        extracted = [session.run(None, {"images": images.numpy()})[0] for images in batches(paths, task.preprocessing)]
    else:
        model = deepcopy(task.detector).double()
        with torch.inference_mode():
            extracted = [model(images.double()).numpy() for images in batches(paths, task.preprocessing)]
    return reference(np.concatenate(extracted), bank)


def reference(signatures: NDArray[np.floating], bank: Bank) -> NDArray[np.float64]:
    """Reduce (B, N, d) to (B,) in float64, by the GEMM identity because direct differences would take minutes."""
    centre = bank.signatures.mean(0, dtype=np.float64)
    points = bank.signatures - centre
    norms = np.einsum("md,md->m", points, points)

    def score(x: NDArray[np.float64]) -> float:
        own = np.einsum("nd,nd->n", x, x)
        within = np.exp((own[:, None] + own - 2 * x @ x.T) / (-2 * bank.sigma**2)).mean()
        cross = (np.exp((own[:, None] + norms - 2 * x @ points.T) / (-2 * bank.sigma**2)) @ bank.weights).mean()
        return float(within + bank.self_term - 2 * cross)

    return np.array([score(x) for x in signatures - centre])
