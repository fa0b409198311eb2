"""Compress banks, and compare the error bound with the change on other images, and our points with plainer choices.

    python benchmarks/bank_compression.py [DATA] [--work DIR] [--rows 2000000]

DATA: a folder with real/ and generated/. Its real images are shuffled by a fixed seed. The first 420 make a bank with
the starter's model, with three crops each where they fit, and the next 135 calibrate it. The rest, filled up with
generated images to 500, are the other images. Neither the bank nor the calibration has seen them. That bundle is
compressed to --max-error 0.005. Verdicts are compared, row for row, on all of DATA.
Without DATA, the table is made on a mixture of Gaussians, with the median distance as its bandwidth.
--work keeps the bank's signatures from one run to the next. --rows only compresses a bank of that many rows on disk,
and reports peak memory.
"""

from __future__ import annotations

import argparse
import json
import resource
import struct
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
from common import header, number, table
from numpy.typing import NDArray

from mdmf_deploy import Detector
from mdmf_deploy.bundle.bank import Bank, BankSource
from mdmf_deploy.bundle.bundle import Bundle
from mdmf_deploy.bundle.manifest import BANK
from mdmf_deploy.detection.pipeline import extract
from mdmf_deploy.detection.rows import Row
from mdmf_deploy.images.inputs import in_folder
from mdmf_deploy.mmd.compress.bank_rows import BankFile, MemoryRows
from mdmf_deploy.mmd.compress.fit import compress
from mdmf_deploy.mmd.compress.kernel import GaussianKernel, all_cores, embed
from mdmf_deploy.mmd.cpu import CpuReduction
from mdmf_deploy.mmd.reference import bank_self_term, uniform_bank
from mdmf_deploy.runtime import open_engine
from mdmf_deploy.tasks.bank.build import gather_bank, swap_bank
from mdmf_deploy.tasks.bank.compress import compress_bundle
from mdmf_deploy.tasks.calibrate import Rates, calibrate, write_calibration
from mdmf_deploy.tasks.verify import record, verify_probes

Array = NDArray[np.float32]
MAX_ERROR = 0.005
SIZES = (512, 1024, 2048, 4096)
BANK_IMAGES, CALIBRATION_IMAGES, OTHERS = 420, 135, 500


class Split(NamedTuple):
    bank: list[Path]
    calibration: list[Path]
    others: list[Path]


def split(data: Path) -> Split:
    order = np.random.default_rng(0).permutation
    reals, generated = (list(in_folder(data / name).paths) for name in ("real", "generated"))
    reals = [reals[place] for place in order(len(reals))]
    left = reals[BANK_IMAGES + CALIBRATION_IMAGES :][:OTHERS]
    others = left + [generated[place] for place in order(len(generated))[: OTHERS - len(left)]]
    return Split(reals[:BANK_IMAGES], reals[BANK_IMAGES : BANK_IMAGES + CALIBRATION_IMAGES], others)


def exact_bundle(images: Split, path: Path) -> Bundle:
    """Return the starter with the large bank, verified and calibrated."""
    if path.exists():
        return Bundle.open(path)
    starter = Bundle.open("starter")
    engine = open_engine("onnxruntime", starter)
    try:
        report = gather_bank(starter.manifest, extract(images.bank, engine, starter.manifest.preprocessing, crops=3))
        bundle = swap_bank(starter, report.bank, path)
    finally:
        engine.close()
    return calibrated(bundle, images, path)


def calibrated(bundle: Bundle, images: Split, path: Path) -> Bundle:
    """Calibrate a bundle on the calibration images and write it to path."""
    engine = open_engine("onnxruntime", bundle)
    try:
        bundle = record(bundle, verify_probes(bundle, engine), destination=path)
        return write_calibration(
            bundle, calibrate(bundle, engine, images.calibration, Rates([0.05], size_bounds=())).calibration, path
        )
    finally:
        engine.close()


def detected(bundle: Bundle, paths: list[Path]) -> list[Row]:
    with Detector(bundle.path, runtime="onnxruntime") as detector:
        return detector.detect(paths)


def flips(before: list[Row], after: list[Row]) -> int:
    """Count the verdicts that differ."""
    return sum(a.verdict != b.verdict for a, b in zip(before, after, strict=True))


def mmd(bank: Bank, signatures: Array) -> NDArray[np.float64]:
    return np.sqrt(np.maximum(CpuReduction()(signatures, bank).mmd2, 0.0))


