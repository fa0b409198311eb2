"""Compare runtimes and precisions by speed and by decisions: the gain of int8, and the scores it changes.

    python benchmarks/precision.py DATA [RUN] [--all] [--images 100] [--ir]

DATA: a folder with real/ and generated/.
RUN: the starter's training run, with its checkpoint and its list of training photographs. Without it, only a ViT-S/14
with random weights is measured (random_vits.py).

Both models are exported in fp32 and int8, as `mdmf export` does. Speeds are those of the engines alone, taking turns.
Changes are against PyTorch, on --images images of DATA, half of them real, or on --all. Verdicts are taken at the 95th
percentile of the real images' scores. --ir adds OpenVINO's own quantisation of the same graph, which no other runtime
runs.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import msgspec
import numpy as np
import torch
from common import Timing, header, interleaved, number, ratio, table
from numpy.typing import NDArray
from random_vits import median_distance, vits

from mdmf_deploy.bundle.bundle import Bundle
from mdmf_deploy.bundle.recipe import Recipe, load_recipe
from mdmf_deploy.images.inputs import expand
from mdmf_deploy.mmd.cpu import CpuReduction
from mdmf_deploy.model.checkpoints import load_model
from mdmf_deploy.model.pfs import MdmfModel, TorchEngine
from mdmf_deploy.runtime import open_engine
from mdmf_deploy.tasks.export.export import export_detector
from mdmf_deploy.tasks.export.ladder import center_crops
from mdmf_deploy.tasks.verify import scale_of

Run = Callable[[NDArray[np.float32]], NDArray[np.float32]]
BATCHES = {8: 4, 32: 2}  # batch -> rounds
BASE = "onnxruntime fp32"
FASTEST = "openvino int8"
VITS_REALS = 200
HEADINGS = ("engine", "images/s, batch 8", "ratio", "batch 32", "ratio", "score change, max", "rms", "verdicts flipped")


def spread_out(paths: Sequence[Path], count: int) -> list[Path]:
    """Choose `count` of the paths, evenly spaced, or all if there are fewer or count is 0."""
    if not count or len(paths) <= count:
        return list(paths)
    return [paths[place] for place in np.linspace(0, len(paths) - 1, count).round().astype(int)]


def log(text: str) -> None:
    print(f"precision.py: {text}", file=sys.stderr)


def exported(make: Callable[[], MdmfModel], recipe: Recipe, reals: Sequence[Path], folder: Path) -> list[Bundle]:
    """Export the model's fp32 and int8 bundles, or fp32 alone if int8 is refused."""
    # The fp32 bundle only needs its graph and any bank of its own, so fewer photographs do.
    bundles = [export_detector(make(), recipe, reals[::4], folder / "fp32.mdmf", "fp32", log=log).bundle]
    lowered = export_detector(make(), _with_int8(recipe), reals, folder / "int8.mdmf", "auto", log=log)
    for refusal in lowered.refused:
        print(f"{recipe.name}: {refusal.precision} refused, {refusal.reason}\n")
    return bundles if lowered.refused else [*bundles, lowered.bundle]


def _with_int8(recipe: Recipe) -> Recipe:
    return msgspec.structs.replace(recipe, export=msgspec.structs.replace(recipe.export, precision="int8"))


def openvinos_own(bundle: Bundle, crops: NDArray[np.float32]) -> Run:
    """Quantise OpenVINO's form of the fp32 graph by NNCF and compile it as our engine does."""
    from mdmf_deploy.runtime.ov import openvino
    from mdmf_deploy.tasks.export.int8 import import_nncf
    from mdmf_deploy.tasks.export.precision import silence

    nncf = import_nncf()
    core = openvino.Core()
    with silence():
        model = nncf.quantize(
            core.read_model(bundle.model_path),
            nncf.Dataset([crop[None] for crop in crops]),
            subset_size=len(crops),
            model_type=nncf.ModelType.TRANSFORMER,
        )
    compiled = core.compile_model(
        model, "CPU", {"INFERENCE_PRECISION_HINT": openvino.Type.f32, "PERFORMANCE_HINT": "LATENCY"}
    )
    return lambda images: np.array(compiled(images)[0])


def torch_batch(detector: MdmfModel) -> Run:
    def run(images: NDArray[np.float32]) -> NDArray[np.float32]:
        with torch.inference_mode():
            return detector(torch.from_numpy(images)).numpy()

    return run


