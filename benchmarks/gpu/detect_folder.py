"""Run `mdmf detect` on a folder of photographs by PyTorch on a GPU, and time its parts alone.

    python benchmarks/gpu/detect_folder.py [--images 1000] [--models starter dinov2_vits14] [--cpu]

The starter comes first: a copy of it is verified for the runtime, as a user would. Then ViT-S/14 in fp16, with random
weights. Each model's scores are compared with those of a runtime on the CPU. `--cpu` rehearses all of it without a GPU.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from end_to_end import photographs, random_bundle

from mdmf_deploy.bundle.bundle import Bundle
from mdmf_deploy.bundle.recipe import load_recipe
from mdmf_deploy.detection.detector import Detector
from mdmf_deploy.detection.feed import prepare
from mdmf_deploy.detection.rows import TIMINGS
from mdmf_deploy.hardware.host import cores
from mdmf_deploy.images.decode import ReadLimits
from mdmf_deploy.mmd import Reduction
from mdmf_deploy.mmd.cpu import CpuReduction
from mdmf_deploy.runtime import stays_on_device

sys.path.append(str(Path(__file__).resolve().parents[1]))
from common import machine, number, table

RUNTIME, ON_CPU = "torch-cuda:throughput", "torch"
# The runtime on the CPU that each model's scores are compared with. ONNX Runtime computes float16 slowly there.
REFERENCE = {"starter": "onnxruntime", "dinov2_vits14": "torch"}
DISTINCT = 40
# Fields that may differ between runtimes. Scores and verdicts are compared by themselves.
FREE = {*TIMINGS, "runtime", "score", "p_value", "verdict", "threshold"}
SECONDS = 1.0  # for which a part alone is repeated


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1000, help="files in the folder")
    parser.add_argument("--models", nargs="+", default=list(REFERENCE), choices=list(REFERENCE))
    parser.add_argument("--batch", type=int, default=64, help="most images given to the runtime at once")
    parser.add_argument("--cpu", action="store_true", help="rehearse on the CPU")
    options = parser.parse_args(arguments)
    begun = time.perf_counter()
    print(f"{machine('torch', 'onnx', 'onnxruntime', 'cuda-core')}, {cores()} cores\n", flush=True)
    with tempfile.TemporaryDirectory(prefix="mdmf-detect-") as scratch:
        folder = Path(scratch) / "photographs"
        folder.mkdir()
        for n, data in enumerate(photographs(options.images, DISTINCT)):
            (folder / f"{n:05}.jpg").write_bytes(data)
        for model in options.models:
            bundle = _bundle(model, Path(scratch))
            runtime = ON_CPU if options.cpu else RUNTIME
            for line in measure(model, bundle, folder, runtime, options.batch):
                print(line, flush=True)
            print(f"\n{time.perf_counter() - begun:.1f} s so far\n", flush=True)
    return 0


def measure(model: str, bundle: Bundle, folder: Path, runtime: str, batch: int) -> Iterator[str]:
    """Yield the report on one model, line by line."""
    paths = sorted(folder.iterdir())
    yield f"## {model} ({bundle.manifest.model.precision}) on {runtime}, {len(paths)} images, {batch} at a time\n"
    path = str(bundle.path)
    if model == "starter":
        yield _mdmf("verify", path, "--runtime", runtime)[1]
    out = folder.with_name(f"{model}.jsonl")
    given = [str(folder), "--bundle", path, "-o", str(out)]
    sized = ["--batch-size", str(batch), "--threads", str(cores())]
    seconds, said = _mdmf("detect", *given, "--runtime", runtime, *sized)
    yield said
    rows = [("the whole command", len(paths) / seconds)]
    few = paths[:DISTINCT]
    with Detector(bundle.path, runtime, cores(), batch_size=batch) as detector:
        if here := getattr(detector.engine, "environment", {}):
            yield f"The engine: {', '.join(f'{name} {value}' for name, value in here.items())}\n"
        detector.detect(few)
        rows.append(("files to rows, the engine open", len(paths) / _once(lambda: detector.detect(paths))))
        rows += alone(detector, paths, batch)
    yield table([(what, f"{number(rate)} images/s") for what, rate in rows], ("what", "rate"))
    with Detector(bundle.path, REFERENCE[model], batch_size=8) as detector:
        expected = {row.sha256: row for row in detector.detect(few)}
        found = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
        yield compared(found, {key: _plain(row) for key, row in expected.items()}, detector.runtime)


def alone(detector: Detector, paths: Sequence[Path], batch: int) -> list[tuple[str, float]]:
    """Return the rates of decoding, the engine and the reduction, each alone, in images of one crop per second."""
    preprocessing = detector.bundle.manifest.preprocessing

    def decoded(n: int) -> Any:
        return prepare(n, paths[n], preprocessing, 1, ReadLimits()).tensor

    with ThreadPoolExecutor(cores()) as pool:
        decoding = len(paths) / _once(lambda: list(pool.map(decoded, range(len(paths)))))
    images = np.concatenate([decoded(n % len(paths)) for n in range(batch)])
    engine, bank = detector.engine, detector.bundle.bank
    reduction: Reduction = detector.reduction
    signatures: Any = engine(images)
    extract: Callable[[], Any] = partial(engine, images)
    if stays_on_device(engine) and not isinstance(reduction, CpuReduction):
        extract = partial(engine.on_device, images)
        signatures = extract()
    return [
        (f"decoding alone, {cores()} threads", decoding),
        ("the engine alone", batch * _rate(extract, lambda: engine(images))),
        ("the reduction alone", batch * _rate(lambda: reduction(signatures, bank), lambda: None)),
    ]


def compared(rows: Sequence[dict[str, Any]], expected: dict[str, dict[str, Any]], reference: str) -> str:
    """Describe how rows differ from those of the same files on another runtime."""
    pairs = [(row, expected[row["sha256"]]) for row in rows]
    scores = [abs(row["score"] - other["score"]) for row, other in pairs]
    spread = float(np.std([other["score"] for other in expected.values()]))
    verdicts = sum(row["verdict"] != other["verdict"] for row, other in pairs)
    others = sum(any(row[name] != other[name] for name in row.keys() - FREE - {"uri"}) for row, other in pairs)
    return (
        f"Next to {reference} on the CPU: scores differ by at most {max(scores):.2e} (standard deviation of the "
        f"scores {spread:.2e}), {verdicts} of {len(rows)} verdicts differ, {others} rows differ otherwise."
    )


def _plain(row: Any) -> dict[str, Any]:
    return {name: getattr(row, name) for name in row.__struct_fields__}


def _bundle(model: str, scratch: Path) -> Bundle:
    if model == "starter":
        return Bundle.open(shutil.copytree(Bundle.open("starter").path, scratch / "starter-copy.mdmf"))
    import torch

    from mdmf_deploy.model.pfs import MdmfModel

    recipe = load_recipe(model)
    torch.manual_seed(0)
    return random_bundle(MdmfModel(recipe), recipe, scratch / f"{model}.mdmf")


def _mdmf(*arguments: str) -> tuple[float, str]:
    """Run a command. Return its seconds, and a text with its exit code and what it printed."""
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "mdmf_deploy", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    seconds = time.perf_counter() - start
    ended = f", exit code {done.returncode}" if done.returncode else ""
    return seconds, f"`mdmf {arguments[0]}` took {seconds:.2f} s{ended}:\n\n{done.stdout.rstrip()}\n"


def _once(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _rate(work: Callable[[], object], wait: Callable[[], object]) -> float:
    """Return the calls per second of `work`, which may only queue. wait: waits for all of it, in the time of a call."""
    wait()
    calls, start = 0, time.perf_counter()
    while time.perf_counter() - start < SECONDS:
        work()
        calls += 1
    wait()
    return (calls + 1) / (time.perf_counter() - start)


if __name__ == "__main__":
    sys.exit(main())
