"""Features of a frozen backbone, computed once and cached on disk."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from mdmf_deploy.bundle.recipe import Preprocessing
from mdmf_deploy.files import atomic_file
from mdmf_deploy.images.decode import decode, normalise, read
from mdmf_deploy.model.pfs import MdmfModel
from mdmf_deploy.tasks.train.data import Sample, Window, center_crops

_BATCH = 16


def cache_key(detector: MdmfModel, preprocessing: Preprocessing, samples: Sequence[Sample], what: str) -> str:
    """Hash over all that the features depend on: weights, preprocessing, pool grid, files in order, and the crops."""
    digest = hashlib.sha256(repr((preprocessing, detector.head.pooling, what)).encode())
    for name, tensor in detector.backbone.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.cpu().numpy().tobytes())
    for sample in samples:
        digest.update(sample.sha256.encode())
    return digest.hexdigest()[:24]


def cached_features(
    detector: MdmfModel,
    preprocessing: Preprocessing,
    samples: Sequence[Sample],
    crops: int,
    seed: int,
    folder: Path,
    progress: Callable[[int], None] = lambda done: None,
) -> NDArray[np.float16]:
    """(images, max(1, crops), N, C), read from the cache if it is there.

    crops: random crops with flips an image; 0 for the one centre crop of testing.
    """
    path = folder / f"{cache_key(detector, preprocessing, samples, f'{crops}/{seed}')}.npy"
    if not path.is_file():
        features = np.stack([_features(detector, preprocessing, sample, crops, seed, progress) for sample in samples])
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_file(path) as scratch, scratch.open("wb") as file:
            np.save(file, features)
    loaded: NDArray[np.float16] = np.load(path, mmap_mode="r")
    return loaded


@torch.inference_mode()
def _features(
    detector: MdmfModel,
    preprocessing: Preprocessing,
    sample: Sample,
    crops: int,
    seed: int,
    progress: Callable[[int], None],
) -> NDArray[np.float16]:
    size = preprocessing.crop
    if crops == 0:
        pixels = center_crops([sample.path], size)
    else:
        rng = np.random.default_rng([seed, int(sample.sha256[:12], 16)])
        image = decode(read(sample.path)).pixels
        pixels = np.stack([Window.draw(rng).cut(image, size) for _ in range(crops)])
    device = next(detector.parameters()).device
    tensor = torch.from_numpy(normalise(pixels, preprocessing)).to(device)
    parts = [detector.head.patches(detector.backbone(part)) for part in torch.split(tensor, _BATCH)]
    progress(1)
    result: NDArray[np.float16] = torch.cat(parts).cpu().numpy().astype(np.float16)
    return result
