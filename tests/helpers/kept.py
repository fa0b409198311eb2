"""Signatures that a run has kept."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mdmf_deploy.detection.detector import Detector
from mdmf_deploy.detection.outputs.done import InputKey
from mdmf_deploy.detection.outputs.signatures import Extractor, SignatureKeeper, SignatureType
from mdmf_deploy.detection.rows import Row


def keep(
    folder: Path,
    bundle: Path,
    sources: Sequence[Path],
    type: SignatureType = "fp32",
    *,
    crops: int | None = None,
    frames: int = 10,
    resume: bool = False,
    part_of: int = 1000,
) -> list[Row]:
    """Detect with a bundle, keep the signatures in a folder, and return the rows.  part_of: inputs of a part."""
    found: list[Row] = []
    with Detector(bundle, "onnxruntime", crops=crops, frames=frames) as detector:
        extractor = Extractor.of(detector.bundle, detector.runtime, type)
        with SignatureKeeper(str(folder), detector.settings(), extractor, resume=resume) as keeper:
            stream = detector.stream_by_source(sources, on_extraction=keeper.extracted)
            for n, (path, rows) in enumerate(zip(sources, stream, strict=True), 1):
                found += rows
                keeper.add(InputKey.of(path))
                if n % part_of == 0:
                    keeper.flush()
    return found