def comparison(bank: Bank, others: Array, spread: float) -> str:
    """Return a table of MMD(R, R') and the worst change on other images, in spreads, for each size and method."""
    exact, rows = mmd(bank, others), []
    shuffled = np.random.default_rng(1).permutation(len(bank.signatures))
    for size in SIZES:
        start = time.perf_counter()
        fitted = compress(MemoryRows(bank.signatures, bank.weights), bank.sigma, bank.self_term, points=size)
        seconds = time.perf_counter() - start
        some = bank.signatures[np.sort(shuffled[:size])]
        kernel = GaussianKernel(bank.sigma, some.mean(axis=0, dtype=np.float64))
        points = kernel.points(some)
        with all_cores() as run:
            z = embed(MemoryRows(bank.signatures, bank.weights), points, kernel, run).z
        inner = kernel.values(points, points) + 1e-9 * np.eye(size)
        for name, chosen, weights in (
            (f"chosen, {seconds:.0f} s", fitted.signatures, fitted.weights),
            ("random, optimal weights", some, np.linalg.solve(inner, z)),
            ("random, equal weights", some, np.full(size, 1.0 / size)),
        ):
            own = bank_self_term(chosen, weights, bank.sigma)
            distance = fitted.mmd
            if chosen is some:
                distance = float(np.sqrt(max(bank.self_term - 2.0 * weights @ z + own, 0.0)))
            small = Bank(chosen, weights, bank.sigma, own, np.zeros(size, np.int32), bank.sources, bank.model_sha256)
            worst = np.abs(mmd(small, others) - exact).max()
            rows.append((size, name, percent(distance / spread), percent(worst / spread)))
    return table(rows, ("points", "method", "bound on the change of MMD, % of spread", "worst seen, % of spread"))


def percent(share: float) -> str:
    return f"{number(100 * share)}%"


def on_images(data: Path, work: Path) -> None:
    images = split(data)
    start = time.perf_counter()
    exact = exact_bundle(images, work / "exact.mdmf")
    built = time.perf_counter() - start
    start = time.perf_counter()
    report = compress_bundle(exact, work / "small.mdmf", max_error=MAX_ERROR)
    seconds = time.perf_counter() - start
    spread = report.spread or 1.0
    everything = list(in_folder(data).paths)
    before, after = (detected(bundle, everything) for bundle in (exact, report.bundle))
    unseen = set(images.others)
    others = [place for place, path in enumerate(everything) if path in unseen]
    scores = [np.array([rows[place].score for place in others], np.float64) for rows in (before, after)]
    root = [np.sqrt(np.maximum(values, 0.0)) for values in scores]
    worst = float(np.abs(root[1] - root[0]).max()) / spread
    again = detected(calibrated(report.bundle, images, work / "calibrated.mdmf"), everything)
    calibration = exact.calibration
    assert calibration is not None
    change = np.abs(scores[1] - scores[0]).max() / np.std(calibration.scores)
    bound = report.max_mmd_change / spread
    print(
        f"{len(images.bank)} images made {report.of} signatures, in {built:.0f} s with the self term, verification and "
        f"calibration; {len(images.others)} other images\n"
    )
    print(
        table(
            [
                (f"signatures kept of {report.of}", report.points, "", number(report.points / report.of)),
                ("`compress_bundle(max_error=0.005)`", f"{seconds:.0f} s"),
                (
                    "error bound / spread of MMD",
                    f"{bound:.5f}",
                    f"at most {MAX_ERROR}",
                    number(bound / MAX_ERROR),
                ),
                ("worst change of MMD / spread", f"{worst:.5f}", f"at most {bound:.5f}", number(worst / bound)),
                ("worst change of score / spread of scores", f"{change:.5f}"),
                (f"verdicts that differ, of all {len(before)} images: thresholds carried over", flips(before, after)),
                ("the same, calibrated again on the same photographs", flips(before, again), "0"),
            ]
        ),
        flush=True,
    )
    engine = open_engine("onnxruntime", exact)
    try:
        extracted = [s.signatures for s in extract(images.others, engine, exact.manifest.preprocessing)]
    finally:
        engine.close()
    print("The starter's model, the same bank and the same other images:\n")
    print(comparison(exact.bank, np.concatenate([s for s in extracted if s is not None]), spread), flush=True)


