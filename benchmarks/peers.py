"""Compare mdmf-deploy with scripts on other libraries, on the same images in one run: speed, and exactness of scores.

    python benchmarks/peers.py DATA [--checkpoint RUN/checkpoint.safetensors] [--bundle FOLDER ...]

DATA: a folder of images with real/ in it. There are two models. One is the first --bundle (by default the starter),
whose weights for the PyTorch peers come from --checkpoint. The other is a ViT-S/14 with random weights and a bank of
65,536 (random_vits.py). End to end means from the names of files to scores, with one crop an image, everything in
memory and warm. Every reduction takes the same signatures. "times ours" is the time next to the first row, the median
of paired rounds with their range. "largest error" is the largest relative difference from scores computed in float64
throughout, and the same difference in standard deviations of the scores.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from common import header, interleaved, number, per_second, ratio, table
from numpy.typing import NDArray
from peer_reductions import reductions
from peer_scripts import Peer, Scores, Task, exact, peers, reference
from PIL import Image
from random_vits import vits, vits_bundle

from mdmf_deploy.bundle.bank import Bank
from mdmf_deploy.bundle.bundle import Bundle
from mdmf_deploy.bundle.recipe import load_recipe
from mdmf_deploy.detection.detector import Detector
from mdmf_deploy.images.inputs import expand
from mdmf_deploy.mmd.cpu import CpuReduction
from mdmf_deploy.model.checkpoints import load_model
from mdmf_deploy.runtime import installed
from mdmf_deploy.tasks.bank.compress import compress_bundle

POINTS = 65_536
FEW = 16
COMPRESSED = 1024


def ours(bundles: Sequence[Bundle], stack: ExitStack) -> dict[str, Peer]:
    """Open the detector with every bundle on every runtime."""
    found: dict[str, Peer] = {}
    for bundle in bundles:
        for runtime in installed():
            detector = stack.enter_context(Detector(bundle.path, runtime, crops=1))
            bank = "exact bank" if bundle.bank.compression["method"] == "none" else "compressed bank"
            name = f"mdmf-deploy, {runtime}, {bundle.manifest.model.precision}, {bank} of {len(bundle.bank.weights):,}"
            found[name] = lambda paths, detector=detector: np.array([row.score for row in detector.detect(paths)])  # type: ignore[misc]
    return found


def error(scores: Scores, truth: NDArray[np.float64]) -> str:
    difference = np.abs(scores - truth)
    return f"{float((difference / np.abs(truth)).max()):.1e} ({float(difference.max() / truth.std()):.1e} sd)"


def compare(work: Mapping[str, Callable[[], Scores]], count: int, truth: NDArray[np.float64], rounds: int) -> str:
    """Return one table. The others are measured against the first of `work`."""
    errors = {name: error(call(), truth) for name, call in work.items()}
    timings = interleaved(work, rounds, warmup=0)
    first = timings[next(iter(work))]
    rows = [
        (name, per_second(timing, count), "" if timing is first else ratio(timing, first), errors[name])
        for name, timing in timings.items()
    ]
    return table(rows, ("what", "images/s, median (range)", "times ours", "largest error"))


def end_to_end(task: Task, bundles: Sequence[Bundle], paths: Sequence[Path], rounds: int) -> str:
    with ExitStack() as stack:
        runs = ours(bundles, stack) | peers(task)
        work = {name: lambda run=run: run(paths) for name, run in runs.items()}
        return compare(work, len(paths), exact(task, paths), rounds)


def reduced(bank: Bank, compressed: Bank, rounds: int) -> str:
    """Compare the reductions on 8 images of signatures like the bank's."""
    images, patches = 8, 49
    draw = np.random.default_rng(1).choice(len(bank.weights), (images, patches))
    noise = np.random.default_rng(2).standard_normal((images, patches, bank.signatures.shape[1]))
    signatures = (bank.signatures[draw] + 0.1 * bank.signatures.std(0) * noise).astype(np.float32)
    truth = reference(signatures, bank)
    work: dict[str, Callable[[], Scores]] = {}
    for kind, own in {"exact": bank, "compressed": compressed}.items():
        reduction = CpuReduction()
        work[f"mdmf-deploy, {kind} bank of {len(own.weights):,}"] = lambda own=own, reduction=reduction: (
            reduction(signatures, own).mmd2
        )  # type: ignore[misc]
    for name, reduce in reductions(bank).items():
        work[name] = lambda reduce=reduce: reduce(signatures)  # type: ignore[misc]
    return compare(work, images, truth, rounds)


def mixed(folder: Path, count: int, size: int) -> list[Path]:
    """Choose images evenly from a folder. None is smaller than the crop, since the peers do not mirror."""
    paths = []
    for path in expand([str(folder)]).paths:
        with Image.open(path) as image:
            if min(image.size) >= size:
                paths.append(path)
    return [paths[i] for i in np.linspace(0, len(paths) - 1, count).round().astype(int)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--bundle", action="append", help="an exact fp32 bundle first, then others of the same model")
    parser.add_argument("--checkpoint", type=Path, help="of the first bundle; needed for the PyTorch peers")
    parser.add_argument("--work", type=Path, help="a folder to keep the ViT-S bundle in; by default it is not kept")
    parser.add_argument("--images", type=int, default=64, help=f"for the first model; the ViT-S gets {FEW}")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=("starter", "vits", "reductions"))
    options = parser.parse_args()
    header("torch", "transformers", "onnxruntime", "openvino", "scikit-learn", "pykeops", "pillow")
    start = time.perf_counter()
    bundles = [Bundle.open(name) for name in options.bundle or ["starter"]]
    manifest = bundles[0].manifest
    paths = mixed(options.data, max(FEW, options.images), manifest.preprocessing.crop)
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.work or Path(scratch)
        if options.only in (None, "starter"):
            detector = None
            if options.checkpoint:
                detector = load_model(options.checkpoint, load_recipe(manifest.provenance.recipe)).eval()
            task = Task(detector, bundles[0].model_path, bundles[0].bank, manifest.preprocessing)
            print(f"### {manifest.name}, bank of {len(task.bank.weights):,}: {len(paths)} images\n")
            print(end_to_end(task, bundles, paths, options.rounds), flush=True)
        few = paths[:: max(1, len(paths) // FEW)][:FEW]
        bundle = vits_bundle(folder, expand([str(options.data / "real")]).paths, POINTS)
        task = Task(vits(bundle.bank.sigma)[0], bundle.model_path, bundle.bank, bundle.manifest.preprocessing)
        compressed = compress_bundle(bundle, folder / f"compressed-{COMPRESSED}.mdmf", points=COMPRESSED).bundle
        if options.only in (None, "vits"):
            print(f"### ViT-S/14, random weights, bank of {POINTS:,}: {len(few)} images\n")
            print(end_to_end(task, [bundle, compressed], few, options.rounds), flush=True)
        if options.only in (None, "reductions"):
            print(f"### The reduction alone: 49 signatures an image, d = 128, bank of {POINTS:,}\n")
            print(reduced(bundle.bank, compressed.bank, options.rounds), flush=True)
    print(f"{number(time.perf_counter() - start)} s in all")


if __name__ == "__main__":
    main()
