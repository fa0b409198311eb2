"""The kernels' own source under AddressSanitizer and ThreadSanitizer; and that both would find a fault."""

from __future__ import annotations

import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from host_kernels import SHIM, compile_host

from mdmf_deploy.mmd.kernels import Kernel
from mdmf_deploy.rooms import room

SANITIZERS = {"address": ["-fsanitize=address"], "thread": ["-fsanitize=thread"]}
UNDEFINED = ["-fsanitize=undefined", "-fno-sanitize-recover=all"]
STEPS = {"plain": Kernel("plain", "fp32", 64), "tiled": Kernel("tiled", "fp32", 64)}
STEPS |= {"tensor": Kernel("tensor", "fp16", 64), "tf32": Kernel("tensor", "tf32", 128)}
CLEAN = [(sanitizer, step) for sanitizer in SANITIZERS for step in STEPS]
# What is found, by whom, where a line of a source is changed.
PLANTED = {
    "plain reads rows that are not there": ("address", "plain", "1_plain.cu", "if (row >= rows) return;", ""),
    "tiled reads rows that are not there": (
        *("address", "tiled", "2_tiled.cu"),
        *("min(first + row, last)", "min(first + row, last + 1)"),
    ),
    "tensor reads rows that are not there": (
        *("address", "tensor", "3_tensor.cu"),
        *("min(first_row + 16 * m + 8 * i + group, rows - 1)", "min(first_row + 16 * m + 8 * i + group, rows)"),
    ),
    "tensor writes rows that are not there": (
        *("address", "tensor", "3_tensor.cu"),
        *("if (quarter == 0 && row < rows)", "if (quarter == 0)"),
    ),
    "a slice too long": (
        *("address", "tensor", "3_tensor.cu"),
        *("mine.last - 1).last;", "mine.last - 1).last + 1;"),
    ),
    "within reads patches that are not there": (
        *("address", "plain", "around.cuh"),
        *("const int here = min(LANES, patches - start);", "const int here = LANES;"),
    ),
    "tiled begins before its columns are there": (
        *("thread", "tiled", "2_tiled.cu"),
        *("        __syncthreads();\n        copy_step(step + 1);", "        copy_step(step + 1);"),
    ),
    "tiled adds up before all have written": (
        *("thread", "tiled", "2_tiled.cu"),
        *("        __syncthreads();\n        const int row", "        const int row"),
    ),
    "tensor begins before its tile is there": (
        *("thread", "tensor", "3_tensor.cu"),
        *("        __syncthreads();\n        copy(tile", "        copy(tile"),
    ),
    "tensor copies into a tile that is read": (
        *("thread", "tensor", "3_tensor.cu"),
        *("copy(tile + STAGES - 1);", "copy(tile + STAGES);"),
    ),
    "prepare adds up before all have written": (
        *("thread", "plain", "around.cuh"),
        *("    __syncthreads();\n    const int row = threadIdx.x / 4", "    const int row = threadIdx.x / 4"),
    ),
    "finish adds up before all have written": (
        *("thread", "plain", "around.cuh"),
        *("        __syncthreads();\n        if (threadIdx.x < half)", "        if (threadIdx.x < half)"),
    ),
}
SAID = {"address": "AddressSanitizer", "thread": "data race"}


def run(program: Path) -> subprocess.CompletedProcess[str]:
    """Without random addresses: some kernels' layouts leave ThreadSanitizer no room for its own."""
    fixed = ["setarch", os.uname().machine, "-R"] if shutil.which("setarch") else []
    options = {"ASAN_OPTIONS": "detect_leaks=0", "TSAN_OPTIONS": "halt_on_error=1"}
    return subprocess.run(
        [*fixed, str(program)], env=os.environ | options, capture_output=True, text=True, timeout=120, check=False
    )


@pytest.fixture(scope="module")
def programs(gxx: str, tmp_path_factory: pytest.TempPathFactory) -> dict[object, Path]:
    """Every program, compiled several at a time."""
    folder = tmp_path_factory.mktemp("sanitizers")
    jobs = {}
    for sanitizer, step in CLEAN:
        extra = UNDEFINED if sanitizer == "address" else []
        jobs[sanitizer, step] = STEPS[step], STEPS[step].source, [*SANITIZERS[sanitizer], *extra]
    for name, (sanitizer, step, file, line, changed) in PLANTED.items():
        copy = Path(shutil.copytree(room("engines") / "kernels", folder / name.replace(" ", "-")))
        text = (copy / file).read_text()
        assert text.count(line) == 1, f"{file} no longer has: {line}"
        (copy / file).write_text(text.replace(line, changed))
        jobs[name] = STEPS[step], copy / STEPS[step].source.name, SANITIZERS[sanitizer]

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
    assert scores[:3] == scores[3:]


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_fault_is_found(programs: dict[object, Path], name: str) -> None:
    done = run(programs[name])
    assert done.returncode != 0
    assert SAID[PLANTED[name][0]] in done.stderr
