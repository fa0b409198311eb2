"""Handmade bundles, banks and extractions, for tests that need no model."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
from helpers.small_graphs import graph_of

from mdmf_deploy.bundle.bank import Bank, BankSource
from mdmf_deploy.bundle.bundle import Bundle, write_bundle
from mdmf_deploy.bundle.calibration import LEAST_EVIDENCE, Calibration, Pair, Scored
from mdmf_deploy.bundle.manifest import (
    BANK,
    CALIBRATION,
    MODEL,
    FileEntry,
    Manifest,
    ModelCard,
    Provenance,
    Verification,
)
from mdmf_deploy.bundle.recipe import Preprocessing
from mdmf_deploy.detection.videos import VideoFrames
from mdmf_deploy.errors import ImageError
from mdmf_deploy.mmd.reference import uniform_bank

CROP, POOL, WIDTH = 56, 2, 4
SIGMA = 1.5
GRAPH = graph_of(CROP, POOL, WIDTH)


class FakeExtraction(NamedTuple):
    """The fields of mdmf_deploy.detection.feed.Extraction that banks and calibrations read."""

    uri: str
    sha256: str
    signatures: np.ndarray | None
    error: ImageError | None = None
    width: int = 640
    height: int = 480
    evidence: float = 0.9
    frames: VideoFrames | None = None


PAIR = Pair("onnxruntime", "fp32")


def calibration_of(
    scores: Iterable[float],
    fprs: Sequence[float] = (0.1,),
    review: float = 0.5,
    bundle_id: str = "b" * 64,
    bounds: Sequence[float] = (),
) -> Calibration:
    """Return a calibration of images with these scores, all of 0.01 megapixels. It has one size group unless told."""
    images = [Scored(f"{n:064}", float(score), 10_000, 0.9) for n, score in enumerate(scores)]
    calibration = Calibration.from_images(
        images, fprs, review, bundle_id=bundle_id, measured_on=PAIR, holds_for=[PAIR], bounds=bounds
    )
    return msgspec.structs.replace(calibration, least_evidence=LEAST_EVIDENCE)


class FakeEngine(NamedTuple):
    name: str = "onnxruntime"
    precision: str = "fp32"


def sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def extracted(name: str, patches: int = 4, shift: float = 0.0, crops: int = 1, **facts: object) -> FakeExtraction:
    """Return the extraction of an image called `name`. Its hash and signatures follow from the name's last part."""
    content = name.rpartition("/")[2]
    generator = np.random.default_rng(int(sha(content)[:8], 16))
    signatures = (generator.standard_normal((crops, patches, WIDTH)) + shift).astype(np.float32)
    return FakeExtraction(name, sha(content), signatures, **facts)  # type: ignore[arg-type]


def broken(name: str) -> FakeExtraction:
    return FakeExtraction(name, sha(name), None, ImageError("truncated", f"{name}: ends early"))


def record(passed: bool = True, runtime: str = "onnxruntime") -> Verification:
    return Verification(
        runtime=runtime,
        precision="fp32",
        passed=passed,
        reasons=() if passed else ("flipped_verdicts 0.5 beyond 0.01",),
        reference="torch",
        images=8,
        max_signature_error=1e-6,
        mean_signature_error=1e-7,
        score_spread=0.1,
        max_score_change=1e-5,
        rank_correlation=1.0,
        threshold=0.2,
        flipped_verdicts=0.0,
        fpr_change=0.0,
    )


def manifest(graph: bytes = GRAPH, **changes: object) -> Manifest:
    values: dict[str, object] = {
        "name": "handmade",
        "model": ModelCard(backbone="none", pool=POOL, signature=WIDTH, sigma=SIGMA, precision="fp32", opset=18),
        "preprocessing": Preprocessing(crop=CROP),
        "provenance": Provenance(recipe="handmade", checkpoint_sha256="0" * 64, tool="test", decoder="none"),
        "verification": (record(),),
        "files": {MODEL: FileEntry(sha256=hashlib.sha256(graph).hexdigest(), size=len(graph))},
    }
    return Manifest(**{**values, **changes})  # type: ignore[arg-type]


def bank(count: int = 6, model_sha256: str | None = None, sigma: float = SIGMA) -> Bank:
    """Return a bank with four signatures from each of `count` images. Whole eighths have the same bytes everywhere."""
    values = (np.arange(count * 4 * WIDTH) * 37 % 64 - 32) / 8
    return uniform_bank(
        values.reshape(-1, WIDTH).astype(np.float32),
        sigma,
        source=np.repeat(np.arange(count, dtype=np.int32), 4),
        sources=tuple(BankSource(f"photos/{i}.png", sha(f"{i}.png")) for i in range(count)),
        model_sha256=manifest().model_sha256 if model_sha256 is None else model_sha256,
    )


def make_bundle(path: Path, **changes: object) -> Bundle:
    return write_bundle(path, manifest(**changes), {MODEL: GRAPH, BANK: bank().to_bytes()})


def schema_1(bundle: Bundle, scores: Sequence[float], fpr: float, threshold: float) -> Bundle:
    """Rewrite a bundle as the tool wrote it before schema 2: without size groups and evidence.

    scores: ascending.  threshold: theirs at this rate.
    """
    pair = {"runtime": PAIR.runtime, "precision": PAIR.precision}
    calibration = {
        "bundle_id": bundle.bundle_id,
        "measured_on": pair,
        "scores": scores,
        "image_sha256": [f"{n:064}" for n in range(len(scores))],
        "thresholds": [{"fpr": fpr, "score": threshold}],
        "review": 0.5,
        "holds_for": [pair],
    }
    files = {**bundle.files(), CALIBRATION: json.dumps(calibration).encode()}
    return write_bundle(bundle.path, msgspec.structs.replace(bundle.manifest, schema_version=1), files)
