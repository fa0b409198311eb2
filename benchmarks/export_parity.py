"""Compare the exported graph of a large backbone with PyTorch, in one line.

    python benchmarks/export_parity.py dinov2_vitl14

Weights are random, so that nothing needs downloading: truncated normal of deviation 0.02 for every matrix, token and
position embedding, LayerScale 0.1, and a PFS head of He's deviation, so that signatures are of order 1. The four images
are normal random numbers. The exit code is 1 unless the largest |signature difference| is below 1e-4.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

import mdmf_deploy  # noqa: F401  (first, so that onnxruntime reports nothing)

# isort: split
import numpy as np
import onnxruntime
import torch

from mdmf_deploy.bundle.recipe import Backbone, Recipe
from mdmf_deploy.model.pfs import MdmfModel
from mdmf_deploy.tasks.export.trace import trace

LIMIT = 1e-4


def random_detector(recipe: Recipe) -> MdmfModel:
    torch.manual_seed(0)
    detector = MdmfModel(recipe)
    for name, parameter in detector.backbone.named_parameters():
        if name.endswith("gamma"):
            torch.nn.init.constant_(parameter, 0.1)
        elif parameter.ndim > 1:
            torch.nn.init.trunc_normal_(parameter, std=0.02)
    for layer in detector.head.layers:
        torch.nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    return detector.eval()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("architecture", help="a name in mdmf_deploy.model.architectures")
    architecture = parser.parse_args().architecture
    recipe = Recipe(name=architecture, summary="random weights", backbone=Backbone(architecture=architecture))
    detector = random_detector(recipe)
    parameters = sum(parameter.numel() for parameter in detector.parameters())
    images = np.random.default_rng(0).standard_normal((4, 3, 224, 224)).astype(np.float32)
    with torch.inference_mode():
        expected = detector(torch.from_numpy(images)).numpy()
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
        start = time.perf_counter()
        path = trace(detector, recipe, Path(folder) / "model.onnx", {})
        seconds = time.perf_counter() - start
        files = ", ".join(f"{file.name} {file.stat().st_size / 1e6:.0f} MB" for file in sorted(Path(folder).iterdir()))
        del detector
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        (signatures,) = session.run(None, {"images": images})
    difference = float(np.abs(signatures - expected).max())
    print(
        f"{architecture}: {parameters / 1e6:.1f} M parameters, exported in {seconds:.0f} s to {files}; "
        f"signatures of deviation {expected.std():.3f}, max |difference| {difference:.2e} "
        f"({'below' if difference < LIMIT else 'NOT below'} {LIMIT:g}); "
        f"torch {torch.__version__}, onnxruntime {onnxruntime.__version__}"
    )
    return 0 if difference < LIMIT else 1


if __name__ == "__main__":
    sys.exit(main())
