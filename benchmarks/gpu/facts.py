"""Print the versions of Python and of every library of the GPU path, open the GPU, and compile every kernel for it.

python benchmarks/gpu/facts.py
"""

from __future__ import annotations

import importlib
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata

from launcher import open_gpu

import mdmf_deploy
from mdmf_deploy.hardware.cubin import Nvrtc
from mdmf_deploy.mmd.cuda.kernels import kernels

PACKAGES = ("cuda-core", "cuda-bindings", "cuda-pathfinder", "nvidia-cuda-nvrtc", "numpy", "torch", "triton")
PACKAGES += ("cupy-cuda13x", "onnx", "onnxruntime", "msgspec", "rich", "pytest", "pillow", "safetensors", "typer")
PACKAGES += ("hypothesis", "numba-cuda", "tensorrt", "pykeops", "nncf")


def main() -> None:
    print(sys.version)
    for name in PACKAGES:
        try:
            print(name, metadata.version(name))
        except metadata.PackageNotFoundError:
            print(name, "-")
    print(mdmf_deploy.__file__)
    for name in ("cuda.core", "cuda.bindings"):
        module = importlib.import_module(name)
        print(name, module.__version__, module.__file__, flush=True)
    device = open_gpu()
    print("PASS open_gpu", device.name, device.gpu, Nvrtc().version, flush=True)
    begun = time.perf_counter()
    wanted = [kernel for kernel in kernels() if kernel.supports(device.gpu.sm)]
    # Into the cache, side by side, for all that follows.
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda kernel: device.module(kernel.source, kernel.options(device.gpu.sm)), wanted))
    print(f"{len(wanted)} kernels compiled in {time.perf_counter() - begun:.1f} s")


if __name__ == "__main__":
    main()
