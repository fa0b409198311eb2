"""The training loop: maximise the test power, watch the validation AUROC, save, resume."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch
from accelerate import Accelerator, PartialState
from torch import Tensor

from mdmf_deploy.bundle.recipe import Training
from mdmf_deploy.errors import TrainingFailed
from mdmf_deploy.model.pfs import MdmfModel
from mdmf_deploy.tasks.train.data import Batch, Batches
from mdmf_deploy.tasks.train.network import TrainingNet, classification_loss, criterion
from mdmf_deploy.tasks.train.state import State, optimiser_tensors, read_state, restore_optimiser, write_state

STATE = "state.safetensors"


@dataclass(frozen=True, slots=True)
class Cadence:
    """Every how many steps to log, to validate, and to save."""

    log: int = 10
    validate: int = 200
    save: int = 200


# Validation: the network in, AUROC by generator out.
Validate = Callable[[MdmfModel], dict[str, float]]
# Called after every logged step with its record.
Watch = Callable[[dict[str, float]], None]


def train(
    net: TrainingNet,
    batches: Batches,
    plan: Training,
    validate: Validate,
    folder: Path,
    fingerprint: str,
    *,
    resume: bool = False,
    amp: bool = False,
    cadence: Cadence | None = None,
    watch: Watch = lambda record: None,
    stop_after: int | None = None,
) -> MdmfModel:
    """Train for plan.steps and return the trained (averaged, where the recipe averages) detector.

    folder: where the state is kept.  stop_after: leave early at that step, as an interruption would.
    Raises CheckpointError if `resume` finds no state, or one of another recipe or other data; TrainingFailed if the
    loss stops being a number: the last good state stays.
    """
    cadence = cadence or Cadence()
    processes()
    accelerator = Accelerator()
    net = net.to(accelerator.device)
    torch.manual_seed(plan.seed)
    optimiser = torch.optim.AdamW(_groups(net, plan), lr=plan.learning_rate, betas=(0.9, 0.98))
    # Every process draws batches of its own.
    stream = accelerator.process_index * 1_000_003
    backbone = net.detector.backbone
    # A frozen backbone is neither averaged nor saved again and again: it may be a thousand times the head.
    average = copy.deepcopy(net.detector, {id(backbone): backbone} if net.frozen else {})
    history: list[dict[str, float]] = []
    start = 0
    path = folder / STATE
    if resume:
        state = read_state(path, fingerprint)
        net.load_state_dict(_under("net.", state.tensors), strict=not net.frozen)
        average.load_state_dict(_under("average.", state.tensors), strict=not net.frozen)
        restore_optimiser(optimiser, state.tensors)
        history, start = state.history, state.step
        for earlier in history:
            watch(earlier)
    else:
        net.start_bandwidth(_stacked(batches(stream)).to(accelerator.device))
        average.load_state_dict(net.detector.state_dict())
    model, optimiser = accelerator.prepare(net, optimiser)
    for step in range(start, plan.steps if stop_after is None else min(stop_after, plan.steps)):
        for group in optimiser.param_groups:
            group["lr"] = group["scale"] * _learning_rate(step, plan)
        # bfloat16 needs no loss scaling; torch's own autocast, since accelerate's setting is one for the whole process.
        with torch.autocast(accelerator.device.type, torch.bfloat16, enabled=amp):
            signatures, logits, sigma = model(_stacked(batches(stream + step)).to(accelerator.device))
        power, gap = criterion(signatures, sigma, plan)
        loss = -power
        if logits is not None and plan.patch_cross_entropy > 0:
            loss = loss + plan.patch_cross_entropy * classification_loss(logits)
        optimiser.zero_grad()
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        _average(average, net.detector, step, plan.average)
        done = step + 1
        last, checked = done == plan.steps, done % cadence.validate == 0
        if done % cadence.log == 0 or checked or last:
            values = {"loss": loss, "power": power, "mmd2": gap, "sigma": sigma}
            record: dict[str, float] = {"step": done} | {name: value.item() for name, value in values.items()}
            if not math.isfinite(record["loss"]):
                raise TrainingFailed(f"the loss is {record['loss']} at step {done}; try a lower learning_rate")
            if checked or last:
                record |= {f"auroc_{name}": value for name, value in validate(average).items()}
            history.append(record)
            watch(record)
        if accelerator.is_main_process and (done % cadence.save == 0 or last or done == stop_after):
            tensors = _over("net.", net.state_dict()) | _over("average.", average.state_dict())
            if net.frozen:
                tensors = {name: tensor for name, tensor in tensors.items() if "backbone." not in name}
            write_state(path, State(done, fingerprint, tensors | optimiser_tensors(optimiser), history))
    return average


def _groups(net: TrainingNet, plan: Training) -> list[dict[str, object]]:
    """Weight decay on matrices and embeddings; the bandwidth, one number in log space, learns ten times as fast."""
    matrices = [p for p in net.parameters() if p.requires_grad and p.ndim >= 2]
    vectors = [p for p in net.parameters() if p.requires_grad and p.ndim == 1]
    scalars = [p for p in net.parameters() if p.requires_grad and p.ndim == 0]
    return [
        {"params": matrices, "weight_decay": plan.weight_decay, "scale": 1.0},
        {"params": vectors, "weight_decay": 0.0, "scale": 1.0},
        {"params": scalars, "weight_decay": 0.0, "scale": 10.0},
    ]


def _learning_rate(step: int, plan: Training) -> float:
    """Linear warm-up, then half a cosine down to a hundredth."""
    if step < plan.warmup:
        return plan.learning_rate * (step + 1) / plan.warmup
    progress = (step - plan.warmup) / max(1, plan.steps - plan.warmup)
    return plan.learning_rate * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, progress))))


@torch.no_grad()
def _average(average: MdmfModel, current: MdmfModel, step: int, decay: float) -> None:
    """Exponential moving average of the weights; its memory grows from nothing, so the start is not remembered."""
    keep = min(decay, (step + 1) / (step + 10))
    for kept, new in zip(average.parameters(), current.parameters(), strict=True):
        if kept is not new:
            kept.lerp_(new, 1 - keep)


def _stacked(batch: Batch) -> Tensor:
    return torch.cat([batch.real, batch.generated])


def _over(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in tensors.items()}


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


# How long the others wait for the one that trains the autoencoders or computes the features.
_PREPARING = timedelta(hours=24)


def processes() -> PartialState:
    """Who is who; joins the others on the first call.

    Accelerate takes several processes without a GPU for strangers unless it is told that the CPU is meant.
    """
    return PartialState(cpu=not torch.accelerator.is_available(), timeout=_PREPARING)
