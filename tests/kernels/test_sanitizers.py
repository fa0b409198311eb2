"""The kernels' own source under AddressSanitizer and ThreadSanitizer, and planted faults that both must find.

Each sanitizer gets one fault in each file. With MDMF_ALL_KERNELS=1 it gets all of them.
"""

from __future__ import annotations

import os
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
SANITIZERS = {"address": ["-fsanitize=address"], "thread": ["-fsanitize=thread"]}
UNDEFINED = ["-fsanitize=undefined", "-fno-sanitize-recover=all"]
STEPS = {"plain": Kernel("plain", "fp32", 64), "tiled": Kernel("tiled", "fp32", 64)}
STEPS |= {"tensor": Kernel("tensor", "fp16", 64), "fp16x2": Kernel("tensor", "fp16x2", 128)}
STEPS |= {"wgmma": Kernel("wgmma", "fp16", 128), "wgmma fp16x2": Kernel("wgmma", "fp16x2", 64)}
# Step 1's threads share nothing. The kernels around the cross term are the same in every step, and steps 3 and 4 have
# the same barriers for every operand. In fp16x2, step 4 has the fewest threads, and reuses a stage after four tiles.
CLEAN = [("address", step) for step in STEPS]
CLEAN += [("thread", step) for step in ("tiled", "tensor", "wgmma fp16x2")]


class Fault(NamedTuple):
    """A fault that a sanitizer must find in a step after `line` of a source was replaced by `changed`."""

    sanitizer: str
    step: str
    file: str
    line: str
    changed: str


BARRIER = "        __syncthreads();\n"
READING = """                start(products, rows.own, stage);
                finish(products);
                if (near)
                    add_terms<true>(sums, products, stage, rows.norms);
                else
                    add_terms<false>(sums, products, stage, rows.norms);
"""
RELEASE = "                release(shared, ring);\n"
PLANTED = {
    "tiled reads a row too many": Fault(
        "address", "tiled", "2_tiled.cu", "min(first + row, last)", "min(first + row, last + 1)"
    ),
    "tensor reads a row too many": Fault("address", "tensor", "3_tensor.cu", "+ group, rows - 1)", "+ group, rows)"),
    "tensor writes rows past the end": Fault("address", "tensor", "3_tensor.cu", "if (quarter == 0 && row < rows)", ""),
    "tensor's last slice is a tile too long": Fault(
        "address", "tensor", "3_tensor.cu", "mine.last - 1).last;", "mine.last - 1).last + 1;"
    ),
    "wgmma reads a row too many": Fault("address", "wgmma", "4_wgmma.cu", "8 * i, count - 1)", "8 * i, count)"),
    "wgmma writes rows past the end": Fault("address", "wgmma", "4_wgmma.cu", "row + 8 * i < rows", "row < rows"),
    "wgmma copies a tile too many": Fault(
        "address", "wgmma", "4_wgmma.cu", "work.count_tiles(slice); left > 0", "work.count_tiles(slice) + 1; left > 0"
    ),
    "wgmma reads a tile before it has arrived": Fault(
        "thread", "wgmma fp16x2", "4_wgmma.cu", "    wait(&shared.full[ring.at], ring.parity);\n", ""
    ),
    "wgmma copies into a tile that is being read": Fault(
        "thread", "wgmma fp16x2", "4_wgmma.cu", f"{READING}{RELEASE}", f"{RELEASE}{READING}"
    ),
    "prepare reads patches past the end": Fault(
        "address", "plain", "around.cuh", "min(patch, patches - 1)) * WIDTH", "patch) * WIDTH"
    ),
    "prepare compares rows before all are there": Fault(
        "thread", "tensor", "around.cuh", "    __syncthreads();\n    // Warps", "    // Warps"
    ),
    "tiled begins before its columns have arrived": Fault(
        "thread", "tiled", "2_tiled.cu", BARRIER + "        copy_step", "        copy_step"
    ),
    "tiled adds up before all have written": Fault(
        "thread", "tiled", "2_tiled.cu", BARRIER + "        const int row", "        const int row"
    ),
    "tensor begins before its tile has arrived": Fault(
        "thread", "tensor", "3_tensor.cu", BARRIER + "        copy(", "        copy("
    ),
    "tensor copies into a tile that is being read": Fault(
        "thread", "tensor", "3_tensor.cu", "copy(tile + STAGES - 1);", "copy(tile + STAGES);"
    ),
    "finish averages before all have written": Fault(
        "thread", "tensor", "around.cuh", BARRIER + "        if (threadIdx.x < half)", "        if (threadIdx.x < half)"
    ),
}
# The first fault for each sanitizer in each file.
SOME = list({(fault.sanitizer, fault.file): name for name, fault in reversed(PLANTED.items())}.values())
if os.environ.get("MDMF_ALL_KERNELS") == "1":
    SOME = list(PLANTED)
