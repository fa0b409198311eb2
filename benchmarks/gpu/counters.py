"""Launch each interesting cross term once, on the headline case, for ncu, or summarise the counters that ncu read.

ncu --set full -k regex:mdmf_ -c 12 -o step3 python benchmarks/gpu/counters.py
ncu --import step3.ncu-rep --page raw --csv | python benchmarks/gpu/counters.py --summarise
"""

from __future__ import annotations

import argparse
import csv
import re
import sys
from collections.abc import Iterable, Iterator

from inputs import random_input
from launcher import FAKE, KernelLauncher, open_gpu

from mdmf_deploy.mmd.cuda.kernels import Kernel, prepare_bank

SHAPE = (2, 7, 300, 128) if FAKE else (64, 49, 65_536, 128)  # B, N, M, d
LAUNCHED = (("wgmma", "fp16"), ("wgmma", "fp16x2"), ("tensor", "fp16"), ("tiled", "fp32"))
# Metrics that tell which unit is busy.
METRICS = re.compile(
    "pipe|issue|shared|wavefront|bank|hmma|xu|inst_executed|duration|cycles_active|cycles_elapsed|warps_active|occupancy"
    "|dram__bytes|lts__t_bytes|stall|clock_rate|registers"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--summarise", action="store_true", help="read ncu's raw page as CSV from stdin")
    if parser.parse_args().summarise:
        print(*summary(sys.stdin), sep="\n")
    else:
        launch()


def launch() -> None:
    device = open_gpu()
    given = random_input(*SHAPE)
    for version, operand in LAUNCHED:
        kernel = Kernel(version, operand, SHAPE[-1])
        launcher = KernelLauncher(device, kernel, given.x, prepare_bank(given.bank, kernel))
        launcher.cross(launcher.stream)
        if (version, operand) == ("wgmma", "fp16"):
            launcher.finish(launcher.stream)
        launcher.stream.synchronize()
        launcher.free()
        print(version, operand, flush=True)


def summary(lines: Iterable[str]) -> Iterator[str]:
    """Yield a line for every metric that tells which unit is busy, with a column for every kernel."""
    heads, units, *rows = csv.reader(lines)
    name = heads.index("Kernel Name")
    yield f"kernels: {' | '.join(row[name] for row in rows)}"
    for n, metric in enumerate(heads):
        if METRICS.search(metric):
            yield " | ".join([metric, units[n], *(row[n] for row in rows)])


if __name__ == "__main__":
    main()
