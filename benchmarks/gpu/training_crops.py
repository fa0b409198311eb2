"""The images that train_detectors.py trains on: one packed folder, its reconstructions, and augmented crops of them."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from mdmf_deploy.tasks.train.augment import MARGIN, Canvases, Degradation, Draws, augment
from mdmf_deploy.tasks.train.autoencoders import load_autoencoder
from mdmf_deploy.tasks.train.featureless import featureless

CROP, SIDE = 224, 384
AUTOENCODERS = ("taesd", "taesdxl", "taesd3", "taef1")
HELD_OUT_AUTOENCODER = "taef2"
# Sources that also serve calibration: every fourth image of them is not trained on.
SHARED = ("real/imagenet", "real/cameras_exif", "real/art_wesnoth", "real/screen_gimp_help", "real/urban100")
_FEATURELESS = 240


@dataclass
class Data:
    canvases: Canvases
    source: list[str]
    rebuilt: dict[str, Tensor]  # autoencoder -> (n, SIDE, SIDE, 3) uint8, zeros for generated images
    rows: dict[str, list[int]]

    def of(self, prefix: str) -> list[int]:
        return [row for name, rows in self.rows.items() if name.startswith(prefix) for row in rows]


def load(folder: Path, device: torch.device, limit: int | None) -> Data:
    """Read at most `limit` images of each source, and reconstruct the real ones, unless that is done already."""
    paths: list[Path] = []
    for source in sorted((folder / "images").glob("*/*")):
        paths += sorted(source.glob("*.jpg"))[:limit]

    def read(path: Path) -> Tensor:
        return torch.from_numpy(np.array(Image.open(path).convert("RGB")))

    with ThreadPoolExecutor(8) as pool:
        images = list(pool.map(read, paths))
    names = [f"{path.parent.parent.name}/{path.parent.name}" for path in paths]
    rng = np.random.default_rng(0)
    blank = [torch.from_numpy(featureless(rng, SIDE)) for _ in range(min(_FEATURELESS, 6 * (limit or _FEATURELESS)))]
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
    """Pass images through an autoencoder, with noise in the latent of every other one."""
    net = load_autoencoder(folder, name).to(device)
    out = canvases.pixels.clone()  # The margin that is no multiple of 16 stays.
    rng = torch.Generator().manual_seed(len(name))
    alike: dict[tuple[int, int], list[int]] = {}
    for row in rows.tolist():
        height, width = (int(v) // 16 * 16 for v in canvases.sizes[row])
        alike.setdefault((height, width), []).append(row)
    for (height, width), group in alike.items():
        for which in torch.split(torch.tensor(group), 32):
            pixels = canvases.pixels[which.to(device), :height, :width].permute(0, 3, 1, 2).float() / 255
            with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                latent = net.encoder(pixels).float()
                noise = torch.rand(len(which), 1, 1, 1, generator=rng) * 0.15
                noise = noise * (torch.rand(len(which), 1, 1, 1, generator=rng) < 0.5)
                latent = latent + noise.to(device) * latent.std() * torch.randn_like(latent)
                again = net.decoder(latent).float().clamp(0, 1)
            out[which.to(device), :height, :width] = (again * 255).round().to(torch.uint8).permute(0, 2, 3, 1)
    return out


@dataclass
class Pool:
    """Augmented crops, made once for all runs.

    crops: (n, 3, 224, 224) uint8.
    of: what -> row of the image -> places in `crops`. A place of "pair" holds the real half, the next one the other.
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
        plans = [
            ("real", photographs, views),
            ("generated", data.of("generated/"), views),
            ("blank", data.of("real/featureless"), max(1, views // 4)),
            ("zoom", [r for r in photographs if kind(names[r]) == "photo"], max(1, views // 16)),
            ("pair", photographs, max(1, views // 2)),
        ]
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
                grain = torch.randn(b, 3, CROP + MARGIN, CROP + MARGIN, device=device)
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


Table = tuple[list[NDArray[np.int64]], NDArray[np.float64]]


class Sampler:
    """Draw a batch: sources in turn by the square root of their size, with pairs, featureless and enlarged reals."""

    def __init__(self, data: Data, pool: Pool, batch: int, pairs: float, held: frozenset[str], seed: int) -> None:
        self.batch, self.pairs = batch, pairs
        self.rng = np.random.default_rng(seed)

        def table(what: str, test: Callable[[str], bool]) -> Table:
            """The places of each source, and the chance of each source."""
            places, sizes = [], []
            for name, rows in data.rows.items():
                rows = [r for r in trained(name, rows) if r in pool.of[what]] if name not in held and test(name) else []
                if rows:
                    places.append(np.array([p for r in rows for p in pool.of[what][r]]))
                    sizes.append(len(rows) ** 0.5)
            return places, np.array(sizes) / sum(sizes)

        def photo(name: str) -> bool:
            return kind(name) == "photo"

        def drawn(name: str) -> bool:
            return kind(name) in ("art", "screen")

        self.tables = {
            "photo": table("real", photo),
            "art": table("real", drawn),
            "blank": table("blank", lambda name: True),
            "zoom": table("zoom", photo),
            "pair_photo": table("pair", photo),
            "pair_art": table("pair", drawn),
            "generated": table("generated", lambda name: True),
        }

    def pick(self, name: str, count: int) -> list[int]:
        places, chances = self.tables[name]
        sources = self.rng.choice(len(places), size=count, p=chances)
        return [int(places[s][self.rng.integers(len(places[s]))]) for s in sources]

    def __call__(self) -> tuple[Tensor, Tensor, int]:
        """Return places in the pool of real and of generated crops, and how many of the first ones are pairs."""
        n = self.batch
        paired = round(self.pairs * n)
        pairs = self.pick("pair_photo", paired - paired // 4) + self.pick("pair_art", paired // 4)
        blank, zoom = round(n / 12), round(n / 24)
        rest = n - paired - blank - zoom
        real = self.pick("photo", rest - rest // 4) + self.pick("art", rest // 4)
        real += self.pick("blank", blank) + self.pick("zoom", zoom)
        generated = self.pick("generated", n - paired)
        return torch.tensor(pairs + real), torch.tensor([p + 1 for p in pairs] + generated), paired


def trained(name: str, rows: list[int]) -> list[int]:
    """Leave out every fourth photograph of the sources that also serve calibration."""
    if name in SHARED:
        return [row for n, row in enumerate(rows) if n % 4]
    return rows


def kind(name: str) -> str:
    if name.startswith("generated/"):
        return "generated"
    source = name.removeprefix("real/")
    return {"art": "art", "screen": "screen", "featureless": "blank"}.get(source.split("_")[0], "photo")
