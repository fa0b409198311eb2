"""The kernels' own source under AddressSanitizer and ThreadSanitizer, and planted faults that both must find.

Each sanitizer gets every step and one fault in each file. With MDMF_ALL_KERNELS=1 it gets more operands, larger grids
and all faults.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest
from fakes.host_kernels import SHIM, compile_host

from mdmf_deploy.files import room
from mdmf_deploy.mmd.cuda.kernels import Kernel

# One worker builds all programs.
# -O0 compiles twice as fast, and threads that take turns run no slower. Races want the order of optimised code.
# Addresses are checked as well in fibers, which spend no time on switches between threads.
FIBERS = ["-DMDMF_FIBERS", "-U_FORTIFY_SOURCE"]
SANITIZERS = {"address": ["-O0", *FIBERS, "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]}
SANITIZERS["thread"] = ["-O1", "-fsanitize=thread"]
STEPS = {"plain": Kernel("plain", "fp32", 64), "tiled": Kernel("tiled", "fp32", 64)}
STEPS |= {"tensor": Kernel("tensor", "fp16", 64), "tensor fp16x2": Kernel("tensor", "fp16x2", 128)}
STEPS |= {"wgmma": Kernel("wgmma", "fp16", 128), "wgmma fp16x2": Kernel("wgmma", "fp16x2", 64)}
# Step 1's threads share nothing. The kernels around the cross term are the same in every step, and steps 3 and 4 have
# the same barriers for every operand. In fp16x2, step 4 has the fewest threads, and reuses a stage after four tiles.
CLEAN = [("address", step) for step in ("plain", "tiled", "tensor fp16x2", "wgmma")]
CLEAN += [("thread", step) for step in ("tiled", "tensor", "wgmma fp16x2")]
ALL = os.environ.get("MDMF_ALL_KERNELS") == "1"
if ALL:
    CLEAN += [("address", step) for step in ("tensor", "wgmma fp16x2")]


class Fault(NamedTuple):
    """A fault that a sanitizer must find in a step when `line` of a source becomes `changed`, in which ON is true."""

    sanitizer: str
    step: str
    file: str
    line: str
    changed: str


BARRIER = "        __syncthreads();\n"
NO_BARRIER = "        if (!ON) __syncthreads();\n"
READING = """                start(products, rows.own, stage);
                finish(products);
                if (near)
                    add_terms<true>(sums, products, stage, rows.norms);
                else
                    add_terms<false>(sums, products, stage, rows.norms);
