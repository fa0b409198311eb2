"""Registers, spills and shared memory of every kernel for every architecture, without a GPU.

`python benchmarks/kernel_resources.py > engines/kernels/RESOURCES.md` writes the table. It needs the wheels of the
extra `dev` and takes a minute or two.
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import NamedTuple

from mdmf_deploy.hardware.cubin import Nvrtc, refused
from mdmf_deploy.mmd.cuda.kernels import Kernel, kernels

# Compute capability -> most bytes of shared memory per block.
ARCHITECTURES = {75: 65536, 80: 166912, 86: 101376, 89: 101376, 90: 232448, 100: 232448, 120: 101376}
ENTRIES = ("mdmf_prepare", "mdmf_cross", "mdmf_finish")
_USAGE = re.compile(r"Function (\w+):\s+REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)")


class Usage(NamedTuple):
    """Resources of one entry point.

    registers: per thread.
    stack: bytes of local memory per thread, which spills need.
    shared: bytes of static shared memory per block, including what the system reserves.
    """

    registers: int
    stack: int
    shared: int


@cache
def nvrtc() -> Nvrtc:
    """NVIDIA's compiler. Raises ImportError without its wheel."""
    return Nvrtc()


@cache
def compiled(source: Path, options: tuple[str, ...], sm: int) -> bytes:
    code, log = nvrtc().with_log(source, (*options, "-Werror=all-warnings"), sm)
    # The assembler only remarks that it has serialised matrix products (C7510 to C7519).
    if log.strip():
        raise refused(source, nvrtc().version, sm, log)
    return code


def cubin(kernel: Kernel, sm: int) -> bytes:
    """Compile a kernel for compute capability `sm` (89 for 8.9), once per process. Warnings and remarks are errors.

    Raises UsageError if the architecture cannot run the kernel, CompilationFailed if the source is at fault.
    """
    return compiled(kernel.source, kernel.options(sm), sm)


def cuobjdump(code: bytes, option: str) -> str:
    """Run cuobjdump (wheel nvidia-cuda-cuobjdump) on machine code. The option "-sass" disassembles it."""
    from cuda.pathfinder import find_nvidia_binary_utility

    tool = find_nvidia_binary_utility("cuobjdump")
    if tool is None:
        raise RuntimeError("no cuobjdump on this machine; run: pip install 'mdmf-deploy[dev]'")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "kernel.cubin"
        file.write_bytes(code)
        return subprocess.run([tool, option, str(file)], check=True, capture_output=True, text=True).stdout


def usage(code: bytes) -> dict[str, Usage]:
    """Return the resources of every entry point in machine code."""
    found = _USAGE.findall(cuobjdump(code, "--dump-resource-usage"))
    return {
        name: Usage(int(registers), int(stack) + int(local), int(shared))
        for name, registers, stack, shared, local in found
    }


def rows(pairs: Iterable[tuple[Kernel, int]]) -> list[str]:
    """Return the table's row for each kernel and an architecture that can run it, compiling several at a time."""

    def row(pair: tuple[Kernel, int]) -> str:
        kernel, sm = pair
        taken = usage(cubin(kernel, sm))
        registers = [str(taken[entry].registers) for entry in ENTRIES]
        spilt = sum(entry.stack for entry in taken.values())
        fixed = max(entry.shared for name, entry in taken.items() if name != "mdmf_cross")
        cells = [kernel.version, kernel.operand, kernel.width, f"{sm // 10}.{sm % 10}", *registers, spilt]
        return f"| {' | '.join(map(str, [*cells, kernel.shared, fixed]))} |"

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(row, [(kernel, sm) for kernel, sm in pairs if kernel.supports(sm)]))


def table() -> str:
    """Return the text of RESOURCES.md."""
    body = "\n".join(rows((kernel, sm) for kernel in kernels() for sm in ARCHITECTURES))
    compiler = nvrtc().version.upper()
    return f"""# What the kernels take

By {compiler} and cuobjdump, without a GPU: `python benchmarks/kernel_resources.py > engines/kernels/RESOURCES.md`.
Registers are per thread. Spills are bytes per thread, over all three kernels. Shared memory is bytes per block: the
dynamic memory of cross, and the static memory of the others with what the system reserves.

| version | operand | d | SM | prepare | cross | finish | spills | shared, cross | shared, others |
|---|---|---|---|---|---|---|---|---|---|
{body}
"""


if __name__ == "__main__":
    print(table(), end="")
