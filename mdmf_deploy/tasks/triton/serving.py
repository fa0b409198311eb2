"""How a bundle will be served, and whether its thresholds hold there."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec

from mdmf_deploy.bundle.bundle import Bundle, hint
from mdmf_deploy.bundle.calibration import Calibration, Pair
from mdmf_deploy.errors import UsageError
from mdmf_deploy.files import file_sha256
from mdmf_deploy.runtime.building.plans import PlanCard
from mdmf_deploy.runtime.building.profiles import BatchRange
from mdmf_deploy.tasks.triton.graphs import IMAGES, SIGNATURES

ServingDevice = Literal["cpu", "gpu"]


@dataclass(frozen=True, slots=True)
class Serving:
    """How Triton runs the models.

    max_batch: most crops in one batch.
    plan: a TensorRT plan of the bundle's graph (`mdmf build`), to extract signatures instead of ONNX Runtime. Its
        device must be "gpu".
    Raises UsageError for an empty batch, and for a plan on the CPU.
    """

    device: ServingDevice = "cpu"
    max_batch: int = 32
    plan: Path | None = None

    def __post_init__(self) -> None:
        if self.max_batch < 1:
            raise UsageError(f"a batch must hold at least 1 crop, got {self.max_batch}")
        if self.plan is not None and self.device == "cpu":
            raise UsageError(f"{self.plan}: a TensorRT plan runs on a GPU only; serve on gpu, or without a plan")

    @property
    def runtime(self) -> str:
        """The runtime that extracts signatures, under its name in verifications and calibrations."""
        if self.plan is not None:
            return "tensorrt"
        return "onnxruntime" if self.device == "cpu" else "cuda"


def model_name(name: str) -> str:
    """Return the name of a bundle's ensemble in Triton, which is the bundle's own.

    Raises UsageError if the name cannot be a folder and a part of an address.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name):
        raise UsageError(
            f"bundle {name!r}: Triton's models are folders and parts of addresses; expected letters, digits, '_', '-' "
            "and '.' only; rename the recipe and export it again"
        )
    return name


def valid_calibration(bundle: Bundle, serving: Serving) -> Calibration | None:
    """Return the bundle's calibration if it holds where the bundle will be served, and decides for some size."""
    calibration = bundle.calibration
    if calibration is None or Pair(serving.runtime, bundle.manifest.model.precision) not in calibration.holds_for:
        return None
    if calibration.shortage is not None:
        return None
    return calibration


def caveat(bundle: Bundle, serving: Serving) -> str | None:
    """Return why there will be no verdicts and what to run, or None if there will be."""
    runtime, precision = serving.runtime, bundle.manifest.model.precision
    calibration = bundle.calibration
    if not bundle.covers(runtime, precision):
        return (
            f"{runtime} {precision} is not verified for this bundle; run "
            f"{hint('verify', bundle.path, '--runtime', runtime)}, and write the repository again"
        )
    if calibration is None:
        return (
            f"this bundle has no thresholds; run {hint('calibrate', bundle.path, 'REAL_PHOTOS')}, and write the "
            "repository of the new bundle"
        )
    if calibration.shortage is not None:
        return (
            f"{calibration.shortage}; run {hint('calibrate', bundle.path, 'REAL_PHOTOS')} with more, and write the "
            "repository of the new bundle"
        )
    return None


def check_plan(plan: Path, bundle: Bundle, most: int) -> PlanCard:
    """Return the card of a plan, if Triton can run the plan for this bundle with batches of 1 to `most`.

    Raises UsageError if the plan or its card is missing or damaged, or was made for another model, library or batch.
    """
    card, batch = _card(plan)
    key = card.key
    model = bundle.manifest.model_sha256
    if key.model != model:
        raise UsageError(
            f"{plan}: built from another model ({key.model[:12]}, this bundle's is {model[:12]}); "
            f"run `mdmf build {bundle.path}`"
        )
    if key.library != "tensorrt":
        raise UsageError(f"{plan}: built by {key.library}, which Triton does not run; build it with TensorRT")
    if batch.min > 1 or batch.max < most:
        raise UsageError(
            f"{plan}: built for batches of {batch.min} to {batch.max}, expected 1 to {most}; give "
            "--triton-batch, or build it with another profile"
        )
    tensors = [(tensor.name, tensor.type) for tensor in (*card.inputs, *card.outputs)]
    if tensors != [(IMAGES, "FLOAT"), (SIGNATURES, "FLOAT")]:
        raise UsageError(f"{plan}: has {tensors}, expected float32 {IMAGES} and {SIGNATURES}; build it again")
    return card


def _card(plan: Path) -> tuple[PlanCard, BatchRange]:
    beside = plan.with_suffix(".json")
    try:
        sha256 = file_sha256(plan)
        card = msgspec.json.decode(beside.read_bytes(), type=PlanCard)
        batch = msgspec.convert(card.key.profile.get("batch"), BatchRange)
    except OSError as error:
        missing = error.filename or plan
        raise UsageError(
            f"{missing}: {error.strerror}; give a plan that `mdmf build` wrote, with the .json beside it"
        ) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{beside} does not describe a plan ({error}); run `mdmf build` again") from error
    if sha256 != card.sha256:
        raise UsageError(f"{plan} is damaged: its hash is not its card's; run `mdmf build` again")
    return card, batch
