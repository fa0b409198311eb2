"""The figures of a detector that train_detectors.py trained, on sources held out."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from training_crops import AUTOENCODERS, CROP, HELD_OUT_AUTOENCODER, Data, kind, trained

from mdmf_deploy.bundle.recipe import Preprocessing
from mdmf_deploy.model.pfs import MdmfModel
from mdmf_deploy.tasks.train.augment import Canvases, Draws, augment
from mdmf_deploy.tasks.train.batches import normalised
from mdmf_deploy.tasks.train.objectives import gram

Scores = NDArray[np.float64]


def auroc(real: Scores, generated: Scores) -> float:
    """Return the area under the ROC curve. The GPU machine has no scikit-learn."""
    order = np.concatenate([real, generated]).argsort(kind="stable").argsort(kind="stable") + 1.0
    n, m = len(generated), len(real)
    return float((order[m:].sum() - n * (n + 1) / 2) / (n * m))


@torch.inference_mode()
def extract(net: MdmfModel, data: Data, rows: list[int], crops: int = 1, how: str = "", rebuilt: str = "") -> Tensor:
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
                scale,
                torch.tensor([place] * b),
                torch.zeros(b, dtype=torch.bool),
                torch.full((b,), 1.0 if how == "blur" else 0.0),
                torch.zeros(b),
                torch.tensor([[quality, 1000.0]] * b),
                ((4, 4), (4, 4)),
                True,
            )
            inputs = normalised(augment(canvases, which, draws, CROP), Preprocessing())
            with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                patches = net.head.patches(net.backbone(inputs))
            out.append(net.head.signatures(patches.float()))
    parts = [torch.stack(out[at : at + len(places)], 1) for at in range(0, len(out), len(places))]
    return torch.cat(parts)


def mmd2(x: Tensor, bank: Tensor, term: Tensor, sigma: Tensor) -> Scores:
    """Return the mean MMD^2 over crops of x (n, k, 49, d) against bank (M, d)."""
    scores = []
    for part in torch.split(x, 16):
        within = gram(part, part, sigma).mean((-1, -2))
        cross = gram(part, bank, sigma).mean((-1, -2))
        scores.append((within - 2 * cross + term).mean(1))
    values: Scores = torch.cat(scores).double().cpu().numpy()
    return values


@torch.inference_mode()
def evaluate(net: MdmfModel, data: Data, held: frozenset[str], brief: bool = False) -> dict[str, object]:
    sigma = net.log_sigma.exp()
    seen = [
        r
        for n, rows in data.rows.items()
        if n.startswith("real/") and n not in held and kind(n) != "blank"
        for r in trained(n, rows)
    ]
    spread = seen[:: max(1, len(seen) // 200)][:200]
    bank = extract(net, data, spread).flatten(0, 2)
    term = torch.stack([gram(part, bank, sigma).mean(1).mean() for part in torch.split(bank, 2000)]).mean()
    groups = {n: rows for n, rows in data.rows.items() if n in held}
    for name, rows in data.rows.items():
        if name not in held and len(trained(name, rows)) < len(rows):
            groups[name + "#calibration"] = [r for r in rows if r not in set(trained(name, rows))]
    result: dict[str, object] = {}
    plans = ((1, ""),) if brief else ((1, ""), (4, ""), (1, "jpeg75"), (1, "half"))
    for crops, how in plans:
        scores = {n: mmd2(extract(net, data, rows, crops, how), bank, term, sigma) for n, rows in groups.items()}
        label = how if how else f"crops{crops}"
        result[label] = figures = _figures(scores)
        if not how and crops == 1:
            photos = [
                r for n, rows in groups.items() if kind(n.split("#")[0]) == "photo" and "#" not in n for r in rows
            ]
            real = mmd2(extract(net, data, photos), bank, term, sigma)
            for name in (AUTOENCODERS[2], HELD_OUT_AUTOENCODER):
                fake = mmd2(extract(net, data, photos, rebuilt=name), bank, term, sigma)
                figures[f"pair_{name}"] = auroc(real, fake)
                figures[f"above_{name}"] = float((fake > real).mean())
            if brief:
                continue
            blank = mmd2(extract(net, data, data.rows["real/featureless"]), bank, term, sigma)
            pooled = np.concatenate([s for n, s in scores.items() if n.startswith("real/")])
            figures["blank_fpr"] = float((blank > np.quantile(pooled, 0.95)).mean())
            x = extract(net, data, [r for rows in groups.values() for r in rows])
            cross = torch.cat([gram(p, bank, sigma).mean((-1, -2)) for p in torch.split(x, 16)]).mean(1).cpu().numpy()
            self_term = torch.cat([gram(p, p, sigma).mean((-1, -2)) for p in torch.split(x, 16)]).mean(1).cpu().numpy()
            isreal = np.concatenate([[n.startswith("real/")] * len(rows) for n, rows in groups.items()])
            total = self_term - 2 * cross
            figures["mean_k"] = float(cross[isreal].mean())
            figures["self_rank"] = float(np.corrcoef(total.argsort().argsort(), self_term.argsort().argsort())[0, 1])
            fakes = [r for n, rows in data.rows.items() if n.startswith("generated/") and n not in held for r in rows]
            swapped = extract(net, data, fakes[:: max(1, len(fakes) // 200)][:200]).flatten(0, 2)
            small = extract(net, data, spread[::4]).flatten(0, 2)
            for label2, other in (("bank_generated", swapped), ("bank_50", small)):
                s = {n: mmd2(extract(net, data, rows), other, term * 0, sigma) for n, rows in groups.items()}
                figures[label2] = _figures(s)["mean"]
    return result


def _figures(scores: dict[str, Scores]) -> dict[str, object]:
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
    caught = {
        n.removeprefix("generated/"): float((s > threshold).mean())
        for n, s in scores.items()
        if n.startswith("generated/")
    }
    return {
        "mean": float(np.mean(list(areas.values()))),
        "photos": float(np.mean(list(plain.values()))),
        "fpr": rates,
        "tpr": float(np.mean(list(caught.values()))),
        **areas,
    }
