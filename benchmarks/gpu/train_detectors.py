"""Train detectors from one packed folder: LoRA or unfrozen blocks on DINOv2-S, and the starter end to end.

    python benchmarks/gpu/train_detectors.py FOLDER PLAN.json -o OUT [--steps N]

It does what `mdmf train` does, for many runs on the same augmented crops, which stay on the GPU.
FOLDER holds backbone.safetensors (official keys), taesd/ and images/{real,generated}/SOURCE/*.jpg. PLAN.json is a list
of runs, the fields of `Run`. Each run writes a line of OUT/results-PART.jsonl with its figures on held-out sources and,
if asked to, OUT/NAME.safetensors: head, adapters or trained weights in fp16. Works on a CPU too (--steps 20).
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import msgspec
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from training_crops import Data, Pool, Sampler, load
from training_figures import evaluate

from mdmf_deploy.bundle.recipe import Adapters, Backbone, Head, Pairs, Preprocessing, Recipe, Training
from mdmf_deploy.model.pfs import MdmfModel
from mdmf_deploy.tasks.train.batches import normalised
from mdmf_deploy.tasks.train.lora import factors
from mdmf_deploy.tasks.train.network import TrainingNet, Tuned, initialise
from mdmf_deploy.tasks.train.objectives import criterion

SIGMA = 0.7


@dataclass(frozen=True)
class Run:
    """One run. Blocks are counted from 1, and weights are those of the loss's parts."""

    name: str
    backbone: str = "dinov2s"  # or "starter"
    blocks: tuple[int, ...] = (3, 6, 9)
    lora: tuple[int, ...] = ()
    rank: int = 8
    unfrozen: tuple[int, ...] = ()
    hidden: tuple[int, ...] = (512, 512)
    signature: int = 128
    dropout: float = 0.0
    steps: int = 1500
    batch: int = 96
    rate: float = 5e-4
    head_rate: float = 1e-3
    pairs: float = 0.25
    pair_weight: float = 0.5
    entropy: float = 1.0
    power: float = 1.0
    decay: float = 0.05
    seed: int = 0
    held_out: tuple[str, ...] = ()
    keep: bool = False
    curve: bool = False


def recipe_of(run: Run) -> Recipe:
    """Return the recipe of the same detector and loss."""
    training = Training(
        test_power=run.power,
        patch_cross_entropy=run.entropy,
        sigma=SIGMA,
        dropout=run.dropout,
        regulariser=1e-3,
        pairs=Pairs(share=run.pairs, weight=run.pair_weight),
        lora=Adapters(blocks=run.lora, rank=run.rank),
    )
    return Recipe(
        name=run.name,
        summary="",
        backbone=Backbone(
            architecture="starter_vit14" if run.backbone == "starter" else "dinov2_vits14",
            blocks=run.blocks,
            position_resampling="transformers",
        ),
        head=Head(hidden=run.hidden, signature=run.signature, normalise=True),
        training=training,
    )


def network(run: Run, weights: dict[str, Tensor]) -> TrainingNet:
    """Return the network of a run, with the backbone's weights unless it starts from scratch."""
    recipe = recipe_of(run)
    detector = MdmfModel(recipe)
    if run.backbone != "starter":
        own = detector.backbone.state_dict()
        detector.backbone.load_state_dict({key: value.float() for key, value in weights.items() if key in own})
    tuned: Tuned = "adapters" if run.lora else "all" if run.unfrozen or run.backbone == "starter" else "nothing"
    net = TrainingNet(detector, recipe.training, tuned)
    if run.unfrozen:
        detector.backbone.requires_grad_(False)
        for number in run.unfrozen:
            detector.backbone.blocks[number - 1].requires_grad_(True)
    return net


def patches_of(net: TrainingNet, crops: Tensor, amp: bool) -> Tensor:
    """Return pooled tokens of uint8 crops."""
    with torch.autocast(crops.device.type, torch.bfloat16, enabled=amp):
        detector = net.detector
        return detector.head.patches(detector.backbone(normalised(crops.float(), Preprocessing())))


