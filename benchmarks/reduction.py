"""Compare the CPU reduction with its roofline and with other ways to compute it, on the same signatures in one run.

    python benchmarks/reduction.py [--all] [--million] [--no-pykeops]

The roofline is the GEMM alone, (M, d) x (d, N) or (N, d) x (d, M) for every image, in NumPy on one thread or on all,
whichever is the fastest. "NumPy in tiles, as before" is this project's first reduction. Times are medians per image
over rounds in which all take turns. "times ours" is the median of the rounds' own ratios, with their range. "of the
roofline" is the share of the GEMM's rate that is left. Errors are the largest among the scores of the first two images,
next to float64 throughout. Signatures are drawn, and sigma is their median distance.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec

import numpy as np
import torch
from common import Timing, header, interleaved, number, random_bank, ratio, table
from numpy.typing import NDArray
from peer_reductions import identity, numpy_matrix, pykeops, scikit_learn, torch_matrix
from threadpoolctl import ThreadpoolController

from mdmf_deploy.bundle.bank import Bank
from mdmf_deploy.mmd.cpu import CpuReduction

Signatures = NDArray[np.float32]
Reduce = Callable[[Signatures], NDArray[np.floating]]

OURS, ROOFLINE = "ours", "roofline: GEMM alone"
# Seconds for all rounds of one case, and the longest call that is worth repeating.
BUDGET, LONGEST = 6.0, 2.5
# Seconds for which a round repeats a short call, because threads of the others still spin when its turn comes.
ROUND = 0.02
TILE = 1024


@dataclass(frozen=True, slots=True)
class Case:
    """images of `patches` signatures each, `width` wide, against a bank of `points`."""

    points: int
    width: int
    patches: int
    images: int

    def __str__(self) -> str:
        return f"M = {self.points:,}, d = {self.width}, N = {self.patches}, B = {self.images}"


HEADLINE = Case(65_536, 128, 256, 1)


def cases(everything: bool, million: bool) -> Iterable[Case]:
    points = (1_024, 4_096, 8_192, 65_536)
    yield HEADLINE
    if everything:
        product = itertools.product(points, (64, 128, 256), (49, 256), (1, 32))
        yield from (case for case in itertools.starmap(Case, product) if case != HEADLINE)
    else:
        yield from (Case(65_536, width, 256, 1) for width in (64, 256))
        yield from (Case(m, 128, 49, images) for m in points for images in (1, 32))
    if million:
        yield Case(1_000_000, 128, 49, 1)
        yield Case(1_000_000, 128, 256, 1)


def draw(case: Case) -> tuple[Signatures, Bank]:
    generator = np.random.default_rng(0)
    bank = random_bank(case.points, case.width, generator=generator)
    shape = case.images, case.patches, case.width
    return generator.standard_normal(shape, np.float32) * np.float32(1.1), bank


def ways(bank: Bank, keops: bool) -> dict[str, Reduce]:
    """Return every way to compute the reduction by name. Each maps (B, N, d) to (B,)."""
    reduction, single = CpuReduction(), CpuReduction(1)
    found: dict[str, Reduce] = {
        OURS: lambda x: reduction(x, bank).mmd2,
        "ours, on one thread": lambda x: single(x, bank).mmd2,
        "NumPy in tiles, as before": numpy_tiles(bank),
        "torch in tiles": torch_tiles(bank),
        "torch, kernel matrix": torch_matrix(bank, identity),
        "NumPy, kernel matrix": numpy_matrix(bank),
        "scikit-learn, rbf_kernel": scikit_learn(bank),
    }
    if keops:
        found["pykeops, LazyTensor"] = pykeops(bank)
    return found


def numpy_tiles(bank: Bank) -> Reduce:
    """Return a loop over tiles that leaves threads to BLAS."""
    gamma = 1 / (2 * bank.sigma**2)
    centre = bank.signatures.mean(axis=0, dtype=np.float64)
    centred = bank.signatures - centre
    norms = np.einsum("md,md->m", centred, centred)
    augmented = np.column_stack([2 * gamma * centred, np.ones_like(norms), -gamma * norms])
    tiles = [
        (np.ascontiguousarray(augmented[start : start + TILE].T, np.float32), bank.weights[start : start + TILE])
        for start in range(0, len(augmented), TILE)
    ]

    def score(x: Signatures) -> float:
        centred = x - centre
        norms = np.einsum("nd,nd->n", centred, centred)
        squared = norms[:, None] + norms[None] - 2.0 * centred @ centred.T
        within = np.exp(-gamma * np.maximum(squared, 0.0)).mean()
        augmented = np.column_stack([centred, -gamma * norms, np.ones_like(norms)]).astype(np.float32)
        cross, values = np.zeros(len(x)), np.empty((len(x), TILE), np.float32)
        for points, weights in tiles:
            kernel = np.matmul(augmented, points, out=values[:, : len(weights)])
            np.minimum(kernel, 0.0, out=kernel)
            np.exp(kernel, out=kernel)
            cross += kernel @ weights
        return float(within - 2.0 * cross.mean() + bank.self_term)

    return lambda signatures: np.array([score(x) for x in signatures])


def torch_tiles(bank: Bank) -> Reduce:
    """Return the same loop with addmm, exp_ and mv, on torch's threads."""
    gamma = 1 / (2 * bank.sigma**2)
    points, weights = torch.from_numpy(bank.signatures), torch.from_numpy(bank.weights).float()
    norms = -gamma * (points**2).sum(1)

    @torch.inference_mode()
    def score(x: torch.Tensor) -> float:
        own = -gamma * (x**2).sum(1)
        within = torch.addmm(own[:, None] + own, x, x.T, alpha=2 * gamma).clamp_max_(0).exp_().mean()
        cross = torch.zeros(len(x))
        for start in range(0, len(points), 2 * TILE):
            tile = slice(start, start + 2 * TILE)
            kernel = torch.addmm(norms[tile], x, points[tile].T, alpha=2 * gamma)
            kernel.add_(own[:, None]).clamp_max_(0).exp_()
            cross += torch.mv(kernel, weights[tile])
        return float(within - 2 * cross.mean() + bank.self_term)

    return lambda signatures: np.array([score(x) for x in torch.from_numpy(signatures)])


