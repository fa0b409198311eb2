"""Train detectors from one packed folder: LoRA or unfrozen blocks on DINOv2-S, and the starter end to end.

    python benchmarks/gpu/train_detectors.py FOLDER PLAN.json -o OUT [--steps N]

FOLDER holds backbone.safetensors (official keys), taesd/ and images/{real,generated}/SOURCE/*.jpg. PLAN.json is a list of
runs, the fields of `Run`. Each run writes OUT/NAME.safetensors (head, adapters or trained weights in fp16) and a line of
OUT/results.jsonl with its figures on held-out sources. Works on a CPU too (--steps 20).
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from mdmf_deploy.model.architectures import Architecture, architecture  # noqa: E402
from mdmf_deploy.model.dinov2 import DinoV2  # noqa: E402
from mdmf_deploy.tasks.train.augment import Canvases, Degradation, Draws, augment  # noqa: E402
from mdmf_deploy.tasks.train.lora import adapt, factors  # noqa: E402

CROP, SIDE, SIGMA = 224, 384, 0.7
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
AUTOENCODERS = ("taesd", "taesdxl", "taesd3", "taef1")
HELD_OUT_AUTOENCODER = "taef2"


@dataclass(frozen=True)
class Run:
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


# ---------------------------------------------------------------- data


def featureless(count: int, seed: int = 0) -> list[Tensor]:
    """Draw flats, gradients, skies with noise, and pages of text, (384, 384, 3) uint8."""
    rng = np.random.default_rng(seed)
    made = []
    for n in range(count):
        side = 384
        y, x = np.mgrid[:side, :side] / side
        first, second = rng.uniform(0, 255, 3), rng.uniform(0, 255, 3)
        kind = n % 6
        if kind == 0:
            pixels = np.broadcast_to(first, (side, side, 3)).copy()
        elif kind in (1, 2):
            angle = rng.uniform(0, 2 * math.pi)
            ramp = np.clip((x - 0.5) * math.cos(angle) + (y - 0.5) * math.sin(angle) + 0.5, 0, 1)[..., None]
            pixels = first + (second - first) * ramp * rng.uniform(0.1, 1)
        elif kind == 3:
            light = np.array([rng.uniform(80, 200), rng.uniform(130, 220), rng.uniform(190, 255)])
            pixels = light + (255 - light) * (y ** rng.uniform(0.5, 2))[..., None]
        else:
            paper = 255 - rng.uniform(0, 30, 3)
            page = Image.new("RGB", (side, side), tuple(int(v) for v in paper))
            draw, size = ImageDraw.Draw(page), int(rng.integers(8, 26))
            font = ImageFont.load_default(size)
            ink = tuple(int(v) for v in rng.uniform(0, 90, 3))
            if kind == 5:
                page = Image.new("RGB", (side, side), ink)
                draw, ink = ImageDraw.Draw(page), tuple(int(v) for v in paper)
            letters = "etaoinshrdlu  etaoin cmfwyp vbgkjqxz ETAOIN 0123456789,."
            for top in range(int(rng.integers(0, 20)), side, int(size * rng.uniform(1.2, 2.5))):
                text = "".join(rng.choice(list(letters), int(rng.integers(5, 80))))
                draw.text((int(rng.integers(0, 20)), top), text, fill=ink, font=font)
            pixels = np.asarray(page).astype(float)
        if rng.random() < 0.5:
            pixels = pixels + rng.normal(0, rng.uniform(0.3, 4), (side, side, 1 if rng.random() < 0.5 else 3))
        made.append(torch.from_numpy(np.clip(np.round(pixels), 0, 255).astype(np.uint8)))
    return made


@dataclass
class Data:
    canvases: Canvases
    source: list[str]
    rebuilt: dict[str, Tensor]  # autoencoder -> (n, SIDE, SIDE, 3) uint8, zeros for generated images
    rows: dict[str, list[int]]

    def of(self, prefix: str) -> list[int]:
        return [row for name, rows in self.rows.items() if name.startswith(prefix) for row in rows]


def load(folder: Path, device: torch.device, limit: int | None) -> Data:
    paths: list[Path] = []
    for source in sorted((folder / "images").glob("*/*")):
        paths += sorted(source.glob("*.jpg"))[:limit]

    def read(path: Path) -> Tensor:
        return torch.from_numpy(np.array(Image.open(path).convert("RGB")))

    with ThreadPoolExecutor(8) as pool:
        images = list(pool.map(read, paths))
    names = [f"{path.parent.parent.name}/{path.parent.name}" for path in paths]
    blank = featureless(240)
    if limit is not None:
        blank = blank[: 6 * limit]
    images += blank
    names += ["real/featureless"] * len(blank)
    canvases = Canvases.of(images, SIDE)
    rows: dict[str, list[int]] = {}
    for row, name in enumerate(names):
        rows.setdefault(name, []).append(row)
    data = Data(canvases.to(device), names, {}, rows)
    photographs = torch.tensor([row for row in data.of("real/") if names[row] != "real/featureless"])
    cached = folder / "rebuilt.pt"
    if cached.is_file():
        data.rebuilt = {name: pixels.to(device) for name, pixels in torch.load(cached, weights_only=True).items()}
        return data
    for name in (*AUTOENCODERS, HELD_OUT_AUTOENCODER):
        data.rebuilt[name] = reconstruct(folder / "taesd", name, data.canvases, photographs, device)
    torch.save({name: pixels.cpu() for name, pixels in data.rebuilt.items()}, cached)
    return data


@torch.inference_mode()
def reconstruct(folder: Path, name: str, canvases: Canvases, rows: Tensor, device: torch.device) -> Tensor:
    encoder, decoder = autoencoder(folder, name, device)
    out = canvases.pixels.clone()  # The margin that is no multiple of 16 stays.
    rng = torch.Generator().manual_seed(len(name))
    alike: dict[tuple[int, int], list[int]] = {}
    for row in rows.tolist():
        height, width = (int(v) // 16 * 16 for v in canvases.sizes[row])
        alike.setdefault((height, width), []).append(row)
    for (height, width), group in alike.items():
        for which in torch.tensor(group).split(32):
            pixels = canvases.pixels[which.to(device), :height, :width].permute(0, 3, 1, 2).float() / 255
            with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                latent = encoder(pixels).float()
                noise = torch.rand(len(which), 1, 1, 1, generator=rng) * 0.15
                noise = noise * (torch.rand(len(which), 1, 1, 1, generator=rng) < 0.5)
                latent = latent + noise.to(device) * latent.std() * torch.randn_like(latent)
                again = decoder(latent).float().clamp(0, 1)
            out[which.to(device), :height, :width] = (again * 255).round().to(torch.uint8).permute(0, 2, 3, 1)
    return out


class Clamp(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x / 3) * 3


class Residual(nn.Module):
    def __init__(self, width: int, pool: nn.Module | None = None) -> None:
        super().__init__()
        conv = lambda: nn.Conv2d(width, width, 3, padding=1)  # noqa: E731
        self.conv = nn.Sequential(conv(), nn.ReLU(), conv(), nn.ReLU(), conv())
        if pool is not None:
            self.pool = pool

    def forward(self, x: Tensor) -> Tensor:
        extra = self.pool(x) if hasattr(self, "pool") else 0
        return F.relu(self.conv(x) + x + extra)


def _mid(width: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(width, width * 4, 1, bias=False), nn.GroupNorm(4, width * 4), nn.ReLU(inplace=True),
        nn.Conv2d(width * 4, width, 1, bias=False),
    )


def autoencoder(folder: Path, name: str, device: torch.device) -> tuple[nn.Module, nn.Module]:
    """Build TAESD's plain Sequentials (madebyollin/taesd, MIT) for a name in weights/taesd."""
    latent = {"taesd": 4, "taesdxl": 4, "taesd3": 16, "taef1": 16, "taef2": 32}[name]
    mid = (lambda: _mid(64)) if name == "taef2" else (lambda: None)
    block = lambda: Residual(64)  # noqa: E731
    down = lambda: nn.Conv2d(64, 64, 3, padding=1, stride=2, bias=False)  # noqa: E731
    conv = lambda a, b, bias=True: nn.Conv2d(a, b, 3, padding=1, bias=bias)  # noqa: E731
    tail = lambda: [Residual(64, mid()) for _ in range(3)]  # noqa: E731
    encoder = nn.Sequential(
        conv(3, 64), block(), down(), block(), block(), block(), down(), block(), block(), block(), down(),
        *tail(), conv(64, latent),
    )
    up = lambda: nn.Upsample(scale_factor=2)  # noqa: E731
    decoder = nn.Sequential(
        Clamp(), conv(latent, 64), nn.ReLU(),
        *tail(), up(), conv(64, 64, False), block(), block(), block(), up(), conv(64, 64, False),
        block(), block(), block(), up(), conv(64, 64, False), block(), conv(64, 3),
    )
    for part, module in (("encoder", encoder), ("decoder", decoder)):
        module.load_state_dict({k: v.float() for k, v in load_file(folder / f"{name}_{part}.safetensors").items()})
        module.to(device).eval()
    return encoder, decoder


