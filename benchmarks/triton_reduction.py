"""Compare our reduction with the ONNX graph that Triton runs, in plain ONNX Runtime: time, memory, error.

    python benchmarks/triton_reduction.py [--rounds 7]

"memory" is the growth of the resident set in the first run, which ONNX Runtime keeps. "in one product" is the memory of
the kernel values alone without tiles, in float32 and in float64 for the sum. Errors are the largest of a patch's
contribution over two images, next to float64. Signatures are drawn. A "wide" bank has a bandwidth so small that
exponents are computed in float64.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

import mdmf_deploy  # noqa: F401  (first, so that onnxruntime reports nothing)

# isort: split
import numpy as np
import onnxruntime
from common import header, interleaved, ms, random_bank, ratio, table
from numpy.typing import NDArray

from mdmf_deploy.bundle.bank import Bank
from mdmf_deploy.mmd.cpu import CpuReduction
from mdmf_deploy.mmd.reference import ReferenceReduction
from mdmf_deploy.tasks.triton.graphs import CONTRIBUTIONS, SIGNATURES, reduction_graph

HEADINGS = ("what", "ours", "graph", "times ours", "memory", "in one product", "error: ours", "graph's")
PATCHES, WIDTH = 49, 128


@dataclass(frozen=True, slots=True)
class Case:
    points: int
    images: int
    wide: bool = False

    def __str__(self) -> str:
        kind = ", wide" if self.wide else ""
        return f"M = {self.points:,}, d = {WIDTH}, N = {PATCHES}, B = {self.images}{kind}"


CASES = [Case(m, b) for m in (1_024, 8_192, 65_536) for b in (1, 32)]
CASES += [Case(1_024, 32, True), Case(65_536, 32, True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    header("onnxruntime", "onnx")
    with tempfile.TemporaryDirectory() as folder:
        print(table([measured(case, Path(folder) / "model.onnx", arguments.rounds) for case in CASES], HEADINGS))


def measured(case: Case, path: Path, rounds: int) -> list[str]:
    x, bank = draw(case)
    path.write_bytes(reduction_graph(bank, PATCHES, {}).SerializeToString())
    session = opened(path)
    ours = CpuReduction()
    work = {"ours": lambda: ours(x, bank), "graph": lambda: session.run(None, {SIGNATURES: x})}
    times = interleaved(work, rounds)
    exact = ReferenceReduction()(x[:2], bank).contributions
    (shares,) = session.run([CONTRIBUTIONS], {SIGNATURES: x[:2]})
    errors = np.abs(ours(x[:2], bank).contributions - exact).max(), np.abs(shares - exact).max()
    return [
        str(case),
        ms(times["ours"]),
        ms(times["graph"]),
        str(ratio(times["graph"], times["ours"])),
        f"{memory(path, x):.0f} MB",
        f"{case.images * PATCHES * case.points * (16 if case.wide else 12) / 2**20:,.0f} MB",
        *(f"{error:.1e}" for error in errors),
    ]


def draw(case: Case) -> tuple[NDArray[np.float32], Bank]:
    generator = np.random.default_rng(0)
    sigma = (2.0 * WIDTH) ** 0.5 / (8 if case.wide else 1)
    bank = random_bank(case.points, WIDTH, generator=generator, sigma=sigma)
    return generator.standard_normal((case.images, PATCHES, WIDTH), np.float32) * np.float32(1.1), bank


def opened(path: Path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


def memory(path: Path, x: NDArray[np.float32]) -> float:
    """Return the memory that the graph adds, in MiB, measured in a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(added, (path, x))


def added(path: Path, x: NDArray[np.float32]) -> float:
    session = opened(path)
    before = resident()
    session.run(None, {SIGNATURES: x})
    return (resident() - before) / 2**20


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    main()