def fit(
    run: Run, data: Data, pool: Pool, weights: dict[str, Tensor], device: torch.device
) -> tuple[MdmfModel, list[dict[str, float]]]:
    """Train one run. Return the average of its weights, and its history."""
    torch.manual_seed(run.seed)
    amp, training, held = device.type == "cuda", recipe_of(run).training, frozenset(run.held_out)
    net = network(run, weights)
    detector, frozen = net.detector, net.tuned == "nothing"
    sampler = Sampler(data, pool, run.batch, run.pairs, held, run.seed)
    if run.backbone == "starter":
        crops = normalised(pool.crops[sampler()[0]].cpu().float(), Preprocessing())
        initialise(detector.backbone, crops.numpy(), run.seed)
    net.to(device)
    if run.backbone != "starter":
        with torch.no_grad():
            places = torch.cat([part for _ in range(3) for part in sampler()[:2]])
            parts = [patches_of(net, pool.crops[part], False) for part in torch.split(places, 64)]
            patches = torch.cat(parts).flatten(0, 1)
            detector.head.standardise(patches.mean(0), patches.std(0))
    if frozen and pool.features is None:
        with torch.no_grad():
            shape = (len(pool.crops), 49, detector.backbone.width)
            pool.features = torch.empty(shape, dtype=torch.float16, device=device)
            for start in range(0, len(pool.crops), 256):
                pool.features[start : start + 256] = patches_of(net, pool.crops[start : start + 256], amp).half()
    trained = [(n, p) for n, p in net.named_parameters() if p.requires_grad]
    head = [p for n, p in trained if not n.startswith("detector.backbone.")]
    body = [p for n, p in trained if n.startswith("detector.backbone.")]
    groups = [{"params": head, "top": run.head_rate}, {"params": body, "top": run.rate}]
    optimiser = torch.optim.AdamW(groups, lr=1e-3, weight_decay=run.decay, betas=(0.9, 0.99))
    average = copy.deepcopy(detector).requires_grad_(False)
    start_time, history = time.perf_counter(), []
    for step in range(run.steps):
        warm = min(1.0, (step + 1) / 100)
        factor = warm * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * step / run.steps)))
        for group in optimiser.param_groups:
            group["lr"] = group["top"] * factor
        real, generated, paired = sampler()
        chosen = torch.cat([real, generated]).to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=amp):
            if frozen and pool.features is not None:
                signatures, logits, sigma = net(pool.features[chosen].float())
            else:
                signatures, logits, sigma = net(normalised(pool.crops[chosen].float(), Preprocessing()))
        loss = criterion(signatures, logits, sigma, training, paired)
        optimiser.zero_grad()
        torch.autograd.backward(loss.total)
        nn.utils.clip_grad_norm_(head + body, 1.0)
        optimiser.step()
        keep = min(0.995, (step + 1) / (step + 10))
        with torch.no_grad():
            torch._foreach_lerp_(list(average.parameters()), list(detector.parameters()), 1 - keep)
        if (step + 1) % 100 == 0 or step + 1 == run.steps or (step < 20 and not amp):
            seconds = time.perf_counter() - start_time
            history.append(
                {"step": step + 1, "power": loss.power.item(), "loss": loss.total.item(), "seconds": seconds}
            )
        if run.curve and (step + 1) in (500, 1000, 2000, 3000, 4000) and step + 1 < run.steps:
            figures = evaluate(average.eval(), data, held, brief=True)
            print(run.name, step + 1, json.dumps(figures), flush=True)
    return average.eval(), history


def save(detector: MdmfModel, run: Run, path: Path) -> None:
    """Write head, bandwidth, and what was trained of the backbone, in half precision where that is enough."""
    state = detector.state_dict()
    tensors = {key: value for key, value in state.items() if not key.startswith("backbone.")}
    tensors |= {f"lora.{name}": value for name, value in factors(detector.backbone)}
    kept = tuple(f"backbone.blocks.{number - 1}." for number in run.unfrozen)
    if run.backbone == "starter":
        kept = ("backbone.",)
    tensors |= {key: value for key, value in state.items() if kept and key.startswith(kept)}
    exact = ("head.mean", "head.scale", "log_sigma")
    halves = {k: (v.float() if k in exact else v.half()).cpu().contiguous() for k, v in tensors.items()}
    facts = {"lora_scale": recipe_of(run).training.lora.scale} if run.lora else {}
    save_file(halves, path, metadata={"run": json.dumps(asdict(run)), "mdmf": json.dumps(facts)})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("plan", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--steps", type=int, help="at most so many steps a run")
    parser.add_argument("--limit", type=int, help="at most so many images of a source")
    parser.add_argument("--part", default="0/1", help="I/N: only every N-th run, from the I-th")
    parser.add_argument("--views", type=int, default=40, help="augmented crops of an image")
    parser.add_argument("--prepare", action="store_true", help="only compute the reconstructions, and keep them")
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    options.output.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    data = load(options.folder, device, options.limit)
    weights = load_file(options.folder / "backbone.safetensors")
    print(f"loaded {len(data.source)} images in {time.perf_counter() - start:.0f} s", flush=True)
    if options.prepare:
        return
    start = time.perf_counter()
    pool = Pool.make(data, options.views)
    print(f"{len(pool.crops)} crops in {time.perf_counter() - start:.0f} s", flush=True)
    part, parts = map(int, options.part.split("/"))
    for entry in json.loads(options.plan.read_text())[part::parts]:
        run = msgspec.convert(entry, Run)
        if options.steps:
            run = replace(run, steps=min(run.steps, options.steps))
        start = time.perf_counter()
        net, history = fit(run, data, pool, weights, device)
        seconds = time.perf_counter() - start
        figures = evaluate(net, data, frozenset(run.held_out))
        if run.keep:
            save(net, run, options.output / f"{run.name}.safetensors")
        record = {"run": asdict(run), "seconds": seconds, "history": history[-3:], "figures": figures}
        with (options.output / f"results-{part}.jsonl").open("a") as file:
            file.write(json.dumps(record) + "\n")
        whole = time.perf_counter() - start
        print(run.name, f"{seconds:.0f} s", f"{whole:.0f} s", json.dumps(figures["crops1"]), flush=True)


if __name__ == "__main__":
    main()
