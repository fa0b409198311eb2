"""CUDA C++ to cubins, cached on disk and compiled again only when something they depend on has changed.

Needs no GPU. The compiler is NVRTC (docs.nvidia.com/cuda/nvrtc) or another one that a device brings.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from mdmf_deploy.errors import CompilationFailed
from mdmf_deploy.files import cache_folder, write_to_cache

# The start of the option that names an architecture. A kernel in a dialect of one architecture brings its own.
ARCHITECTURE = "--gpu-architecture="
_HEADERS = (".h", ".hpp", ".cuh")
_DIGEST = hashlib.sha256().digest_size


class Compiler(Protocol):
    """Compile a CUDA source for one compute capability.

    version: the compiler's name and number. Another version may produce other code.
    """

    version: str

    def __call__(self, source: Path, options: tuple[str, ...], sm: int) -> bytes:
        """Return a cubin for compute capability `sm` (89 for 8.9). Raises CompilationFailed."""
        ...


def cached_cubin(
    source: Path, options: tuple[str, ...], sm: int, driver: str, compiler: Compiler, *, fresh: bool = False
) -> bytes:
    """Return the cubin of a source, from the cache or freshly compiled.

    driver: the driver that will load it.  fresh: skip the cache, because the driver refused the cached cubin.
    A damaged cache file counts as missing. Raises CompilationFailed if the source does not compile.
    """
    file = cache_folder("kernels") / f"{source.stem}-{key(source, options, sm, driver, compiler.version)}.cubin"
    if not fresh and (kept := _read(file)) is not None:
        return kept
    cubin = compiler(source, options, sm)
    write_to_cache(file, hashlib.sha256(cubin).digest() + cubin)
    return cubin


def key(source: Path, options: tuple[str, ...], sm: int, driver: str, compiler: str) -> str:
    """Return a hash (hex) of everything a cubin depends on: the source, all headers beside it, and the arguments."""
    headers = sorted(path for path in source.parent.rglob("*") if path.suffix in _HEADERS)
    files = {path.relative_to(source.parent).as_posix(): path.read_bytes() for path in [source, *headers]}
    parts = {
        "files": {name: hashlib.sha256(data).hexdigest() for name, data in files.items()},
        "source": source.name,
        "options": list(options),
        "sm": sm,
        "driver": driver,
        "compiler": compiler,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


class Nvrtc:
    """NVIDIA's run-time compiler, installed as a wheel (extra: gpu)."""

    def __init__(self) -> None:
        from cuda.bindings import nvrtc

        self._nvrtc = nvrtc
        major, minor = self._call(nvrtc.nvrtcVersion)
        self.cuda: tuple[int, int] = (major, minor)
        self.version = f"nvrtc {major}.{minor}"

    def __call__(self, source: Path, options: tuple[str, ...], sm: int) -> bytes:
        return self.with_log(source, options, sm)[0]

    def with_log(self, source: Path, options: tuple[str, ...], sm: int) -> tuple[bytes, str]:
        """Return a cubin, and what the compiler says about it: warnings, and remarks that no option makes errors."""
        nvrtc = self._nvrtc
        flags = [*options, f"--include-path={source.parent}"]
        if not any(option.startswith(ARCHITECTURE) for option in options):
            flags.append(f"{ARCHITECTURE}sm_{sm}")
        (program,) = self._call(nvrtc.nvrtcCreateProgram, source.read_bytes(), source.name.encode(), 0, [], [])
        try:
            (code,) = nvrtc.nvrtcCompileProgram(program, len(flags), [flag.encode() for flag in flags])
            text = self._text(nvrtc.nvrtcGetProgramLogSize, nvrtc.nvrtcGetProgramLog, program)
            log = text.rstrip(b"\0").decode(errors="replace")
            if code != nvrtc.nvrtcResult.NVRTC_SUCCESS:
                raise refused(source, self.version, sm, log or code.name)
            return self._text(nvrtc.nvrtcGetCUBINSize, nvrtc.nvrtcGetCUBIN, program), log
        finally:
            nvrtc.nvrtcDestroyProgram(program)

    def _call(self, function: Callable[..., tuple[Any, ...]], *arguments: Any) -> tuple[Any, ...]:
        code, *values = function(*arguments)
        if code != self._nvrtc.nvrtcResult.NVRTC_SUCCESS:
            raise CompilationFailed(f"nvrtc: {function.__name__} gives {code.name}; reinstall nvidia-cuda-nvrtc")
        return tuple(values)

    def _text(self, size: Callable[..., tuple[Any, ...]], get: Callable[..., tuple[Any, ...]], program: Any) -> bytes:
        (length,) = self._call(size, program)
        # It is written to in place: never one of the short ones that Python shares.
        buffer = bytes(length + 64)
        self._call(get, program, buffer)
        return buffer[:length]


def refused(source: Path, compiler: str, sm: int, log: str) -> CompilationFailed:
    """Return the error for a source that does not compile, with the first error from the compiler's log."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    reason = next((line for line in lines if "error" in line), lines[0] if lines else "no reason given")
    return CompilationFailed(
        f"{source.name}: {compiler} does not compile it for sm_{sm} ({reason}); reinstall mdmf-deploy"
    )


def _read(file: Path) -> bytes | None:
    try:
        data = file.read_bytes()
    except OSError:
        return None
    digest, cubin = data[:_DIGEST], data[_DIGEST:]
    return cubin if hashlib.sha256(cubin).digest() == digest else None
