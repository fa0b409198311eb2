"""Signatures that a run has kept."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mdmf_deploy import __version__
from mdmf_deploy.detection.detector import Detector
from mdmf_deploy.detection.outputs.done import InputKey
from mdmf_deploy.detection.outputs.parts import PartFolder
from mdmf_deploy.detection.outputs.signatures import KIND, Extractor, SignatureKeeper, SignatureType
from mdmf_deploy.detection.rows import Row
from mdmf_deploy.detection.settings import RunSettings


def settings_of(detector: Detector, crops: int | None = None) -> RunSettings:
    bundle = detector.bundle
    return RunSettings(
        tool=__version__,
        bundle_id=bundle.bundle_id,
        calibration_id=bundle.calibration_id,
        runtime=detector.runtime,
        precision=detector.engine.precision,
        verdicts=detector.caveat is None,
        crops=crops or bundle.manifest.preprocessing.crops,
        frames=10,
        each_frame=False,
        max_pixels=10**8,
        max_memory=2**30,
        max_seconds=10.0,
    )


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
        settings = settings_of(detector, crops)
        with (
            PartFolder.open(str(folder), settings, KIND, extractor.schema, resume=resume) as parts,
            SignatureKeeper(parts, extractor) as keeper,
        ):
            stream = detector.stream_by_source(sources, on_extraction=keeper.extracted)
            for n, (path, rows) in enumerate(zip(sources, stream, strict=True), 1):
                found += rows
                keeper.add(InputKey.of(path))
                if n % part_of == 0:
                    keeper.flush()
    return found
