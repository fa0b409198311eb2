"""CUDA C++ -> cubin, kept on disk: compiled again only when something that it depends on has changed.

Needs no GPU.  The compiler is NVRTC (docs.nvidia.com/cuda/nvrtc) or whatever else a device brings.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from mdmf_deploy.errors import CompilationFailed
from mdmf_deploy.files import cache_folder, write_to_cache

_HEADERS = (".h", ".hpp", ".cuh")
_DIGEST = hashlib.sha256().digest_size


class Compiler(Protocol):
    """version: name and number; another version may give other code."""

    version: str

    def __call__(self, source: Path, options: tuple[str, ...], sm: int) -> bytes:
        """A cubin for compute capability `sm` (89 for 8.9).  Raises CompilationFailed."""
        ...


def cached_cubin(
    source: Path, options: tuple[str, ...], sm: int, driver: str, compiler: Compiler, *, anew: bool = False
) -> bytes:
    """The cubin of a source, from the cache or else compiled.

    driver: whose it will be.  anew: do not trust the cache, since the driver refused what it gave.
    A file of the cache that is damaged counts as missing.  Raises CompilationFailed if the compiler does not like it.
    """
    file = cache_folder("kernels") / f"{source.stem}-{key(source, options, sm, driver, compiler.version)}.cubin"
    if not anew and (kept := _read(file)) is not None:
        return kept
    cubin = compiler(source, options, sm)
    write_to_cache(file, hashlib.sha256(cubin).digest() + cubin)
    return cubin


def key(source: Path, options: tuple[str, ...], sm: int, driver: str, compiler: str) -> str:
    """A hash (hex) of all that a cubin depends on: the source, every header beside it, and what else is given."""
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


def _read(file: Path) -> bytes | None:
    try:
        data = file.read_bytes()
    except OSError:
        return None
    digest, cubin = data[:_DIGEST], data[_DIGEST:]
    return cubin if hashlib.sha256(cubin).digest() == digest else None


class Nvrtc:
    """NVIDIA's run-time compiler, a plain wheel (extra: gpu)."""

    def __init__(self) -> None:
        from cuda.bindings import nvrtc

        self._nvrtc = nvrtc
        major, minor = self._call(nvrtc.nvrtcVersion)
        self.cuda: tuple[int, int] = (major, minor)
        self.version = f"nvrtc {major}.{minor}"

    def __call__(self, source: Path, options: tuple[str, ...], sm: int) -> bytes:
        nvrtc = self._nvrtc
        flags = [*options, f"--gpu-architecture=sm_{sm}", f"--include-path={source.parent}"]
        (program,) = self._call(nvrtc.nvrtcCreateProgram, source.read_bytes(), source.name.encode(), 0, [], [])
        try:
            (code,) = nvrtc.nvrtcCompileProgram(program, len(flags), [flag.encode() for flag in flags])
            if code != nvrtc.nvrtcResult.NVRTC_SUCCESS:
                log = self._text(nvrtc.nvrtcGetProgramLogSize, nvrtc.nvrtcGetProgramLog, program).rstrip(b"\0")
                raise refused(source, self.version, sm, log.decode(errors="replace") or code.name)
            return self._text(nvrtc.nvrtcGetCUBINSize, nvrtc.nvrtcGetCUBIN, program)
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
    """The error for a source that does not compile; of the compiler's log it tells the first error."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    told = next((line for line in lines if "error" in line), lines[0] if lines else "no reason given")
    return CompilationFailed(
        f"{source.name}: {compiler} does not compile it for sm_{sm} ({told}); reinstall mdmf-deploy"
    )