REPORTED = {"address": "AddressSanitizer", "thread": "data race"}


@cache
def fixed_addresses() -> list[str]:
    """The command that turns off address randomisation, where allowed. Some layouts leave ThreadSanitizer no room."""
    command = ["setarch", os.uname().machine, "-R"]
    allowed = shutil.which("setarch") and subprocess.run([*command, "true"], capture_output=True).returncode == 0
    return command if allowed else []


def run(program: Path) -> subprocess.CompletedProcess[str]:
    options = {"ASAN_OPTIONS": "detect_leaks=0", "TSAN_OPTIONS": "halt_on_error=1"}
    command = [*fixed_addresses(), str(program)]
    return subprocess.run(command, env=os.environ | options, capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture(scope="module")
def programs(gxx: str, tmp_path_factory: pytest.TempPathFactory) -> dict[object, Path]:
    """Every program, compiled two at a time."""
    folder = tmp_path_factory.mktemp("sanitizers")
    jobs: dict[object, tuple[Kernel, Path, list[str]]] = {}
    for sanitizer, step in CLEAN:
        extra = UNDEFINED if sanitizer == "address" else []
        jobs[sanitizer, step] = STEPS[step], STEPS[step].source, [*SANITIZERS[sanitizer], *extra]
    for name in SOME:
        fault = PLANTED[name]
        copy = Path(shutil.copytree(room("engines") / "kernels", folder / f"fault{len(jobs)}"))
        text = (copy / fault.file).read_text()
        assert text.count(fault.line) == 1, f"{fault.file} no longer has: {fault.line}"
        (copy / fault.file).write_text(text.replace(fault.line, fault.changed))
        kernel = STEPS[fault.step]
        jobs[name] = kernel, copy / kernel.source.name, SANITIZERS[fault.sanitizer]

    def build(job: tuple[int, tuple[Kernel, Path, list[str]]]) -> Path:
        number, (kernel, source, flags) = job
        compile_host(kernel, source, SHIM / "driver.cpp", folder / f"driver{number}", "-O1", *flags)
        return folder / f"driver{number}"

    with ThreadPoolExecutor(2) as pool:
        return dict(zip(jobs, pool.map(build, enumerate(jobs.values())), strict=True))


@pytest.mark.parametrize(("sanitizer", "step"), CLEAN)
def test_nothing_is_found(programs: dict[object, Path], sanitizer: str, step: str) -> None:
    done = run(programs[sanitizer, step])
    assert done.returncode == 0, done.stderr[-3000:]
    scores = [float(line) for line in done.stdout.split()]
    assert len(scores) == 6
    assert scores[::2] == scores[1::2]


@pytest.mark.parametrize("name", SOME)
def test_a_planted_fault_is_found(programs: dict[object, Path], name: str) -> None:
    done = run(programs[name])
    assert done.returncode != 0
    assert REPORTED[PLANTED[name].sanitizer] in done.stderr
