"""A TensorRT plan for Triton to run: only one that says what it is, and is this bundle's."""

from __future__ import annotations

import hashlib
from pathlib import Path

import msgspec

from mdmf_deploy.bundle import Bundle
from mdmf_deploy.errors import UsageError
from mdmf_deploy.triton_repository.preprocessing import IMAGES
from mdmf_deploy.triton_repository.reduction import SIGNATURES


class PlanBatch(msgspec.Struct, frozen=True):
    """Images in a batch: any number from min to max."""

    min: int
    max: int


class PlanProfile(msgspec.Struct, frozen=True):
    batch: PlanBatch


class PlanKey(msgspec.Struct, frozen=True):
    """What of an engine's key matters here.  model: mdmf_deploy.bundle.Manifest.model_sha256."""

    model: str
    library: str
    version: str
    compute_capability: str
    gpu: str
    profile: PlanProfile


class PlanTensor(msgspec.Struct, frozen=True):
    """An input or output.  type: as TensorRT names it, "FLOAT" for float32."""

    name: str
    type: str


class PlanCard(msgspec.Struct, frozen=True):
    """What of the JSON that `mdmf build` writes beside a plan matters here.  sha256: of the plan."""

    key: PlanKey
    sha256: str
    inputs: tuple[PlanTensor, ...]
    outputs: tuple[PlanTensor, ...]


def check_plan(plan: Path, bundle: Bundle, most: int) -> PlanCard:
    """The card of a plan that Triton can run for this bundle with batches of 1 to `most`.

    Raises UsageError if the plan or its card is missing or damaged, or it is another model's, library's or batch's.
    """
    card = _card(plan)
    key, batch = card.key, card.key.profile.batch
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


def _card(plan: Path) -> PlanCard:
    beside = plan.with_suffix(".json")
    try:
        with plan.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        card = msgspec.json.decode(beside.read_bytes(), type=PlanCard)
    except OSError as error:
        missing = error.filename or plan
        raise UsageError(
            f"{missing}: {error.strerror}; give a plan that `mdmf build` wrote, with the .json beside it"
        ) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{beside} does not describe a plan ({error}); run `mdmf build` again") from error
    if sha256 != card.sha256:
        raise UsageError(f"{plan} is damaged: its hash is not its card's; run `mdmf build` again")
    return card
