"""How a bundle is to be served, and what its thresholds are worth there."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mdmf_deploy.bundle.bundle import Bundle, hint
from mdmf_deploy.bundle.calibration import Calibration, Pair
from mdmf_deploy.errors import UsageError

Device = Literal["cpu", "gpu"]


@dataclass(frozen=True, slots=True)
class Serving:
    """device: where the models run.  max_batch: most crops of one batch.

    plan: one of the bundle's graph by TensorRT (`mdmf build`), to sign crops in place of ONNX Runtime; needs "gpu".
    Raises UsageError where that makes no sense.
    """

    device: Device = "cpu"
    max_batch: int = 32
    plan: Path | None = None

    def __post_init__(self) -> None:
        if self.max_batch < 1:
            raise UsageError(f"a batch must hold at least 1 crop, got {self.max_batch}")
        if self.plan is not None and self.device == "cpu":
            raise UsageError(f"{self.plan}: a TensorRT plan runs on a GPU only; serve on gpu, or without a plan")

    @property
    def runtime(self) -> str:
        """What signs crops, by the name that verification and calibrations have for it."""
        if self.plan is not None:
            return "tensorrt"
        return "onnxruntime" if self.device == "cpu" else "cuda"


def model_name(name: str) -> str:
    """What Triton is to call the ensemble of a bundle of this name: the same.

    Raises UsageError for one that is no sensible folder name and part of an address.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name):
        raise UsageError(
            f"bundle {name!r}: Triton's models are folders and parts of addresses; expected letters, digits, '_', '-' "
            "and '.' only; name the recipe otherwise and export it again"
        )
    return name


def holding(bundle: Bundle, serving: Serving) -> Calibration | None:
    """The bundle's calibration if it holds where it will be served."""
    calibration = bundle.calibration
    if calibration is None or Pair(serving.runtime, bundle.manifest.model.precision) not in calibration.holds_for:
        return None
    return calibration


def caveat(bundle: Bundle, serving: Serving) -> str | None:
    """Why there will be no p-values, and what to run; None if there will be."""
    runtime, precision = serving.runtime, bundle.manifest.model.precision
    if not bundle.covers(runtime, precision):
        return (
            f"{runtime} {precision} is not verified for this bundle; run "
            f"{hint('verify', bundle.path, '--runtime', runtime)}, and write the repository again"
        )
    if bundle.calibration is None:
        return (
            f"this bundle has no thresholds; run {hint('calibrate', bundle.path, 'REAL_PHOTOS')}, and write the "
            "repository again"
        )
    return None
