"""Where a training run stands: one safetensors file that a resumed run continues from."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from mdmf_deploy.errors import CheckpointError
from mdmf_deploy.files import atomic_file


@dataclass(frozen=True, slots=True)
class State:
    """step: steps done.  fingerprint: of recipe and data.  history: one dict a logged step."""

    step: int
    fingerprint: str
    tensors: dict[str, Tensor]
    history: list[dict[str, float]]


def write_state(path: Path, state: State) -> None:
    """Write the state atomically. An interrupted save leaves the last one whole. Raises OSError."""
    header = {"step": state.step, "fingerprint": state.fingerprint, "history": state.history}
    tensors = {name: tensor.detach().contiguous() for name, tensor in state.tensors.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as scratch:
        scratch.write_bytes(save(tensors, metadata={"mdmf": json.dumps(header)}))


def read_state(path: Path, fingerprint: str) -> State:
    """Raises CheckpointError if the file is damaged, or of another recipe or other data."""
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads(file.metadata()["mdmf"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} is not a training state ({error}); start again without --resume") from error
    if header["fingerprint"] != fingerprint:
        raise CheckpointError(
            f"{path} was trained with another recipe or other images; choose another -o to start afresh"
        )
    return State(header["step"], header["fingerprint"], tensors, header["history"])


def optimiser_tensors(optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimiser's moments and counts by parameter number."""
    state = optimiser.state_dict()["state"]
    return {f"optimiser.{index}.{key}": value for index, entry in state.items() for key, value in entry.items()}


def restore_optimiser(optimiser: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Put back what optimiser_tensors took."""
    entries: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith("optimiser."):
            _, index, key = name.split(".")
            entries.setdefault(int(index), {})[key] = tensor
    optimiser.load_state_dict({"state": entries, "param_groups": optimiser.state_dict()["param_groups"]})