def rooflines(x: Signatures, bank: Bank) -> dict[str, Callable[[], None]]:
    """Return every form of the GEMM, each with a tile as large as the kernel matrix, which ours never makes."""
    r = bank.signatures
    columns = np.ascontiguousarray(r.T)
    tall, wide = (np.empty(shape, np.float32) for shape in ((len(r), x.shape[1]), (x.shape[1], len(r))))

    blas = ThreadpoolController().select(user_api="blas")

    def run(tall_one: bool, threads: int | None) -> None:
        with blas.limit(limits=threads):
            for image in x:
                if tall_one:
                    np.matmul(r, image.T, out=tall)
                else:
                    np.matmul(image, columns, out=wide)

    return {
        f"{ROOFLINE} {tall_one} {threads}": lambda tall_one=tall_one, threads=threads: run(tall_one, threads)
        for tall_one, threads in itertools.product((True, False), (None, 1))
    }


def exact(x: Signatures, bank: Bank) -> NDArray[np.float64]:
    """Reduce in float64 throughout. On centred signatures the GEMM identity costs no more than 1e-13."""
    gamma = 1 / (2 * bank.sigma**2)
    centre = bank.signatures.mean(axis=0, dtype=np.float64)

    def kernel(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
        squared = (a**2).sum(1)[:, None] + (b**2).sum(1) - 2 * a @ b.T
        values: NDArray[np.float64] = np.exp(-gamma * np.maximum(squared, 0.0))
        return values

    scores = []
    for image in x - centre:
        cross = 0.0
        for start in range(0, len(bank.signatures), 4 * TILE):
            tile = slice(start, start + 4 * TILE)
            cross += float((kernel(image, bank.signatures[tile] - centre) @ bank.weights[tile]).mean())
        scores.append(kernel(image, image).mean() - 2 * cross + bank.self_term)
    return np.array(scores)


def measure(case: Case, keops: bool) -> tuple[list[list[str]], dict[str, Timing]]:
    x, bank = draw(case)
    reductions = ways(bank, keops)
    reference = exact(x[:2], bank)
    work: dict[str, Callable[[], object]] = {}
    errors, slow, spent, first = {}, {}, 0.0, 0.0
    for name, reduce in reductions.items():
        reduce(x[:1])  # prepares or compiles
        start = time.perf_counter()
        errors[name] = float(np.abs(reduce(x)[:2] - reference).max())
        seconds = time.perf_counter() - start
        if seconds > LONGEST:
            slow[name] = seconds
        else:
            work[name] = lambda reduce=reduce: reduce(x)
            spent += seconds
            first = first or seconds
    repeats = max(1, int(ROUND / first))
    rounds = int(np.clip(BUDGET / (1.5 * repeats * spent), 3, 41))
    timings = interleaved(work | rooflines(x, bank), rounds, repeats=repeats)
    roofline = min((timings[name] for name in timings if name.startswith(ROOFLINE)), key=lambda timing: timing.median)
    rows = [row(ROOFLINE, roofline, timings[OURS], roofline, case)]
    for name in reductions:
        if name in slow:
            per_image = f"{number(1e3 * slow[name] / case.images)} ms (one call)"
            rows.append([name, per_image, number(slow[name] / timings[OURS].median), "", f"{errors[name]:.1e}"])
        else:
            rows.append([*row(name, timings[name], timings[OURS], roofline, case), f"{errors[name]:.1e}"])
    return rows, {**{name: timings[name] for name in work}, ROOFLINE: roofline} | {
        name: Timing((seconds,) * len(roofline.seconds)) for name, seconds in slow.items()
    }


def row(name: str, timing: Timing, ours: Timing, roofline: Timing, case: Case) -> list[str]:
    times = "1" if name == OURS else str(ratio(timing, ours))
    share = f"{100 * roofline.median / timing.median:.0f}%"
    gflops = 2e-9 * case.points * case.width * case.patches * case.images / timing.median
    return [name, f"{number(1e3 * timing.median / case.images)} ms", times, f"{share}, {gflops:.0f} GFLOP/s"]


def aims(timings: Mapping[str, Timing]) -> list[list[str]]:
    """Return the aims for the headline case, next to the figures."""
    ours = timings[OURS]
    rows = [
        ["next to NumPy in tiles", str(ratio(timings["NumPy in tiles, as before"], ours)), "at least 1.7"],
        ["of the roofline", f"{100 * timings[ROOFLINE].median / ours.median:.0f}%", "at least 65%"],
    ]
    if "pykeops, LazyTensor" in timings:
        rows.insert(1, ["next to pykeops", str(ratio(timings["pykeops, LazyTensor"], ours)), "at least 30"])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--all", action="store_true", help="every M, d, N and B with every other (an hour)")
    parser.add_argument("--million", action="store_true", help="also M = 1,000,000 (16 GB of memory, some minutes)")
    parser.add_argument("--no-pykeops", action="store_true", help="leave pykeops out; it compiles for each d")
    options = parser.parse_args()
    header("scikit-learn", "torch", "pykeops")
    keops = not options.no_pykeops and find_spec("pykeops") is not None
    if not keops:
        print("pykeops is not here, or was not wanted.\n")
    headings = ("reduction", "an image", "times ours", "of the roofline", "largest error")
    for case in cases(options.all, options.million):
        rows, timings = measure(case, keops and case.width == HEADLINE.width)
        print(f"{case}\n\n{table(rows, headings)}", flush=True)
        if case == HEADLINE:
            print(table(aims(timings), ("ours", "figure", "aim")), flush=True)


if __name__ == "__main__":
    main()