def mixture(count: int, width: int, seed: int) -> Array:
    """Draw from 30 Gaussians, each wide in a few directions of its own."""
    shape, draw = np.random.default_rng(0), np.random.default_rng(seed)
    centres, directions = 0.5 * shape.standard_normal((30, width)), 0.6 * shape.standard_normal((30, 8, width))
    of = draw.integers(30, size=count)
    x = centres[of] + 0.1 * draw.standard_normal((count, width))
    for cluster in range(30):
        own = of == cluster
        x[own] += draw.standard_normal((int(own.sum()), 8)) @ directions[cluster]
    return x.astype(np.float32)


def median_distance(x: Array) -> float:
    some = x[:300].astype(np.float64)
    squared = ((some[:, None] - some[None]) ** 2).sum(axis=-1)
    return float(np.sqrt(np.median(squared[np.triu_indices(len(some), 1)])))


def on_mixture() -> None:
    x = mixture(65_536, 128, 1)
    bank = uniform_bank(
        x,
        median_distance(x),
        source=np.zeros(len(x), np.int32),
        sources=(BankSource("mixture", "0" * 64),),
        model_sha256="0" * 64,
    )
    # Like the patches of an image: they lie around a point of their own and resemble each other.
    draw = np.random.default_rng(2)
    near = mixture(OTHERS, 128, 3)[:, None] + 0.3 * draw.standard_normal((OTHERS, 49, 128))
    others = near.astype(np.float32)
    spread = float(mmd(bank, others).std())
    print(f"A mixture of Gaussians, 65,536 x 128, bandwidth {bank.sigma:.2f}; spread over {OTHERS} synthetic images:\n")
    print(comparison(bank, others, spread), flush=True)


def on_disk(rows: int, work: Path) -> None:
    """Compress a bank of that many rows. They repeat 16,384 distinct ones, so that the self term is known exactly."""
    distinct = mixture(16_384, 128, 1)
    sigma = median_distance(distinct)
    counts = np.full(len(distinct), rows // len(distinct)) + (np.arange(len(distinct)) < rows % len(distinct))
    path = work / BANK
    write(path, distinct, rows, sigma, bank_self_term(distinct, counts / rows, sigma))
    size, start = path.stat().st_size, time.perf_counter()
    file = BankFile(path)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    fitted = compress(file, file.sigma, file.self_term, points=1024)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(f"{rows} rows on disk, {size / 1e9:.2f} GB, to 1,024 points:\n")
    print(
        table(
            [
                ("time", f"{seconds:.0f} s"),
                ("MMD(R, R') at most", number(fitted.mmd)),
                ("peak resident set before", f"{before / 1024:.0f} MB"),
                ("peak resident set after", f"{peak / 1024:.0f} MB, {number(1024 * peak / size)} of the bank's"),
            ]
        )
    )


def write(path: Path, distinct: Array, rows: int, sigma: float, self_term: float) -> None:
    """Write bank.safetensors in pieces."""
    width, at, layout = distinct.shape[1], 0, {}
    for name, kind, shape, size in (
        ("signatures", "F32", [rows, width], 4 * rows * width),
        ("weights", "F64", [rows], 8 * rows),
        ("self_term", "F64", [1], 8),
        ("source", "I32", [rows], 4 * rows),
    ):
        layout[name] = {"dtype": kind, "shape": shape, "data_offsets": [at, at + size]}
        at += size
    metadata = {
        "sigma": sigma,
        "model_sha256": "0" * 64,
        "compression": {"method": "none"},
        "sources": [["x", "0" * 64]],
    }
    head = json.dumps({**layout, "__metadata__": {"mdmf": json.dumps(metadata)}}).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(head)) + head)
        for start in range(0, rows, len(distinct)):
            file.write(distinct[: min(len(distinct), rows - start)].tobytes())
        np.full(rows, 1.0 / rows).tofile(file)
        np.array([self_term]).tofile(file)
        np.zeros(rows, np.int32).tofile(file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="?", type=Path)
    parser.add_argument("--work", type=Path, help="a folder to keep the large bank in; a temporary one by default")
    parser.add_argument("--rows", type=int, help="compress a synthetic bank of this many rows on disk instead")
    arguments = parser.parse_args()
    header("onnxruntime")
    with tempfile.TemporaryDirectory() as scratch:
        work = arguments.work or Path(scratch)
        work.mkdir(parents=True, exist_ok=True)
        if arguments.rows:
            on_disk(arguments.rows, Path(scratch))
        elif arguments.data is None:
            on_mixture()
        else:
            on_images(arguments.data, work)


if __name__ == "__main__":
    main()
