"""What NVIDIA's compiler makes of the kernels, without a GPU: machine code, and the registers and memory it takes.

`python benchmarks/kernel_resources.py > engines/kernels/RESOURCES.md` writes the table of every kernel for every
architecture; it needs the wheels of the extra `dev`, and a minute or two.
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mdmf_deploy.mmd.cuda.kernels import Kernel, kernels

# Compute capability -> most bytes of shared memory of a block.
ARCHITECTURES = {75: 65536, 80: 166912, 86: 101376, 89: 101376, 90: 232448, 100: 232448, 120: 101376}
ENTRIES = ("mdmf_prepare", "mdmf_cross", "mdmf_within", "mdmf_finish")
_USAGE = re.compile(r"Function (\w+):\s+REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)")


@dataclass(frozen=True, slots=True)
class Usage:
    """One entry point's.  registers: of a thread.  stack: bytes of local memory of a thread, which spills need.

    shared: bytes of static shared memory of a block, with what the system reserves.
    """

    registers: int
    stack: int
    shared: int


def version() -> str:
    """The compiler's, such as "NVRTC 13.5".  Raises ImportError without its wheel."""
    from cuda.bindings import nvrtc

    return "NVRTC {}.{}".format(*_call(nvrtc.nvrtcVersion))


def cubin(kernel: Kernel, sm: int) -> bytes:
    """Machine code for compute capability `sm` (89 for 8.9).

    Raises UsageError if it cannot run this kernel, RuntimeError with the compiler's log if the source is at fault; its
    warnings count as errors.
    """
    from cuda.bindings import nvrtc

    source = kernel.source
    options = [*kernel.options(sm), f"--gpu-architecture=sm_{sm}", f"--include-path={source.parent}"]
    (program,) = _call(nvrtc.nvrtcCreateProgram, source.read_bytes(), source.name.encode(), 0, [], [])
    try:
        (code,) = nvrtc.nvrtcCompileProgram(program, len(options), [option.encode() for option in options])
        log = _text(nvrtc.nvrtcGetProgramLogSize, nvrtc.nvrtcGetProgramLog, program).rstrip(b"\0").decode()
        if code != nvrtc.nvrtcResult.NVRTC_SUCCESS or log.strip():
            raise RuntimeError(f"{source.name} for sm_{sm}: {log or code.name}")
        return _text(nvrtc.nvrtcGetCUBINSize, nvrtc.nvrtcGetCUBIN, program)
    finally:
        nvrtc.nvrtcDestroyProgram(program)


def usage(code: bytes) -> dict[str, Usage]:
    """What every entry point takes, as cuobjdump reads it from machine code."""
    found = _USAGE.findall(dump(code, "--dump-resource-usage"))
    return {
        name: Usage(int(registers), int(stack) + int(local), int(shared))
        for name, registers, stack, shared, local in found
    }


def dump(code: bytes, option: str) -> str:
    """What cuobjdump (wheel nvidia-cuda-cuobjdump) says of machine code; "-sass" disassembles it."""
    from cuda.pathfinder import find_nvidia_binary_utility

    tool = find_nvidia_binary_utility("cuobjdump")
    if tool is None:
        raise RuntimeError("no cuobjdump on this machine; run: pip install 'mdmf-deploy[dev]'")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "kernel.cubin"
        file.write_bytes(code)
        return subprocess.run([tool, option, str(file)], check=True, capture_output=True, text=True).stdout


def rows(pairs: Iterable[tuple[Kernel, int]]) -> list[str]:
    """A row of the table for each kernel and architecture that it is for; compiled several at a time."""

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
    """RESOURCES.md, whole."""
    body = "\n".join(rows((kernel, sm) for kernel in kernels() for sm in ARCHITECTURES))
    return f"""# What the kernels take

By {version()} and cuobjdump, without a GPU: `python benchmarks/kernel_resources.py > engines/kernels/RESOURCES.md`.
Registers are a thread's. Spills are bytes a thread, over all four kernels. Shared memory is bytes a block: dynamic of
cross, and static of the others with what the system reserves.

| version | operand | d | SM | prepare | cross | within | finish | spills | shared, cross | shared, others |
|---|---|---|---|---|---|---|---|---|---|---|
{body}
"""


def _call(function: Any, *arguments: Any) -> tuple[Any, ...]:
    code, *values = function(*arguments)
    if code.value != 0:
        raise RuntimeError(f"{function.__name__} gives {code.name}; reinstall nvidia-cuda-nvrtc")
    return tuple(values)


def _text(size: Any, get: Any, program: Any) -> bytes:
    (length,) = _call(size, program)
    # It is written to in place: never one of the short ones that Python shares.
    buffer = bytes(length + 64)
    _call(get, program, buffer)
    return buffer[:length]


if __name__ == "__main__":
    print(table(), end="")
