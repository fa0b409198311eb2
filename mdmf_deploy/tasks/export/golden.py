"""Golden scores: proof that a head trained elsewhere is read with its own kernel, activation, norm and crop.

A golden file is JSON, written with the other project's own code:

    {"bank": ["reals/"], "scores": [{"image": "a.png", "score": 0.412}, ...]}

"score" is the biased squared MMD of the image's central crop against the real images of "bank" (docs/method.md, "The
score"). Paths are relative to the file. "bank" lists files, folders or globs. Without it, all images for the bundle's
bank are taken.
"tolerance" is the largest difference of scores that passes, 0.001 unless given.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from mdmf_deploy.bundle.bank import Bank, BankSource
from mdmf_deploy.bundle.recipe import Head, Preprocessing
from mdmf_deploy.errors import GateFailed, ImageError, UsageError
from mdmf_deploy.images.crops import center_crop, normalise
from mdmf_deploy.images.decode import decode, read
from mdmf_deploy.images.inputs import expand
from mdmf_deploy.mmd.cpu import CpuReduction
from mdmf_deploy.mmd.reference import uniform_bank
from mdmf_deploy.runtime import Engine

_BATCH = 8


class GoldenScore(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The score that the other project gives an image."""

    image: str
    score: float


class Golden(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The content of a golden file, with paths as they are written there."""

    scores: tuple[GoldenScore, ...]
    bank: tuple[str, ...] = ()
    tolerance: float = 1e-3

    def __post_init__(self) -> None:
        if not self.scores or not self.tolerance > 0 or not all(math.isfinite(one.score) for one in self.scores):
            raise ValueError("expected at least one score, finite scores, and a positive tolerance")


def read_golden(path: Path) -> Golden:
    """Read a golden file. Raises UsageError naming the file and the place of a mistake."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Golden)
    except OSError as error:
        raise UsageError(f"--golden {path}: {error.strerror}; give the path of a readable JSON file") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UsageError(
            f'--golden {path}: {error}; expected {{"bank": [PATHS], "scores": [{{"image": PATH, "score": NUMBER}}]}}'
        ) from error


def check_golden(
    path: Path, engine: Engine, sigma: float, head: Head, preprocessing: Preprocessing, reals: Sequence[Path]
) -> float:
    """Score the images of a golden file, and return the largest difference from its scores.

    engine, sigma: the head that was read, and its bandwidth in our convention.
    reals: the images of the bank if the file names none.
    Raises UsageError if the file or one of its images cannot be read, and GateFailed naming the worst image if a
    difference exceeds the file's tolerance.
    """
    golden = read_golden(path)
    folder = path.parent
    banked = expand([str(folder / one) for one in golden.bank]).paths if golden.bank else reals
    real = _signatures(banked, engine, preprocessing, path).reshape(-1, head.signature)
    images = _signatures([folder / one.image for one in golden.scores], engine, preprocessing, path)
    expected = np.array([one.score for one in golden.scores])

    def worst(bandwidth: float) -> tuple[NDArray[np.float64], float]:
        scores = CpuReduction()(images, _bank(real, bandwidth)).mmd2
        return scores, float(np.abs(scores - expected).max())

    scores, difference = worst(sigma)
    if difference <= golden.tolerance:
        return difference
    place = int(np.abs(scores - expected).argmax())
    # A file's number s means sigma = s for one kernel, and sigma = sqrt(s / 2) for the other.
    other, swapped = ("mmd-mp", math.sqrt(sigma / 2)) if head.kernel == "gaussian" else ("gaussian", 2 * sigma**2)
    advice = "check activation, norm, normalise and kernel under [head], and the crop, mean and std"
    if worst(swapped)[1] <= golden.tolerance:
        advice = f'all agree with kernel = "{other}" instead of "{head.kernel}"; set that under [head]'
    raise GateFailed(
        f"--golden {path}: {golden.scores[place].image} scores {scores[place]:.6g} here, expected "
        f"{expected[place]:.6g} (the worst of {len(expected)}, tolerance {golden.tolerance:g}); {advice}"
    )


def _signatures(
    paths: Sequence[Path], engine: Engine, preprocessing: Preprocessing, golden: Path
) -> NDArray[np.float32]:
    """Return the signatures (B, N, d) of the images' central crops."""
    crops = []
    for path in paths:
        try:
            crops.append(center_crop(decode(read(path)).pixels, preprocessing.crop).pixels)
        except ImageError as error:
            raise UsageError(f"--golden {golden}: {path}: {error}; every image of the file must be readable") from error
    batches = (np.concatenate(crops[start : start + _BATCH]) for start in range(0, len(crops), _BATCH))
    return np.concatenate([engine(normalise(batch, preprocessing)) for batch in batches])


def _bank(signatures: NDArray[np.float32], sigma: float) -> Bank:
    everything = np.zeros(len(signatures), np.int32)
    return uniform_bank(signatures, sigma, source=everything, sources=(BankSource("golden", ""),), model_sha256="")