# ---------------------------------------------------------------- model


class Net(nn.Module):
    def __init__(self, run: Run, weights: dict[str, Tensor] | None) -> None:
        super().__init__()
        shape: Architecture = architecture("starter_vit14" if run.backbone == "starter" else "dinov2_vits14")
        depth = max(run.blocks)
        self.backbone = DinoV2(replace(shape, depth=depth, offset=0.0))
        self.taps = run.blocks
        if weights is not None:
            kept = {k: v.float() for k, v in weights.items() if k in self.backbone.state_dict()}
            self.backbone.load_state_dict(kept)
        self.backbone.bake_position_embedding(CROP)
        self.backbone.requires_grad_(run.backbone == "starter")
        self.backbone.pos_embed.requires_grad_(run.backbone == "starter")
        self.backbone.mask_token.requires_grad_(False)
        self.backbone.norm.requires_grad_(False)
        if run.lora:
            adapt(self.backbone, run.lora, run.rank)
        for number in run.unfrozen:
            self.backbone.blocks[number - 1].requires_grad_(True)
        width = shape.width * len(run.blocks)
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("scale", torch.ones(width))
        widths = [width, *run.hidden, run.signature]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in zip(widths, widths[1:]))
        self.dropout = nn.Dropout(run.dropout)
        self.probe = nn.Linear(run.signature, 1)

    def patches(self, crops: Tensor) -> Tensor:
        """Crops (b, 3, S, S) in levels to pooled tokens (b, 49, C * taps)."""
        mean, std = crops.new_tensor(MEAN)[:, None, None], crops.new_tensor(STD)[:, None, None]
        x = self.backbone.patch_embed((crops / 255 - mean) / std)
        x = torch.cat([self.backbone.cls_token.expand(len(x), -1, -1).to(x.dtype), x], 1)
        x = x + self.backbone.position_embedding(16, 16)
        kept = []
        for number, block in enumerate(self.backbone.blocks, 1):
            x = block(x)
            if number in self.taps:
                kept.append(x[:, 1:])
        tokens = torch.cat(kept, -1).float().transpose(1, 2).unflatten(2, (16, 16))
        return F.adaptive_avg_pool2d(tokens, 7).flatten(2).transpose(1, 2)

    def signatures(self, patches: Tensor) -> Tensor:
        x = self.dropout((patches - self.mean) * self.scale)
        *inner, last = self.layers
        for layer in inner:
            x = self.dropout(F.gelu(layer(x)))
        return F.normalize(last(x), dim=-1)

    def forward(self, crops: Tensor, amp: bool) -> Tensor:
        with torch.autocast(crops.device.type, torch.bfloat16, enabled=amp):
            patches = self.patches(crops)
        return self.signatures(patches.float())


