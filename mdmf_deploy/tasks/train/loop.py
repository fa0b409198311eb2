"""The training loop: maximise the test power, watch the validation AUROC, save, and resume."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch
from accelerate import Accelerator, PartialState
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from mdmf_deploy.bundle.recipe import Training
from mdmf_deploy.errors import CheckpointError, TrainingFailed
from mdmf_deploy.files import atomic_file
from mdmf_deploy.model.pfs import MdmfModel
from mdmf_deploy.tasks.train.batches import Batches, TrainingBatch
from mdmf_deploy.tasks.train.network import TrainingNet
from mdmf_deploy.tasks.train.objectives import criterion
from mdmf_deploy.tasks.train.phases import Count, Follow, ignore
from mdmf_deploy.tasks.train.validate import Record

STATE = "state.safetensors"
# How long the other processes wait for the one that computes the features.
_PREPARATION = timedelta(hours=24)

# Takes the detector, returns its figures on the validation part.
Validate = Callable[[MdmfModel], Record]
# Called with the record of every logged step.
Watch = Callable[[Record], None]


@dataclass(frozen=True, slots=True)
class Cadence:
    """The number of steps between two logs, two validations and two saves."""

    log: int = 10
    validate: int = 200
    save: int = 200


@dataclass(frozen=True, slots=True)
class LoopOptions:
    """How the loop runs and keeps its state.

    folder: where the state is kept.
    fingerprint: of the recipe and the data. Only a state with the same one is resumed.
    amp: compute in bfloat16.
    standardise: standardise the head's inputs by those of the first batch.
    stop_after: leave early at that step, like an interruption would.
    follow: receives how many steps are done.
    """

    folder: Path
    fingerprint: str
    resume: bool = False
    amp: bool = False
    standardise: bool = False
    cadence: Cadence = Cadence()
    stop_after: int | None = None
    follow: Follow = ignore


@dataclass(frozen=True, slots=True)
class TrainingState:
    """How far a training run has come. A resumed run continues from it.

    step: the number of steps done.
    tensors: the network, its average and the optimiser.
    history: one record per logged step.
    """

    step: int
    fingerprint: str
    tensors: dict[str, Tensor]
    history: list[Record]


def processes() -> PartialState:
    """Return this process's place among those that `accelerate launch` started. The first call joins the others.

    Without a GPU, Accelerate must be asked for the CPU explicitly, or several processes do not find each other.
    """
    return PartialState(cpu=not torch.accelerator.is_available(), timeout=_PREPARATION)


def train(
    net: TrainingNet,
    batches: Batches,
    training: Training,
    validate: Validate,
    options: LoopOptions,
    watch: Watch = lambda record: None,
) -> MdmfModel:
    """Train for training.steps and return the detector, averaged if the recipe averages.

    Raises CheckpointError if there is no state to resume from, or one of another recipe or other data.
    Raises TrainingFailed if the loss stops being a number. The last good state stays.
    """
    processes()
    accelerator = Accelerator()
    net = net.to(accelerator.device)
    torch.manual_seed(training.seed)
    optimiser = torch.optim.AdamW(parameter_groups(net, training), lr=training.learning_rate, betas=(0.9, 0.98))
    # Every process draws its own batches.
    stream = accelerator.process_index * 1_000_003
    # Neither average nor save what is frozen: a backbone may be a thousand times as large as the head.
    frozen = net.frozen_names()
    average = copy.deepcopy(net.detector, {id(p): p for p in net.detector.parameters() if not p.requires_grad})
    history: list[Record] = []
    start = 0
    path, cadence = options.folder / STATE, options.cadence
    if options.resume:
        state = read_state(path, options.fingerprint)
        net.load_state_dict(_without("net.", state.tensors), strict=False)
        average.load_state_dict(_without("average.", state.tensors), strict=False)
        _restore_optimiser(optimiser, state.tensors)
        history, start = state.history, state.step
        for earlier in history:
            watch(earlier)
    else:
        net.start(_stacked(batches(0)).to(accelerator.device), options.standardise)
        average.load_state_dict(net.detector.state_dict())
    model, optimiser = accelerator.prepare(net, optimiser)
    end = training.steps if options.stop_after is None else min(options.stop_after, training.steps)
    count = Count("training", "steps", training.steps, options.follow, done=start)
    for step in count.over(range(start, end)):
        factor = learning_rate(step, training) / training.learning_rate
        for group in optimiser.param_groups:
            group["lr"] = group["top"] * factor
        # Dropout must not depend on the steps before, which a resumed run does not repeat.
        torch.manual_seed((training.seed << 32) + stream + step)
        batch = batches(stream + step)
        # bfloat16 needs no loss scaling. Accelerate's own setting would hold for the whole process.
        with torch.autocast(accelerator.device.type, torch.bfloat16, enabled=options.amp):
            signatures, logits, sigma = model(_stacked(batch).to(accelerator.device))
        loss = criterion(signatures, logits, sigma, training, batch.paired)
        optimiser.zero_grad()
        accelerator.backward(loss.total)
        accelerator.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        net.keep_bandwidth()
        _update_average(average, net.detector, step, training.average)
        done = step + 1
        last, validated = done == training.steps, done % cadence.validate == 0
        if done % cadence.log == 0 or validated or last:
            values = {"loss": loss.total, "power": loss.power, "mmd2": loss.gap, "sigma": sigma}
            record: Record = {"step": done} | {name: value.item() for name, value in values.items()}
            if not math.isfinite(record["loss"]):
                raise TrainingFailed(f"the loss is {record['loss']} at step {done}; try a lower learning_rate")
            if validated or last:
                record |= validate(average)
            history.append(record)
            watch(record)
        if accelerator.is_main_process and (done % cadence.save == 0 or last or done == options.stop_after):
            kept = {name: value for name, value in net.state_dict().items() if name not in frozen}
            averaged = _with("detector.", average.state_dict())
            averaged = {name: value for name, value in averaged.items() if name not in frozen}
            tensors = _with("net.", kept) | _with("average.", _without("detector.", averaged))
            tensors |= _optimiser_tensors(optimiser)
            write_state(path, TrainingState(done, options.fingerprint, tensors, history))
    return average.eval()


def parameter_groups(net: TrainingNet, training: Training) -> list[dict[str, object]]:
    """Group the trained parameters for the optimiser. "top" is a group's learning rate after the warm-up.

    Weight decay applies to matrices and embeddings. The bandwidth, one number in log space, learns ten times as fast.
    """
    body = {id(p) for p in net.detector.backbone.parameters()}
    groups: dict[tuple[float, float], list[Tensor]] = {}
    for parameter in net.parameters():
        if not parameter.requires_grad:
            continue
        rate = training.backbone_learning_rate if id(parameter) in body else training.learning_rate
        rate *= 1.0 if parameter.ndim else 10.0
        groups.setdefault((rate, training.weight_decay if parameter.ndim >= 2 else 0.0), []).append(parameter)
    return [{"params": found, "weight_decay": decay, "top": rate} for (rate, decay), found in groups.items()]


def learning_rate(step: int, training: Training) -> float:
    """Return the learning rate of a step: a linear warm-up, then half a cosine down to a hundredth."""
    if step < training.warmup:
        return training.learning_rate * (step + 1) / training.warmup
    progress = (step - training.warmup) / max(1, training.steps - training.warmup)
    return training.learning_rate * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, progress))))


def write_state(path: Path, state: TrainingState) -> None:
    """Write the state atomically. An interrupted save leaves the last one whole. Raises OSError."""
    header = {"step": state.step, "fingerprint": state.fingerprint, "history": state.history}
    tensors = {name: tensor.detach().contiguous() for name, tensor in state.tensors.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as scratch:
        scratch.write_bytes(save(tensors, metadata={"mdmf": json.dumps(header)}))


def read_state(path: Path, fingerprint: str, *, tensors: bool = True) -> TrainingState:
    """Read a state. Raises CheckpointError if it is damaged, or belongs to another recipe or other data.

    tensors: whether to read them, too. They may be gigabytes.
    """
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads(file.metadata()["mdmf"])
            found = {name: file.get_tensor(name) for name in file.keys()} if tensors else {}  # noqa: SIM118
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{path} is not a training state ({error}); remove it, and start without --resume"
        ) from error
    if header["fingerprint"] != fingerprint:
        raise CheckpointError(
            f"{path} was trained with another recipe or other images; choose another -o to start afresh"
        )
    return TrainingState(header["step"], header["fingerprint"], found, header["history"])


def _optimiser_tensors(optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return the optimiser's moments and counts by parameter number."""
    state = optimiser.state_dict()["state"]
    return {f"optimiser.{index}.{key}": value for index, entry in state.items() for key, value in entry.items()}


def _restore_optimiser(optimiser: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    entries: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith("optimiser."):
            _, index, key = name.split(".")
            entries.setdefault(int(index), {})[key] = tensor
    optimiser.load_state_dict({"state": entries, "param_groups": optimiser.state_dict()["param_groups"]})


@torch.no_grad()
def _update_average(average: MdmfModel, current: MdmfModel, step: int, decay: float) -> None:
    """Move the exponential average of the weights. Its memory grows from nothing, so that it forgets the start."""
    keep = min(decay, (step + 1) / (step + 10))
    for kept, new in zip(average.parameters(), current.parameters(), strict=True):
        if kept is not new:
            kept.lerp_(new, 1 - keep)


def _stacked(batch: TrainingBatch) -> Tensor:
    return torch.cat([batch.real, batch.generated])


def _with(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in tensors.items()}


def _without(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
