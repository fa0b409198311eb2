"""Features of a frozen backbone, computed once and cached on disk, and the batches drawn from them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mdmf_deploy.bundle.recipe import Preprocessing
from mdmf_deploy.files import atomic_file
from mdmf_deploy.images.crops import normalise
from mdmf_deploy.images.decode import decode, read
from mdmf_deploy.model.pfs import MdmfModel
from mdmf_deploy.tasks.train.data import LabelledImage, TrainingBatch, Window, center_crops

_BATCH = 16


@dataclass(frozen=True, slots=True)
class FeatureCache:
    """Compute backbone features, and keep them as .npy files.

    detector: the backbone, and the pool grid of the head.
    seed: of the random crops.
    folder: where the files are kept.
    """

    detector: MdmfModel
    preprocessing: Preprocessing
    seed: int
    folder: Path

    def __call__(self, images: Sequence[LabelledImage], crops: int = 0) -> NDArray[np.float16]:
        """Return features (images, max(1, crops), N, C), read from the cache if they are there.

        crops: random crops with flips per image. 0 stands for the one centre crop of detection.
        """
        path = self.folder / f"{self.key(images, crops)}.npy"
        if not path.is_file():
            features = np.stack([self._features(image, crops) for image in images])
            self.folder.mkdir(parents=True, exist_ok=True)
            with atomic_file(path) as scratch, scratch.open("wb") as file:
                np.save(file, features)
        loaded: NDArray[np.float16] = np.load(path, mmap_mode="r")
        return loaded

    def key(self, images: Sequence[LabelledImage], crops: int) -> str:
        """Hash everything the features depend on: weights, preprocessing, pool grid, files in order, and crops."""
        backbone = self.detector.backbone
        how = (backbone.architecture, backbone.taken)
        facts = (self.preprocessing, how, self.detector.head.pooling, f"{crops}/{self.seed}")
        digest = hashlib.sha256(repr(facts).encode())
        for name, tensor in backbone.state_dict().items():
            digest.update(name.encode())
            digest.update(tensor.cpu().numpy().tobytes())
        for image in images:
            digest.update(image.sha256.encode())
        return digest.hexdigest()[:24]

    @torch.inference_mode()
    def _features(self, image: LabelledImage, crops: int) -> NDArray[np.float16]:
        size = self.preprocessing.crop
        if crops == 0:
            cut = center_crops([image.path], size)
        else:
            rng = np.random.default_rng([self.seed, int(image.sha256[:12], 16)])
            pixels = decode(read(image.path)).pixels
            cut = np.stack([Window.draw(rng).cut(pixels, size) for _ in range(crops)])
        device = next(self.detector.parameters()).device
        tensor = torch.from_numpy(normalise(cut, self.preprocessing)).to(device)
        parts = [self.detector.head.patches(self.detector.backbone(part)) for part in torch.split(tensor, _BATCH)]
        features: NDArray[np.float16] = torch.cat(parts).cpu().numpy().astype(np.float16)
        return features


class FeatureBatches:
    """Batches of features. Every image has several crops, and one of them is drawn each time."""

    def __init__(self, real: NDArray[np.float16], generated: NDArray[np.float16], batch: int, seed: int) -> None:
        """real, generated: (images, crops, N, C)."""
        self._real = real
        self._generated = generated
        self._batch = batch
        self._seed = seed

    def __call__(self, step: int) -> TrainingBatch:
        rng = np.random.default_rng([self._seed, step])
        return TrainingBatch(self._draw(rng, self._real), self._draw(rng, self._generated))

    def _draw(self, rng: np.random.Generator, features: NDArray[np.float16]) -> Tensor:
        images, crops = features.shape[:2]
        which = rng.choice(images, size=self._batch, replace=images < self._batch)
        return torch.from_numpy(features[which, rng.integers(crops, size=self._batch)].astype(np.float32))
