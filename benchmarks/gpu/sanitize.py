"""Run a little of every kernel, for compute-sanitizer: all tails, several slices, and once as a graph.

compute-sanitizer --tool memcheck python benchmarks/gpu/sanitize.py [--widths 64 128 256]
"""

from __future__ import annotations

import argparse

import numpy as np
from inputs import random_input
from launcher import FAKE, KernelLauncher, open_gpu

from mdmf_deploy.mmd.cuda.kernels import WIDTHS, kernels, prepare_bank
from mdmf_deploy.mmd.cuda.reduction import CudaReduction

SHAPES = ((3, 33, 300), (1, 1, 1), (2, 150, 70))  # B, N, M


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--widths", type=int, nargs="+", choices=WIDTHS, default=[64] if FAKE else list(WIDTHS))
    widths = parser.parse_args().widths
    device = open_gpu()
    for kernel in kernels():
        if kernel.width not in widths or not kernel.supports(device.gpu.sm):
            continue
        for shape in SHAPES:
            given = random_input(*shape, kernel.width)
            launcher = KernelLauncher(device, kernel, given.x, prepare_bank(given.bank, kernel))
            launcher.cross(launcher.stream)
            launcher.finish(launcher.stream)
            out = launcher.fetch(launcher.out, launcher.rows + launcher.images, np.float64)
            assert np.isfinite(out).all()
            launcher.free()
        print(kernel.version, kernel.operand, kernel.width, out[-1], flush=True)
    given = random_input(3, 33, 300, 64)
    reduction = CudaReduction(device)
    calls = [reduction(given.x, given.bank).mmd2 for _ in range(6)]
    assert all(np.array_equal(calls[0], call) for call in calls)
    reduction.close()
    print("done", flush=True)


if __name__ == "__main__":
    main()
