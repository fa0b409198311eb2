"""A TensorRT plan for Triton to run: only one that says what it is, and is this bundle's."""

from __future__ import annotations

from pathlib import Path

import msgspec

from mdmf_deploy.bundle.bundle import Bundle
from mdmf_deploy.errors import UsageError
from mdmf_deploy.files import file_sha256
from mdmf_deploy.runtime.building.plans import PlanCard
from mdmf_deploy.runtime.building.profiles import Batch
from mdmf_deploy.triton_repository.preprocessing import IMAGES
from mdmf_deploy.triton_repository.reduction import SIGNATURES


def check_plan(plan: Path, bundle: Bundle, most: int) -> PlanCard:
    """The card of a plan that Triton can run for this bundle with batches of 1 to `most`.

    Raises UsageError if the plan or its card is missing or damaged, or it is another model's, library's or batch's.
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


def _card(plan: Path) -> tuple[PlanCard, Batch]:
    beside = plan.with_suffix(".json")
    try:
        sha256 = file_sha256(plan)
        card = msgspec.json.decode(beside.read_bytes(), type=PlanCard)
        batch = msgspec.convert(card.key.profile.get("batch"), Batch)
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
