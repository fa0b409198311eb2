"""Features of a frozen backbone, computed once and cached on disk, and the batches drawn from them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mdmf_deploy.bundle.recipe import Preprocessing
from mdmf_deploy.files import atomic_file
from mdmf_deploy.model.pfs import MdmfModel
from mdmf_deploy.tasks.train.batches import Batches, TrainingBatch
from mdmf_deploy.tasks.train.phases import Count, Follow, ignore

_BATCH = 16


@dataclass(frozen=True, slots=True)
class FeatureCache:
    """Compute backbone features, and keep them as .npy files.

    detector: the backbone, and the pool grid of the head.
    folder: where the files are kept.
    """

    detector: MdmfModel
    preprocessing: Preprocessing
    folder: Path

    def __call__(self, crops: Callable[[], Iterable[Tensor]], *facts: str) -> NDArray[np.float16]:
        """Return the features of crops, (n, N, C), read from the cache if they are there.

        crops: yields batches (b, 3, S, S), normalised.
        facts: everything that the crops depend on.
        """
        path = self.folder / f"{self.key(*facts)}.npy"
        kept = _read(path)
        if kept is None:
            features = np.concatenate([self._features(batch) for batch in crops()])
            self.folder.mkdir(parents=True, exist_ok=True)
            with atomic_file(path) as scratch, scratch.open("wb") as file:
                np.save(file, features)
            kept = np.load(path, mmap_mode="r")
        return kept

    def key(self, *facts: str) -> str:
        """Hash everything the features depend on: weights, preprocessing, pool grid, and the facts in order."""
        backbone = self.detector.backbone
        how = (backbone.architecture, backbone.taken)
        digest = hashlib.sha256(repr((self.preprocessing, how, self.detector.head.pooling, facts)).encode())
        for name, tensor in backbone.state_dict().items():
            digest.update(name.encode())
            digest.update(tensor.cpu().numpy().tobytes())
        return digest.hexdigest()[:24]

    @torch.inference_mode()
    def _features(self, crops: Tensor) -> NDArray[np.float16]:
        device = next(self.detector.parameters()).device
        parts = [
            self.detector.head.patches(self.detector.backbone(part.to(device))) for part in torch.split(crops, _BATCH)
        ]
        features: NDArray[np.float16] = torch.cat(parts).cpu().numpy().astype(np.float16)
        return features


def _read(path: Path) -> NDArray[np.float16] | None:
    """Map a file, and return None if there is none, or a broken one. Raises OSError if it cannot be read."""
    try:
        kept: NDArray[np.float16] = np.load(path, mmap_mode="r")
    except FileNotFoundError:
        return None
    except (ValueError, EOFError):
        return None  # cut short, for example by a power failure
    return kept


class FeatureBatches:
    """Batches mixed from a number of crop batches, whose features are computed once.

    Each place in a batch comes from the same place of any of them, so that pairs stay pairs, and shares stay shares.
    """

    def __init__(
        self,
        batches: Batches,
        count: int,
        cache: FeatureCache,
        seed: int,
        *facts: str,
        paired: int = 0,
        follow: Follow = ignore,
    ):
        """Compute the features of the first `count` batches, unless they are cached.

        facts: everything that the crop batches depend on.
        paired: the number of pairs in each of them.
        """
        counted = Count("features", "batches", count, follow)

        def crops() -> Iterable[Tensor]:
            for step in counted.over(range(count)):
                batch = batches(step)
                yield torch.cat([batch.real, batch.generated])

        features = cache(crops, f"{count} batches", *facts)
        counted.finish()
        self._features = features.reshape(count, 2, -1, *features.shape[1:])
        self._seed, self._paired = seed, paired

    def __call__(self, step: int) -> TrainingBatch:
        count, _, n = self._features.shape[:3]
        rng = np.random.default_rng([self._seed, step])
        chosen, places = rng.integers(count, size=n), np.arange(n)
        real, generated = (torch.from_numpy(self._features[chosen, half, places].astype(np.float32)) for half in (0, 1))
        return TrainingBatch(real, generated, self._paired)
