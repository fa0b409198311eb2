"""The GPU kernels compiled for this machine by g++, and called the way the device layer calls them on a GPU."""

from __future__ import annotations

import atexit
import ctypes
import fcntl
import hashlib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

from mdmf_deploy.bundle.bank import Bank
from mdmf_deploy.mmd import Scores
from mdmf_deploy.mmd.cuda.kernels import Kernel, Launch, PreparedBank, lay_out, round_bank

SHIM = Path(__file__).parents[1] / "kernels"
# No contraction and no fast math: exactly what the source says, with CUDA's own fmaf.
FLAGS = ["-std=c++20", "-march=native", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"]
# Kernels move any data as 16-byte words, which is well defined in CUDA but not in C++.
FLAGS += ["-fno-strict-aliasing", "-pthread", f"-I{SHIM}", "-include", "host.hpp"]
# A library in which a CUDA thread is a fiber. -O1 compiles faster than -O2, and the tests run no slower.
# The fortified longjmp of some distributions refuses to jump from one stack to another.
LIBRARY = ["-O1", "-shared", "-fPIC", "-fno-gnu-unique", "-DMDMF_FIBERS", "-U_FORTIFY_SOURCE"]
MULTIPROCESSORS = 4
# Earlier builds, shared by test processes and sessions. A name is a hash of everything that was compiled.
BUILT = Path(__file__).parents[2] / ".pytest_cache" / "kernels"
FORGET_AFTER = 7 * 86400  # seconds without use


def compiler() -> str:
    """Return the path of g++. Without it, fail the test in CI and skip it elsewhere."""
    if found := shutil.which("g++"):
        return found
    if os.environ.get("CI") == "true":
        pytest.fail("no g++ on this machine; the kernels' host build needs it")
    pytest.skip("no g++ on this machine")


def compile_host(kernel: Kernel, source: Path, main: Path, out: Path, *flags: str, precompiled: bool = False) -> None:
    """Compile a kernel for this machine, or copy an earlier build of the same text.

    main: the C++ file that includes the kernel's source.
    precompiled: compile the standard headers once for all kernels with these flags.
    Raises CalledProcessError if it does not compile. The messages of g++ are in the test's log.
    """
    options = [*FLAGS, *flags, f"-DMDMF_WIDTH={kernel.width}", f"-DMDMF_{kernel.operand.upper()}"]
    texts = [source, main, *sorted(source.parent.glob("*.cuh")), *sorted(SHIM.glob("*.[hc]pp"))]
    digest = hashlib.sha256(repr([target(), options]).encode())
    for text in texts:
        digest.update(f"{text.name} {text.stat().st_size} ".encode() + text.read_bytes())
    BUILT.mkdir(parents=True, exist_ok=True)
    kept = BUILT / digest.hexdigest()
    with locked(kept.with_suffix(".lock")):
        if not kept.exists():
            headers = ["-Winvalid-pch", "-include", str(precompile(*flags))] if precompiled else []
            command = [compiler(), *headers, *options, f'-DMDMF_SOURCE="{source}"', str(main)]
            subprocess.run([*command, "-o", str(kept.with_suffix(".new"))], check=True, timeout=300)
            kept.with_suffix(".new").replace(kept)
    os.utime(kept)
    shutil.copy(kept, out)


def precompile(*flags: str) -> Path:
    """Compile standard.hpp with these flags, or find an earlier build. Return the header that stands for it."""
    header = SHIM / "standard.hpp"
    options = [flag for flag in (*FLAGS, *flags) if flag not in ("-include", "host.hpp", "-shared")]
    digest = hashlib.sha256(repr([target(), options]).encode() + header.read_bytes()).hexdigest()
    kept = BUILT / f"{digest}.hpp"
    with locked(kept.with_suffix(".lock")):
        built, new = Path(f"{kept}.gch"), kept.with_suffix(".new")
        if not built.exists():
            shutil.copy(header, kept)
            command = [compiler(), *options, "-x", "c++-header", str(kept), "-o", str(new)]
            subprocess.run(command, check=True, timeout=300)
            new.replace(built)
    os.utime(kept)
    os.utime(built)
    return kept


@contextmanager
def locked(file: Path) -> Iterator[None]:
    """Let one process or thread at a time go on."""
    with file.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@cache
def target() -> str:
    """The version of g++, and every option that -march=native turns on here. Also forgets builds long out of use."""
    for file in BUILT.glob("*"):
        if file.stat().st_mtime < time.time() - FORGET_AFTER:
            file.unlink(missing_ok=True)
    questions = ["--version"], ["-march=native", "-Q", "--help=target"]
    return "".join(subprocess.run([compiler(), *asked], capture_output=True, text=True).stdout for asked in questions)


class _Grid(ctypes.Structure):
    _fields_: ClassVar = [(name, ctypes.c_int) for name in ("x", "y", "block", "shared", "backwards")]


@dataclass
class HostKernel:
    """The library of a kernel.

    backwards: run blocks from the last to the first.
    late: let asynchronous copies arrive as late as they may.
    """

    kernel: Kernel
    library: ctypes.CDLL
    backwards: bool = False
    late: bool = False

    def constant(self, name: str) -> int:
        return ctypes.c_int.in_dll(self.library, f"host_{name}").value

    def exp2(self, x: np.ndarray, degree: int) -> np.ndarray:
        out = np.empty_like(x)
        self.library.host_exp2(_address(x), len(x), degree, _address(out))
        return out

    def __call__(
        self, x: np.ndarray, bank: Bank | PreparedBank, slices: int | None = None, shares: int | None = None
    ) -> Scores:
        """Score x, (B, N, d). slices, and shares (how many blocks share them), override the launch's own."""
        prepared = round_bank(bank, self.kernel) if isinstance(bank, Bank) else bank
        operands, half_norms, within = self.prepare(x, prepared)
        partial = self.cross(operands, half_norms, prepared, x.shape[0], slices, shares)
        return self.finish(partial, within, prepared, x.shape[0])

    def prepare(
        self, x: np.ndarray, prepared: PreparedBank, chunks: int | None = None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the operands, their half norms and the within-image term, (rows,). chunks: of an image's rows."""
        images, patches, _ = x.shape
        launch = self.kernel.launches(images, patches, len(prepared.operands), MULTIPROCESSORS).prepare
        launch = replace(launch, grid=(images, chunks or launch.grid[1], 1))
        operands = np.empty((images * patches, prepared.operands.shape[1]), prepared.operands.dtype)
        half_norms, within = (np.full(images * patches, np.nan, np.float32) for _ in range(2))
        source = np.ascontiguousarray(x, np.float32)
        scale = ctypes.c_float(prepared.scale)
        self.launch(launch, source, prepared.centre, scale, patches, operands, half_norms, within)
        return operands, half_norms, within

    def cross(
        self,
        operands: np.ndarray,
        half_norms: np.ndarray,
        prepared: PreparedBank,
        images: int = 1,
        slices: int | None = None,
        shares: int | None = None,
    ) -> np.ndarray:
        """Return the partial sums, (slices, rows)."""
        rows, bank_rows = len(operands), len(prepared.operands)
        launches = self.kernel.launches(images, rows // images, bank_rows, MULTIPROCESSORS)
        slices = min(slices or launches.slices, bank_rows // self.kernel.tile)
        launch = launches.cross
        across = launch.grid[0], min(shares or launch.grid[1], slices), 1
        if self.kernel.version == "wgmma":
            # Its blocks share one list of units.
            across = shares or launch.grid[0], 1, 1
        partial = np.full((slices, rows), np.nan, np.float32)
        laid_out = lay_out(prepared, self.kernel)
        bank = laid_out.operands, laid_out.half_norms, laid_out.weights
        launch = Launch(launch.entry, across, launch.block, launch.shared)
        self.launch(launch, operands, half_norms, *bank, rows, bank_rows, slices, partial)
        return partial

    def finish(self, partial: np.ndarray, within: np.ndarray, prepared: PreparedBank, images: int) -> Scores:
        patches = len(within) // images
        contributions, mmd2 = np.full((images, patches), np.nan), np.full(images, np.nan)
        launch = self.kernel.launches(images, patches, self.kernel.tile, MULTIPROCESSORS).finish
        scalars = ctypes.c_float(prepared.unit), ctypes.c_double(prepared.self_term)
        self.launch(launch, partial, within, len(partial), images, patches, *scalars, contributions, mmd2)
        return Scores(mmd2, contributions)

    def launch(self, launch: Launch, *arguments: object) -> None:
        """Run one entry point. Arguments are arrays, or values of ctypes."""
        assert launch.grid[2] == 1
        self.library.host_late(int(self.late))
        grid = _Grid(*launch.grid[:2], launch.block, launch.shared, int(self.backwards))
        given = [_address(a) if isinstance(a, np.ndarray) else a for a in arguments]
        getattr(self.library, launch.entry.replace("mdmf_", "host_"))(grid, *given)


def _address(array: np.ndarray) -> ctypes.c_void_p:
    assert array.flags.c_contiguous
    return ctypes.c_void_p(array.ctypes.data)


class Builder:
    """Builds each kernel once per process, two at a time, in `folder`."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._pool = folder, ThreadPoolExecutor(2)
        self._started: dict[Kernel, Future[Path]] = {}

    def start(self, *kernels: Kernel) -> None:
        for kernel in kernels:
            if kernel not in self._started:
                self._started[kernel] = self._pool.submit(self._build, kernel)

    def __call__(self, version: str, operand: str, width: int, **how: bool) -> HostKernel:
        kernel = Kernel(version, operand, width)
        self.start(kernel)
        return HostKernel(kernel, ctypes.CDLL(str(self._started[kernel].result())), **how)

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)

    def _build(self, kernel: Kernel) -> Path:
        out = self._folder / f"{kernel.version}-{kernel.operand}-{kernel.width}.so"
        compile_host(kernel, kernel.source, SHIM / "library.cpp", out, *LIBRARY, precompiled=True)
        return out


@cache
def builder() -> Builder:
    """Return the builder of this process."""
    compiler()
    folder = tempfile.mkdtemp(prefix="mdmf-kernels-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    made = Builder(Path(folder))
    atexit.register(made.close)
    return made