def gram(a: Tensor, b: Tensor) -> Tensor:
    return torch.exp((a @ b.transpose(-1, -2) - 1) / SIGMA**2)


def batch_scores(real: Tensor, generated: Tensor) -> tuple[Tensor, Tensor]:
    """Return MMD^2 of each image against the batch's other real images (mdmf_deploy.tasks.train.objectives)."""
    count, patches, d = real.shape
    everything = torch.cat([real, generated])
    kernel = gram(everything.reshape(-1, d), real.reshape(-1, d))
    block = kernel.reshape(len(everything), patches, count, patches).mean((1, 3))
    within = gram(everything, everything).mean((1, 2))
    between = block[:count]
    own, total = between.diagonal(), between.sum()
    others = between.sum(1) - own
    rest = (total - between.sum(0) - between.sum(1) + own) / (count - 1) ** 2
    return (
        within[:count] - 2 * others / (count - 1) + rest,
        within[count:] - 2 * block[count:].mean(1) + total / count**2,
    )


# ---------------------------------------------------------------- batches


@dataclass
class Pool:
    """Augmented crops, made once for all runs.

    crops: (n, 3, 224, 224) uint8.
    of: what -> row of the image -> places in `crops`. "pair" places hold the real half, its counterpart is the next one.
    """

    crops: Tensor
    of: dict[str, dict[int, list[int]]]
    features: Tensor | None = None

    @classmethod
    @torch.inference_mode()
    def make(cls, data: Data, views: int, seed: int = 0) -> Pool:
        rng = torch.Generator().manual_seed(seed)
        device = data.canvases.pixels.device
        names = data.source
        photographs = [r for r, n in enumerate(names) if kind(n) in ("photo", "art", "screen")]
        plans = [("real", photographs, views), ("generated", data.of("generated/"), views),
                 ("blank", data.of("real/featureless"), max(1, views // 4)),
                 ("zoom", [r for r in photographs if kind(names[r]) == "photo"], max(1, views // 16)),
                 ("pair", photographs, max(1, views // 2))]
        total = sum(len(rows) * count * (2 if what == "pair" else 1) for what, rows, count in plans)
        crops = torch.empty(total, 3, CROP, CROP, dtype=torch.uint8, device=device)
        of: dict[str, dict[int, list[int]]] = {}
        at = 0
        for what, rows, count in plans:
            queue = [rows[i] for _ in range(count) for i in torch.randperm(len(rows), generator=rng).tolist()]
            table = of.setdefault(what, {})
            for start in range(0, len(queue), 48):
                part = queue[start : start + 48]
                which, b = torch.tensor(part), len(part)
                draws = Draws.sample(b, Degradation(), rng)
                if what == "zoom":
                    draws = replace(draws, scale=6 + 10 * float(torch.rand((), generator=rng)))
                grain = torch.randn(b, 3, CROP + 16, CROP + 16, device=device)
                made = augment(data.canvases, which, draws, CROP, grain).to(torch.uint8)
                if what == "pair":
                    name = AUTOENCODERS[int(torch.randint(len(AUTOENCODERS), (), generator=rng))]
                    other = augment(Canvases(data.rebuilt[name], data.canvases.sizes), which, draws, CROP, grain)
                    made = torch.stack([made, other.to(torch.uint8)], 1).flatten(0, 1)
                step = len(made) // b
                crops[at : at + len(made)] = made
                for n, row in enumerate(part):
                    table.setdefault(row, []).append(at + step * n)
                at += len(made)
        return cls(crops, of)


class Sampler:
    """Draw a batch: sources in turn by the square root of their size, with pairs, featureless and enlarged reals."""

    def __init__(self, data: Data, pool: Pool, run: Run) -> None:
        self.data, self.pool, self.run = data, pool, run
        self.rng = np.random.default_rng(run.seed)
        held = set(run.held_out)

        def table(what: str, test) -> tuple[list[np.ndarray], np.ndarray]:  # type: ignore[no-untyped-def]
            """The places of each source, and the chance of each source."""
            places, sizes = [], []
            for name, rows in data.rows.items():
                rows = [r for r in trained(name, rows) if r in pool.of[what]] if name not in held and test(name) else []
                if rows:
                    places.append(np.array([p for r in rows for p in pool.of[what][r]]))
                    sizes.append(len(rows) ** 0.5)
            return places, np.array(sizes) / sum(sizes)

        photo, drawn = (lambda n: kind(n) == "photo"), (lambda n: kind(n) in ("art", "screen"))
        self.tables = {
            "photo": table("real", photo), "art": table("real", drawn), "blank": table("blank", lambda n: True),
            "zoom": table("zoom", photo), "pair_photo": table("pair", photo), "pair_art": table("pair", drawn),
            "generated": table("generated", lambda n: True),
        }

    def pick(self, name: str, count: int) -> list[int]:
        places, chances = self.tables[name]
        sources = self.rng.choice(len(places), size=count, p=chances)
        return [int(places[s][self.rng.integers(len(places[s]))]) for s in sources]

    def __call__(self) -> tuple[Tensor, Tensor, int]:
        """Return places in the pool of real and of generated crops, and how many of the first ones are pairs."""
        n = self.run.batch
        paired = round(self.run.pairs * n)
        pairs = self.pick("pair_photo", paired - paired // 4) + self.pick("pair_art", paired // 4)
        blank, zoom = round(n / 12), round(n / 24)
        rest = n - paired - blank - zoom
        real = self.pick("photo", rest - rest // 4) + self.pick("art", rest // 4)
        real += self.pick("blank", blank) + self.pick("zoom", zoom)
        generated = self.pick("generated", n - paired)
        return torch.tensor(pairs + real), torch.tensor([p + 1 for p in pairs] + generated), paired


def trained(name: str, rows: list[int]) -> list[int]:
    """Leave out every fifth photograph of the sources that also serve calibration."""
    if name in ("real/imagenet", "real/cameras_exif", "real/art_wesnoth", "real/screen_gimp_help", "real/urban100"):
        return [row for n, row in enumerate(rows) if n % 4]
    return rows


def kind(name: str) -> str:
    if name.startswith("generated/"):
        return "generated"
    source = name.removeprefix("real/")
    return {"art": "art", "screen": "screen", "featureless": "blank"}.get(source.split("_")[0], "photo")


# ---------------------------------------------------------------- training


def fit(
    run: Run, data: Data, pool: Pool, weights: dict[str, Tensor], device: torch.device
) -> tuple[Net, list[dict[str, float]]]:
    torch.manual_seed(run.seed)
    amp = device.type == "cuda"
    net = Net(run, None if run.backbone == "starter" else weights).to(device)
    sampler = Sampler(data, pool, run)
    frozen = not (run.lora or run.unfrozen or run.backbone == "starter")
    if run.backbone == "starter":
        from mdmf_deploy.tasks.train.network import initialise

        crops = pool.crops[sampler()[0]].cpu().float() / 255
        crops = (crops - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
        initialise(net.backbone.cpu(), crops.numpy(), run.seed)
        net.to(device)
    with torch.no_grad():
        places = torch.cat([part for _ in range(3) for part in sampler()[:2]])
        patches = torch.cat([net.patches(pool.crops[part].float()) for part in places.split(64)]).flatten(0, 1)
        if run.backbone != "starter":
            net.mean.copy_(patches.mean(0))
            net.scale.copy_(1 / patches.std(0).clamp_min(1e-4))
        if frozen and pool.features is None:
            pool.features = torch.empty(len(pool.crops), 49, patches.shape[-1], dtype=torch.float16, device=device)
            for start in range(0, len(pool.crops), 256):
                with torch.autocast(device.type, torch.bfloat16, enabled=amp):
                    pool.features[start : start + 256] = net.patches(pool.crops[start : start + 256].float()).half()
    head = [p for n, p in net.named_parameters() if p.requires_grad and not n.startswith("backbone.")]
    body = [p for n, p in net.named_parameters() if p.requires_grad and n.startswith("backbone.")]
    groups = [{"params": head, "top": run.head_rate}, {"params": body, "top": run.rate}]
    optimiser = torch.optim.AdamW(groups, lr=1e-3, weight_decay=run.decay, betas=(0.9, 0.99))
    average = copy.deepcopy(net).requires_grad_(False)
    start, history = time.perf_counter(), []
    for step in range(run.steps):
        warm = min(1.0, (step + 1) / 100)
        factor = warm * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * step / run.steps)))
        for group in optimiser.param_groups:
            group["lr"] = group["top"] * factor
        real, generated, paired = sampler()
        chosen = torch.cat([real, generated]).to(device)
        if frozen and pool.features is not None:
            signatures = net.signatures(pool.features[chosen].float())
        else:
            signatures = net(pool.crops[chosen].float(), amp)
        x, y = signatures.split([len(real), len(generated)])
        real_scores, generated_scores = batch_scores(x, y)
        gap = generated_scores.mean() - real_scores.mean()
        spread = real_scores.var(unbiased=False) + generated_scores.var(unbiased=False) + 1e-3
        power = gap / spread.sqrt()
        logits = net.probe(signatures).squeeze(-1) * 8
        labels = torch.zeros_like(logits)
        labels[len(real) :] = 1
        entropy = F.binary_cross_entropy_with_logits(logits, labels)
        entropy = 0.5 * entropy + 0.5 * F.binary_cross_entropy_with_logits(logits.mean(1), labels[:, 0])
        loss = -run.power * power + run.entropy * entropy
        if paired:
            margin = generated_scores[:paired] - real_scores[:paired]
            loss = loss + run.pair_weight * F.softplus(0.3 - 8 * margin).mean()
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(head + body, 1.0)
        optimiser.step()
        keep = min(0.995, (step + 1) / (step + 10))
        with torch.no_grad():
            torch._foreach_lerp_([p for p in average.parameters()], [p for p in net.parameters()], 1 - keep)
        if (step + 1) % 100 == 0 or step + 1 == run.steps or (step < 20 and not amp):
            history.append({"step": step + 1, "power": power.item(), "entropy": entropy.item(), "loss": loss.item(),
                            "seconds": time.perf_counter() - start})
        if run.curve and (step + 1) in (500, 1000, 2000, 3000, 4000) and step + 1 < run.steps:
            average.mean, average.scale = net.mean, net.scale
            figures = evaluate(average.eval(), data, run, brief=True)
            print(run.name, step + 1, json.dumps(figures), flush=True)
    average.mean, average.scale = net.mean, net.scale
    return average.eval(), history


# ---------------------------------------------------------------- evaluation


def auroc(real: np.ndarray, generated: np.ndarray) -> float:
    order = np.concatenate([real, generated]).argsort(kind="stable").argsort(kind="stable") + 1.0
    n, m = len(generated), len(real)
    return float((order[m:].sum() - n * (n + 1) / 2) / (n * m))


@torch.inference_mode()
def extract(net: Net, data: Data, rows: list[int], crops: int = 1, how: str = "", rebuilt: str = "") -> Tensor:
    """Return signatures (n, crops, 49, d) of centre crops, or of four crops."""
    device = data.canvases.pixels.device
    out = []
    places = [(0.5, 0.5)] if crops == 1 else [(0.0, 0.0), (0.0, 1 - 1e-6), (1 - 1e-6, 0.0), (1 - 1e-6, 1 - 1e-6)]
    canvases = Canvases(data.rebuilt[rebuilt], data.canvases.sizes) if rebuilt else data.canvases
    quality = {"jpeg50": 50.0, "jpeg75": 75.0}.get(how, 1000.0)
    scale = {"half": 0.6, "double": 2.0}.get(how, 1.0)
    for start in range(0, len(rows), 64):
        which = torch.tensor(rows[start : start + 64])
        b = len(which)
        for place in places:
            draws = Draws(
                scale, torch.tensor([place] * b), torch.zeros(b, dtype=torch.bool),
                torch.full((b,), 1.0 if how == "blur" else 0.0), torch.zeros(b),
                torch.tensor([[quality, 1000.0]] * b), ((4, 4), (4, 4)), True,
            )
            out.append(net(augment(canvases, which, draws, CROP), device.type == "cuda"))
    parts = [torch.stack(out[n : n + len(places)], 1) for n in range(0, len(out), len(places))]
    return torch.cat(parts)


def mmd2(x: Tensor, bank: Tensor, term: Tensor) -> np.ndarray:
    """Return the mean MMD^2 over crops of x (n, k, 49, d) against bank (M, d)."""
    scores = []
    for part in x.split(16):
        within = gram(part, part).mean((-1, -2))
        cross = gram(part, bank).mean((-1, -2))
        scores.append((within - 2 * cross + term).mean(1))
    return torch.cat(scores).cpu().numpy()


@torch.inference_mode()
def evaluate(net: Net, data: Data, run: Run, brief: bool = False) -> dict[str, object]:
    held = set(run.held_out)
    seen = [r for n, rows in data.rows.items() if n.startswith("real/") and n not in held and kind(n) != "blank"
            for r in trained(n, rows)]
    spread = seen[:: max(1, len(seen) // 200)][:200]
    bank = extract(net, data, spread).flatten(0, 2)
    term = torch.stack([gram(part, bank).mean(1).mean() for part in bank.split(2000)]).mean()
    groups = {n: rows for n, rows in data.rows.items() if n in held}
    for name, rows in data.rows.items():
        if name not in held and len(trained(name, rows)) < len(rows):
            groups[name + "#calibration"] = [r for r in rows if r not in set(trained(name, rows))]
    result: dict[str, object] = {}
    plans = ((1, ""),) if brief else ((1, ""), (4, ""), (1, "jpeg75"), (1, "half"))
    for crops, how in plans:
        scores = {n: mmd2(extract(net, data, rows, crops, how), bank, term) for n, rows in groups.items()}
        label = f"crops{crops}" if not how else how
        result[label] = figures = _figures(scores)
        if not how and crops == 1:
            photos = [r for n, rows in groups.items() if kind(n.split("#")[0]) == "photo" and "#" not in n for r in rows]
            real = mmd2(extract(net, data, photos), bank, term)
            for name in (AUTOENCODERS[2], HELD_OUT_AUTOENCODER):
                fake = mmd2(extract(net, data, photos, rebuilt=name), bank, term)
                figures[f"pair_{name}"] = auroc(real, fake)
                figures[f"above_{name}"] = float((fake > real).mean())
            if brief:
                continue
            blank = mmd2(extract(net, data, data.rows["real/featureless"]), bank, term)
            pooled = np.concatenate([s for n, s in scores.items() if n.startswith("real/")])
            figures["blank_fpr"] = float((blank > np.quantile(pooled, 0.95)).mean())
            x = extract(net, data, [r for rows in groups.values() for r in rows])
            cross = torch.cat([gram(p, bank).mean((-1, -2)) for p in x.split(16)]).mean(1).cpu().numpy()
            self_term = torch.cat([gram(p, p).mean((-1, -2)) for p in x.split(16)]).mean(1).cpu().numpy()
            isreal = np.concatenate([[n.startswith("real/")] * len(rows) for n, rows in groups.items()])
            total = self_term - 2 * cross
            figures["mean_k"] = float(cross[isreal].mean())
            figures["self_rank"] = float(np.corrcoef(total.argsort().argsort(), self_term.argsort().argsort())[0, 1])
            fakes = [r for n, rows in data.rows.items() if n.startswith("generated/") and n not in held for r in rows]
            swapped = extract(net, data, fakes[:: max(1, len(fakes) // 200)][:200]).flatten(0, 2)
            small = extract(net, data, spread[::4]).flatten(0, 2)
            for label2, other in (("bank_generated", swapped), ("bank_50", small)):
                s = {n: mmd2(extract(net, data, rows), other, term * 0) for n, rows in groups.items()}
                figures[label2] = _figures(s)["mean"]
    return result


def _figures(scores: dict[str, np.ndarray]) -> dict[str, object]:
    real = {n: s for n, s in scores.items() if n.startswith("real/") and "#" not in n}
    pool = np.concatenate(list(real.values()))
    photos = np.concatenate([s for n, s in real.items() if kind(n) == "photo"])
    areas = {n.removeprefix("generated/"): auroc(pool, s) for n, s in scores.items() if n.startswith("generated/")}
    plain = {n: auroc(photos, s) for n, s in scores.items() if n.startswith("generated/")}
    calibration = np.concatenate([s for n, s in scores.items() if "#" in n]) if any("#" in n for n in scores) else pool
    threshold = np.quantile(calibration, 0.95)
    rates = {}
    for which in ("photo", "art", "screen"):
        parts = [s for n, s in real.items() if kind(n) == which]
        if parts:
            rates[which] = float((np.concatenate(parts) > threshold).mean())
    caught = {n.removeprefix("generated/"): float((s > threshold).mean()) for n, s in scores.items()
              if n.startswith("generated/")}
    return {"mean": float(np.mean(list(areas.values()))), "photos": float(np.mean(list(plain.values()))),
            "fpr": rates, "tpr": float(np.mean(list(caught.values()))), **areas}


def save(net: Net, run: Run, path: Path) -> None:
    tensors = {f"head.layers.{n}.{k}": v for n, layer in enumerate(net.layers) for k, v in layer.state_dict().items()}
    tensors |= {"head.mean": net.mean, "head.scale": net.scale}
    if run.lora:
        tensors |= {f"lora.{name}": value for name, value in factors(net.backbone)}
    for number in run.unfrozen:
        for name, value in net.backbone.blocks[number - 1].state_dict().items():
            tensors[f"backbone.blocks.{number - 1}.{name}"] = value
    if run.backbone == "starter":
        tensors |= {f"backbone.{name}": value for name, value in net.backbone.state_dict().items()}
    halves = {k: (v.half() if not k.startswith("head.m") else v.float()).cpu().contiguous() for k, v in tensors.items()}
    save_file(halves, path, metadata={"run": json.dumps(asdict(run))})


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
        run = Run(**{k: tuple(v) if isinstance(v, list) else v for k, v in entry.items()})
        if options.steps:
            run = replace(run, steps=min(run.steps, options.steps))
        start = time.perf_counter()
        net, history = fit(run, data, pool, weights, device)
        seconds = time.perf_counter() - start
        figures = evaluate(net, data, run)
        if run.keep:
            save(net, run, options.output / f"{run.name}.safetensors")
        record = {"run": asdict(run), "seconds": seconds, "history": history[-3:], "figures": figures}
        with (options.output / f"results-{part}.jsonl").open("a") as file:
            file.write(json.dumps(record) + "\n")
        print(run.name, f"{seconds:.0f} s", f"{time.perf_counter() - start:.0f} s", json.dumps(figures["crops1"]), flush=True)


if __name__ == "__main__":
    main()