def extracted(run: Run, crops: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.concatenate([run(crops[start : start + 8]) for start in range(0, len(crops), 8)])


def measure(
    name: str, detector: MdmfModel, bundles: Sequence[Bundle], images: list[Path], reals: int, ir: bool
) -> None:
    """Print one model's table. The first `reals` of the images are real."""
    preprocessing = bundles[0].manifest.preprocessing
    crops = center_crops(images, preprocessing)
    runs: dict[str, Run] = {"torch fp32": torch_batch(detector.eval())}
    for bundle in bundles:
        for runtime in ("onnxruntime", "openvino"):
            runs[f"{runtime} {bundle.manifest.model.precision}"] = open_engine(runtime, bundle)
    if ir:
        runs["openvino int8, its own"] = openvinos_own(bundles[0], crops[:64])
    times: dict[int, dict[str, Timing]] = {
        batch: interleaved({key: partial(run, crops[:batch]) for key, run in runs.items()}, rounds)
        for batch, rounds in BATCHES.items()
    }
    reduction, banks = CpuReduction(), {bundle.manifest.model.precision: bundle.bank for bundle in bundles}
    source = extracted(TorchEngine(detector), crops)
    rows = []
    for key, run in runs.items():
        speeds = []
        for batch, timings in times.items():
            speeds.append(number(batch / timings[key].median))
            speeds.append("1" if key == BASE else str(ratio(timings[BASE], timings[key])))
        # Like the verification gate: source and engine are scored against the bank of the judged graph.
        bank = banks.get(key.split()[1].strip(","), banks["fp32"])
        before, after = reduction(source, bank).mmd2, reduction(extracted(run, crops), bank).mmd2
        scale = scale_of(before[:reals])
        change = (after - before) / scale.spread
        flipped = int(((before > scale.threshold) != (after > scale.threshold)).sum())
        worst, rms = float(np.abs(change).max()), float(np.sqrt(np.mean(change**2)))
        rows.append((key, *speeds, number(worst), number(rms), f"{flipped} of {len(crops)}"))
    print(f"**{name}** ({len(crops)} images of DATA, {reals} of them real)\n")
    print(table(rows, HEADINGS))
    kept = bundles[-1].manifest.model.kept
    if len(bundles) > 1:
        print(f"{len(kept)} layers of the int8 graph stay in fp32: {', '.join(kept) or '-'}")
        eight, base = times[8][FASTEST], times[8][BASE]
        if name.startswith("starter"):
            print(f"Aim, starter: above 150 images/s; here {number(8 / eight.median)}")
        else:
            print(f"Aim, ViT-S: at least 2.5 times {BASE}; here {ratio(base, eight)}; and no verdict flipped")
    print(flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("run", type=Path, nargs="?")
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--all", action="store_true")
    parser.add_argument("--ir", action="store_true")
    options = parser.parse_args()
    each = 0 if options.all else options.images // 2
    header("torch", "onnxruntime", "openvino", "nncf")
    photographs = expand([str(options.data / "real")]).paths
    generated = expand([str(options.data / "generated")]).paths

    def sample(banked: Sequence[Path]) -> tuple[list[Path], int]:
        taken = {path.resolve() for path in banked}
        real = spread_out([path for path in photographs if path.resolve() not in taken], each)
        return real + spread_out(generated, each), len(real)

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        banked = spread_out(photographs, VITS_REALS)
        detector, recipe = vits()
        sigma = median_distance(detector, recipe, banked[:16])
        bundles = exported(lambda: vits(sigma)[0], recipe, banked, folder / "vits")
        measure("ViT-S/14, random weights", vits(sigma)[0], bundles, *sample(banked), options.ir)
        if options.run is None:
            log("no RUN was given: the starter is left out")
            return
        recipe, checkpoint = load_recipe("starter"), options.run / "checkpoint.safetensors"
        banked = expand([f"@{options.run / 'split' / 'train-real.txt'}"]).paths
        bundles = exported(lambda: load_model(checkpoint, recipe), recipe, banked, folder / "starter")
        measure("starter", load_model(checkpoint, recipe), bundles, *sample(banked), options.ir)


if __name__ == "__main__":
    main()
