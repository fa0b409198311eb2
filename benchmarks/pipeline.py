"""Compare the cost of detection with that of its engine: each stage alone, all together, and which one is the limit.

    python benchmarks/pipeline.py [DATA]

DATA: a folder of photographs, from which JPEGs of 0.5 and 12 megapixels are made (synthetic_jpegs.py). There are two
bundles: the starter, whose engine is unusually cheap, and a ViT-S/14 with random weights (extra `export`, left out with
--no-vits). They take turns: engine, decoding and reduction alone with every core they can use, and detection as
`Detector.stream` runs it, all with one crop an image.

Bound: images/s if no core were ever idle, 1 / (sum of the stages' times on the whole machine), as stages share the
cores.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from common import Timing, header, interleaved, number, per_second, table
from PIL import Image
from synthetic_jpegs import write_jpegs

from mdmf_deploy.bundle.bundle import Bundle
from mdmf_deploy.detection.detector import Detector
from mdmf_deploy.detection.feed import prepare
from mdmf_deploy.hardware.host import cores
from mdmf_deploy.images.decode import ReadLimits
from mdmf_deploy.mmd.cpu import CpuReduction
from mdmf_deploy.runtime import open_engine

BATCH = 8
AIM = 0.95


@dataclass(frozen=True, slots=True)
class Case:
    """One size of JPEG.

    paths: distinct files, each given `repeats` times.
    rounds: of every stage.
    """

    name: str
    paths: Sequence[Path]
    repeats: int
    rounds: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="?", type=Path, help="a folder of photographs; noise is drawn without one")
    parser.add_argument("--runtime", default="onnxruntime")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--no-vits", action="store_true")
    arguments = parser.parse_args()
    Image.core.set_blocks_max(8)  # `mdmf` does the same by PILLOW_BLOCKS_MAX
    header("pillow", arguments.runtime)
    with tempfile.TemporaryDirectory() as folder:
        files = write_jpegs(Path(folder), arguments.data, small=64, large=8)
        rows = []
        for size, paths in files.items():
            rows += measure(
                Bundle.open("starter"), "starter", arguments, Case(size, paths, 128 // len(paths), arguments.rounds)
            )
        if not arguments.no_vits:
            from random_vits import vits_bundle

            bundle = vits_bundle(Path(folder), files["0.5 MP"], 4096)
            for size, paths in files.items():
                rows += measure(bundle, "ViT-S", arguments, Case(size, paths[:32], 32 // len(paths[:32]), 3))
    print(
        table(
            rows,
            (
                "bundle",
                "JPEGs",
                "engine",
                "decode",
                "reduction",
                "detect",
                "detect / engine (aim 0.95)",
                "bound / engine",
                "detect / bound",
                "limit",
            ),
        )
    )


def measure(bundle: Bundle, name: str, arguments: argparse.Namespace, case: Case) -> list[tuple[object, ...]]:
    paths = list(case.paths) * case.repeats
    count = len(paths)
    preprocessing = bundle.manifest.preprocessing
    ready = partial(prepare, preprocessing=preprocessing, crops=1, limits=ReadLimits())
    tensors = [ready(n, path).tensor for n, path in enumerate(paths[:BATCH])]
    batch = np.concatenate([tensor for tensor in tensors if tensor is not None])
    engine = open_engine(arguments.runtime, bundle)
    reduction, bank = CpuReduction(), bundle.bank
    signatures = engine(batch)
    with (
        Detector(bundle.path, arguments.runtime, batch_size=BATCH, crops=1) as detector,
        ThreadPoolExecutor(cores()) as pool,
    ):
        work: dict[str, Callable[[], object]] = {
            "engine": lambda: [engine(batch) for _ in range(count // BATCH)],
            "decode": lambda: sum(1 for _ in pool.map(ready, range(count), paths)),
            "reduction": lambda: [reduction(signatures, bank) for _ in range(count // BATCH)],
            "detect": lambda: sum(1 for _ in detector.stream(paths)),
        }
        times = interleaved(work, case.rounds)
    engine.close()
    return [row(name, case.name, count, times)]


def row(name: str, size: str, count: int, times: dict[str, Timing]) -> tuple[object, ...]:
    stages = {stage: times[stage] for stage in ("engine", "decode", "reduction")}
    bound = np.sum([timing.seconds for timing in stages.values()], axis=0)
    engine, detect = np.array(times["engine"].seconds), np.array(times["detect"].seconds)
    limit = max(stages, key=lambda stage: stages[stage].median)
    return (
        name,
        size,
        *(per_second(times[stage], count) for stage in times),
        spread(engine / detect),
        spread(engine / bound),
        spread(bound / detect),
        limit,
    )


def spread(ratios: np.ndarray) -> str:
    return f"{number(float(np.median(ratios)))} ({number(float(ratios.min()))} to {number(float(ratios.max()))})"


if __name__ == "__main__":
    main()