"""
RELEASE = "                release(shared, ring);\n"
WAIT = "    wait(&shared.full[ring.at], ring.parity);\n"
PLANTED = {
    "tiled reads a row too many": Fault(
        "address", "tiled", "2_tiled.cu", "min(first + row, last)", "min(first + row, last + ON)"
    ),
    "tensor reads a row too many": Fault(
        "address", "tensor fp16x2", "3_tensor.cu", "+ group, rows - 1)", "+ group, rows - 1 + ON)"
    ),
    "tensor writes rows past the end": Fault(
        "address", "tensor fp16x2", "3_tensor.cu", "quarter == 0 && row < rows", "ON || (quarter == 0 && row < rows)"
    ),
    "tensor's last slice is a tile too long": Fault(
        "address", "tensor fp16x2", "3_tensor.cu", "mine.last - 1).last;", "mine.last - 1).last + ON;"
    ),
    "wgmma reads a row too many": Fault(
        "address", "wgmma", "4_wgmma.cu", "8 * i, count - 1)", "8 * i, count - 1 + ON)"
    ),
    "wgmma writes rows past the end": Fault(
        "address", "wgmma", "4_wgmma.cu", "row + 8 * i < rows", "row + 8 * i * !ON < rows"
    ),
    "wgmma copies a tile too many": Fault(
        "address", "wgmma", "4_wgmma.cu", "work.count_tiles(slice); left > 0", "work.count_tiles(slice) + ON; left > 0"
    ),
    "wgmma reads a tile before it has arrived": Fault(
        "thread", "wgmma fp16x2", "4_wgmma.cu", WAIT, f"    if (!ON) {{\n{WAIT}    }}\n"
    ),
    "wgmma copies into a tile that is being read": Fault(
        "thread",
        "wgmma fp16x2",
        "4_wgmma.cu",
        f"{READING}{RELEASE}",
        f"if (ON) {{\n{RELEASE}}}\n{READING}if (!ON) {{\n{RELEASE}}}\n",
    ),
    "prepare reads patches past the end": Fault(
        "address",
        "plain",
        "around.cuh",
        "min(patch, patches - 1)) * WIDTH",
        "min(patch, ON ? patch : patches - 1)) * WIDTH",
    ),
    "prepare compares rows before all are there": Fault(
        "thread",
        "tensor",
        "around.cuh",
        "    __syncthreads();\n    // Warps",
        "    if (!ON) __syncthreads();\n    // Warps",
    ),
    "tiled begins before its columns have arrived": Fault(
        "thread", "tiled", "2_tiled.cu", BARRIER + "        copy_step", NO_BARRIER + "        copy_step"
    ),
    "tiled adds up before all have written": Fault(
        "thread", "tiled", "2_tiled.cu", BARRIER + "        const int row", NO_BARRIER + "        const int row"
    ),
    "tensor begins before its tile has arrived": Fault(
        "thread", "tensor", "3_tensor.cu", BARRIER + "        copy(", NO_BARRIER + "        copy("
    ),
    "tensor copies into a tile that is being read": Fault(
        "thread", "tensor", "3_tensor.cu", "copy(tile + STAGES - 1);", "copy(tile + STAGES - 1 + ON);"
    ),
    "finish averages before all have written": Fault(
        "thread",
        "tensor",
        "around.cuh",
        BARRIER + "        if (threadIdx.x < half)",
        NO_BARRIER + "        if (threadIdx.x < half)",
    ),
}
NUMBERS = {name: number for number, name in enumerate(PLANTED, 1)}
# The first fault for each sanitizer in each file.
SOME = list({(fault.sanitizer, fault.file): name for name, fault in reversed(PLANTED.items())}.values())
if ALL:
    SOME = list(PLANTED)
REPORTED = {"address": "ERROR: AddressSanitizer", "thread": "data race"}


@cache
def fixed_addresses() -> list[str]:
    """The command that turns off address randomisation, where allowed. Some layouts leave ThreadSanitizer no room."""
    command = ["setarch", os.uname().machine, "-R"]
    allowed = shutil.which("setarch") and subprocess.run([*command, "true"], capture_output=True).returncode == 0
    return command if allowed else []


def run(program: Path, fault: int, short: bool) -> subprocess.CompletedProcess[str]:
    options = {"ASAN_OPTIONS": "detect_leaks=0", "TSAN_OPTIONS": "halt_on_error=1"}
    command = [*fixed_addresses(), str(program), str(fault), str(int(short))]
    return subprocess.run(command, env=os.environ | options, capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture(scope="module")
def programs(gxx: str, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Path]:
    """A program for each sanitizer and step, compiled two at a time. It has all faults of both, to be turned on."""
    folder = tmp_path_factory.mktemp("sanitizers")

    def build(number: int) -> Path:
        sanitizer, step = CLEAN[number]
        copy = Path(shutil.copytree(room("engines") / "kernels", folder / f"kernels{number}"))
        for name, fault in PLANTED.items():
            if (fault.sanitizer, fault.step) == (sanitizer, step):
                text = (copy / fault.file).read_text()
                assert text.count(fault.line) == 1, f"{fault.file} no longer has: {fault.line}"
                changed = re.sub(r"\bON\b", f"(host::fault == {NUMBERS[name]})", fault.changed)
                (copy / fault.file).write_text(text.replace(fault.line, changed))
        kernel, program = STEPS[step], folder / f"driver{number}"
        flags = SANITIZERS[sanitizer]
        compile_host(kernel, copy / kernel.source.name, SHIM / "driver.cpp", program, *flags, precompiled=True)
        return program

    with ThreadPoolExecutor(2) as pool:
        return dict(zip(CLEAN, pool.map(build, range(len(CLEAN))), strict=True))


@pytest.mark.parametrize(("sanitizer", "step"), CLEAN)
def test_nothing_is_found(programs: dict[tuple[str, str], Path], sanitizer: str, step: str) -> None:
    # Blocks run one after the other, so a larger grid has no other races.
    short = sanitizer == "thread" and not ALL
    done = run(programs[sanitizer, step], 0, short)
    assert done.returncode == 0, done.stderr[-3000:]
    scores = [float(line) for line in done.stdout.split()]
    assert len(scores) == (4 if short else 6)
    assert scores[::2] == scores[1::2]


@pytest.mark.parametrize("name", SOME)
def test_a_planted_fault_is_found(programs: dict[tuple[str, str], Path], name: str) -> None:
    fault = PLANTED[name]
    short = fault.sanitizer == "thread" and not ALL
    done = run(programs[fault.sanitizer, fault.step], NUMBERS[name], short)
    assert done.returncode != 0
    assert REPORTED[fault.sanitizer] in done.stderr
