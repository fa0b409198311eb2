"""Cubins are cached until something they depend on changes, and a damaged cache file is never used."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.libraries import needed

from mdmf_deploy.errors import CompilationFailed
from mdmf_deploy.hardware.cubin import Nvrtc, cached_cubin

SOURCE = """
#include "halves.cuh"
extern "C" __global__ void halve(float* values) { values[threadIdx.x] = half_of(values[threadIdx.x]) * FACTOR; }
"""
HEADER = "__device__ inline float half_of(float value) { return 0.5f * value; }\n"


class Counting:
    """A compiler that accepts any source and counts its calls."""

    def __init__(self, version: str = "1.0") -> None:
        self.version, self.calls = version, 0

    def __call__(self, source: Path, options: tuple[str, ...], sm: int) -> bytes:
        self.calls += 1
        return f"{source.read_text()} {options} {sm} {self.version}".encode()


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MDMF_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "kernels"
    folder.mkdir()
    (folder / "halves.cuh").write_text(HEADER)
    (folder / "halve.cu").write_text(SOURCE)
    return folder / "halve.cu"


def test_the_same_source_is_compiled_once(source: Path) -> None:
    compiler = Counting()
    first = cached_cubin(source, ("-DFACTOR=1",), 80, "13.0", compiler)
    assert cached_cubin(source, ("-DFACTOR=1",), 80, "13.0", compiler) == first
    assert cached_cubin(source, ("-DFACTOR=1",), 80, "13.0", Counting()) == first
    assert compiler.calls == 1


@pytest.mark.parametrize("changed", ["source", "header", "deep header", "options", "sm", "driver", "compiler"])
def test_any_change_is_compiled_again(source: Path, changed: str) -> None:
    before = {"options": ("-DFACTOR=1",), "sm": 80, "driver": "13.0", "compiler": Counting()}
    after: dict[str, object] = {"options": ("-DFACTOR=2",), "sm": 86, "driver": "13.1", "compiler": Counting("1.1")}
    cached_cubin(source, **before)  # type: ignore[arg-type]
    if changed == "source":
        source.write_text(SOURCE + "// changed\n")
    elif changed == "header":
        source.with_name("halves.cuh").write_text(HEADER.replace("0.5f", "0.25f"))
    elif changed == "deep header":
        (source.parent / "detail").mkdir()
        (source.parent / "detail" / "more.h").write_text("// new\n")
    compiler = Counting("1.1" if changed == "compiler" else "1.0")
    now = before | {name: after[name] for name in (changed,) if name in after} | {"compiler": compiler}
    cached_cubin(source, **now)  # type: ignore[arg-type]
    assert compiler.calls == 1
    # The cubin of the old version is kept.
    assert len(list((source.parents[1] / "cache" / "kernels").iterdir())) == 2


@pytest.mark.parametrize("damage", ["flipped", "cut", "emptied", "lengthened"])
def test_a_damaged_file_is_compiled_again(source: Path, damage: str) -> None:
    compiler = Counting()
    cubin = cached_cubin(source, (), 80, "13.0", compiler)
    [file] = (source.parents[1] / "cache" / "kernels").iterdir()
    data = file.read_bytes()
    flipped = data[:-1] + bytes([data[-1] ^ 1])
    file.write_bytes({"flipped": flipped, "cut": data[:-1], "emptied": b"", "lengthened": data + b"\0"}[damage])
    assert cached_cubin(source, (), 80, "13.0", compiler) == cubin
    assert compiler.calls == 2
    assert file.read_bytes() == data


def test_a_refused_cubin_is_compiled_again(source: Path) -> None:
    compiler = Counting()
    cached_cubin(source, (), 80, "13.0", compiler)
    cached_cubin(source, (), 80, "13.0", compiler, fresh=True)
    assert compiler.calls == 2


@pytest.mark.parametrize("sm", [75, 80, 86, 89, 90, 100, 120])
def test_nvrtc_compiles_for_a_gpu_that_is_not_here(source: Path, sm: int) -> None:
    nvrtc = needed("cuda.bindings.nvrtc")
    compiler = Nvrtc()
    assert compiler.version == "nvrtc {}.{}".format(*nvrtc.nvrtcVersion()[1:])
    cubin = cached_cubin(source, ("-DFACTOR=3", "--std=c++17"), sm, "13.0", compiler)
    assert cubin[:4] == b"\x7fELF"
    assert b"halve" in cubin
    assert cubin[18:20] == (190).to_bytes(2, "little")  # EM_CUDA
    # The compute capability, in the second byte of the ELF header's flags.
    assert sm in cubin[48:52]


def test_a_source_that_does_not_compile_is_a_one_line_error(source: Path) -> None:
    needed("cuda.bindings.nvrtc")
    with pytest.raises(CompilationFailed, match=r"halve\.cu: nvrtc .* sm_80 .*FACTOR.*undefined") as caught:
        cached_cubin(source, (), 80, "13.0", Nvrtc())
    assert "\n" not in str(caught.value)
    # Nothing is cached.
    assert list((source.parents[1] / "cache" / "kernels").iterdir()) == []
