"""The kernels compiled by NVIDIA's own compiler: resources and instructions. Needs wheels, but no GPU.

Tests take every step with every operand at one width, and every architecture with one kernel. With MDMF_ALL_KERNELS=1
they take every pair.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from functools import cache
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest

from mdmf_deploy.errors import CompilationFailed, UsageError
from mdmf_deploy.files import room
from mdmf_deploy.mmd.cuda.kernels import Kernel, kernels


def load(path: Path) -> ModuleType:
    spec = spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SCRIPT = load(Path(__file__).parents[2] / "benchmarks" / "kernel_resources.py")
ARCHITECTURES: dict[int, int] = SCRIPT.ARCHITECTURES
EVERY = [(kernel, sm) for kernel in kernels() for sm in ARCHITECTURES if kernel.supports(sm)]
# The widest have the least room, and bf16 takes what fp16 takes. Step 4 has other tiles and other arithmetic at each
# width. 8.6 has as little shared memory as any after 7.5.
SOME = [(Kernel(version, operand, 256), 86) for version, operand in (("plain", "fp32"), ("tiled", "fp32"))]
SOME += [(Kernel("tensor", operand, 256), 86) for operand in ("fp16", "fp16x2")]
SOME += [(Kernel("plain", operand, 64), 86) for operand in ("fp16", "bf16")]
SOME += [(Kernel("wgmma", operand, width), 90) for operand, width in (("fp16", 64), ("bf16", 128), ("fp16x2", 256))]
# 8.0 and 8.9 compile like 8.6.
SOME += [(Kernel("tensor", "fp16", 64), 75), (Kernel("tiled", "fp32", 64), 75), (Kernel("tensor", "bf16", 64), 90)]
SOME += [(Kernel("tensor", "fp16", 64), 100), (Kernel("tensor", "fp16", 64), 120)]
if os.environ.get("MDMF_ALL_KERNELS") == "1":
    SOME = EVERY
HOPPER = [kernel for kernel, _ in SOME if kernel.version == "wgmma"]
# Kernels of step 3 with the architectures that have other products, asynchronous copies or numbers of registers.
STEP_3 = [(kernel, sm) for kernel, sm in SOME if kernel.version == "tensor" and sm != 75]
# Bytes of a block's shared memory that the system keeps, from 8.0 on.
RESERVED = 1024


@pytest.fixture(scope="module")
def script() -> ModuleType:
    """benchmarks/kernel_resources.py. Without the wheels it needs, fail in CI and skip elsewhere."""
    try:
        import_module("cuda.pathfinder")
        SCRIPT.nvrtc()
    except ImportError as error:
        if os.environ.get("CI") == "true":
            pytest.fail(f"{error}; the kernels are compiled with the wheels of the extra dev")
        pytest.skip(str(error))
    return SCRIPT


@pytest.fixture(scope="module")
def compiled(script: ModuleType) -> list[list[str]]:
    """The cells of RESOURCES.md, compiled now."""
    return [cells(row) for row in script.rows(SOME)]


def cells(row: str) -> list[str]:
    return [cell.strip() for cell in row.strip("|").split("|")]


def test_nothing_spills_and_every_block_fits(compiled: list[list[str]]) -> None:
    assert len(compiled) == len(SOME)
    for (kernel, sm), row in zip(SOME, compiled, strict=True):
        registers, spills, dynamic, fixed = [int(cell) for cell in row[4:7]], *map(int, row[7:])
        assert spills == 0, row
        assert dynamic == kernel.shared
        assert dynamic + RESERVED <= ARCHITECTURES[sm] + (RESERVED if sm == 75 else 0)
        assert fixed <= 49152
        # Each thread gets registers in groups of 8. A multiprocessor has 65536.
        threads = kernel.launches(1, 1, kernel.tile, 1).cross.block
        assert -(-registers[1] // 8) * 8 * threads * kernel.resident <= 65536, row


def test_the_table_of_resources_is_current(script: ModuleType, compiled: list[list[str]]) -> None:
    text = (room("engines") / "kernels" / "RESOURCES.md").read_text()
    table = {tuple(row[:4]): row for row in map(cells, text.splitlines()) if len(row) == 10}
    assert {(k.version, k.operand, str(k.width), f"{sm // 10}.{sm % 10}") for k, sm in EVERY} <= set(table)
    assert all(row[7] in ("0", "spills", "---") for row in table.values())
    if script.nvrtc().version.upper() not in text:
        pytest.skip(f"the table is of another compiler than {script.nvrtc().version}")
    for row in compiled:
        assert table[tuple(row[:4])] == row


@cache
def machine_code(script: ModuleType, kernel: Kernel, sm: int) -> str:
    """The machine code of the cross term."""
    text: str = script.cuobjdump(script.cubin(kernel, sm), "-sass")
    return text.split("Function : mdmf_cross")[1].split("Function : ")[0]


def instructions(script: ModuleType, kernel: Kernel, sm: int) -> Counter[str]:
    """Count each instruction in the machine code of the cross term."""
    body = machine_code(script, kernel, sm)
    return Counter(re.findall(r"^\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+ )?([A-Z][A-Z0-9_.]*)", body, re.MULTILINE))


def total(counts: Counter[str], start: str) -> int:
    return sum(count for name, count in counts.items() if name.startswith(start))


def named(value: Kernel | int) -> str:
    return f"{value.operand}-{value.width}" if isinstance(value, Kernel) else str(value)


MATRIX = {"fp16": "HMMA.16816.F32", "fp16x2": "HMMA.16816.F32", "bf16": "HMMA.16816.F32.BF16"}


@pytest.mark.parametrize(("kernel", "sm"), STEP_3, ids=named)
def test_step_3_runs_on_tensor_cores(script: ModuleType, kernel: Kernel, sm: int) -> None:
    """It has the intended instructions, as many as the tile scheme needs, and no others in their place."""
    found = instructions(script, kernel, sm)
    name, accurate = MATRIX[kernel.operand], kernel.operand == "fp16x2"
    # A product is 16 rows by 8 points to a depth of 16. A warp takes all its rows and twice 8 points. fp16x2 takes 3.
    values = kernel.rows // 8 // 16 * 2
    products = values * kernel.width // 16 * (3 if accurate else 1)
    assert found[name] == total(found, "HMMA") > 0
    assert found[name] % products == 0
    copies = found[name] // products
    # Three of the four kernel values that a thread has of each product come from the special-function unit.
    assert found["MUFU.EX2"] == 3 * values * copies
    assert found["FFMA"] >= values * (4 + (6 if accurate else 4)) * copies
    assert total(found, "LDGSTS") > 0
    # 16 bytes of R serve two products with X and two with x', 16 bytes of r' two with X.
    assert found["LDS.128"] * (kernel.rows // 8 // 16) * (3 if accurate else 2) == found[name]
    assert total(found, "LDL") == total(found, "STL") == 0


@pytest.mark.parametrize(("operand", "products"), [("fp16", 1), ("fp16x2", 3)])
def test_step_3_on_turing(script: ModuleType, operand: str, products: int) -> None:
    """Products have half the depth, and there are no asynchronous copies."""
    found = instructions(script, Kernel("tensor", operand, 64), 75)
    assert found["HMMA.1688.F32"] == total(found, "HMMA") > 0
    assert found["HMMA.1688.F32"] % (products * 4 * 64 // 8) == 0
    assert found["MUFU.EX2"] == 3 * 4 * found["HMMA.1688.F32"] // (products * 4 * 64 // 8)
    assert total(found, "LDGSTS") == total(found, "LDL") == total(found, "STL") == 0


@pytest.mark.parametrize("kernel", HOPPER, ids=named)
def test_step_4_multiplies_with_whole_warpgroups(script: ModuleType, kernel: Kernel) -> None:
    """One product of 64 rows and all points of a tile for every 16 columns, and three in fp16x2."""
    found = instructions(script, kernel, 90)
    assert total(found, "HGMMA") == kernel.width // 16 * (3 if kernel.operand == "fp16x2" else 1)
    assert total(found, "HMMA") == total(found, "LDL") == total(found, "STL") == 0
    # One copy of points, one of norms and one of weights, wherever the compiler repeats the loop.
    assert found["UBLKCP.S.G"] % 3 == 0
    assert found["UBLKCP.S.G"] > 0
    # With and without norms to subtract. At a width of 64 a polynomial computes a quarter of the exponentials.
    values = kernel.tile // 2 * 2
    assert found["MUFU.EX2"] == (values * 3 // 4 if kernel.row_bytes == 128 else values)
    # All products of a tile are started before the one wait for them.
    assert total(found, "WARPGROUP.ARRIVE") == total(found, "WARPGROUP.DEPBAR") == 1


@pytest.mark.parametrize("kernel", HOPPER, ids=named)
def test_step_4_hands_out_no_more_registers_than_it_was_launched_with(script: ModuleType, kernel: Kernel) -> None:
    """Warpgroups that ask for more wait for ever."""
    code = machine_code(script, kernel, 90)
    [taken] = re.findall(r"USETMAXREG\.TRY_ALLOC\S* UP\d, (0x[0-9a-f]+)", code)
    [kept] = re.findall(r"USETMAXREG\.DEALLOC\S* (0x[0-9a-f]+)", code)
    launched = script.usage(script.cubin(kernel, 90))["mdmf_cross"].registers
    consumers = kernel.rows // 64
    assert kernel.threads == 128 * (consumers + 1)
    assert int(kept, 16) <= launched <= int(taken, 16)
    assert int(taken, 16) * consumers + int(kept, 16) <= launched * (consumers + 1)


@pytest.mark.parametrize("sm", [80, 89, 100, 120])
def test_step_4_is_refused_on_any_gpu_but_hopper(script: ModuleType, sm: int) -> None:
    with pytest.raises(UsageError, match=rf"{sm // 10}\.{sm % 10} cannot run it"):
        script.cubin(Kernel("wgmma", "fp16", 128), sm)


@pytest.mark.parametrize("sm", [75, 80])
def test_step_2_multiplies_in_float32_from_shared_memory(script: ModuleType, sm: int) -> None:
    found = instructions(script, Kernel("tiled", "fp32", 64), sm)
    assert total(found, "HMMA") == 0
    # 64 products of 4 numbers each from 16 loads of 16 bytes.
    assert found["FFMA"] >= 256
    assert sum(count for name, count in found.items() if re.fullmatch(r"LDS\.(U\.)?128", name)) >= 16
    assert (total(found, "LDGSTS") > 0) == (sm >= 80)
    assert found["MUFU.EX2"] == 48


@pytest.mark.parametrize(("operand", "width"), [("bf16", 64), ("fp16x2", 256)])
def test_a_kernel_is_refused_before_it_is_compiled_for_an_architecture_without_its_products_or_shared_memory(
    script: ModuleType, operand: str, width: int
) -> None:
    with pytest.raises(UsageError, match=r"7\.5 cannot run it; choose fp32 or fp16"):
        script.cubin(Kernel("tensor", operand, width), 75)


@pytest.mark.parametrize(
    ("options", "error"),
    [(("-DMDMF_WIDTH=96",), "no such width"), (("-DMDMF_WIDTH=64", "-DMDMF_PRODUCT=1"), "incompatible redefinition")],
    ids=["wrong", "warns"],
)
def test_a_source_that_is_wrong_or_warns_does_not_pass(
    script: ModuleType, options: tuple[str, ...], error: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Kernel, "options", lambda *_: ("--std=c++17", "-DMDMF_FP32", *options))
    with pytest.raises(CompilationFailed, match=rf"1_plain\.cu: nvrtc .* for sm_80 .*{error}"):
        script.cubin(Kernel("plain", "fp32", 64), 80)


def test_products_that_the_compiler_serialises_do_not_pass(script: ModuleType) -> None:
    kernel = Kernel("wgmma", "fp16", 256)
    crowded = (*kernel.options(90), "-DMDMF_CONSUMERS=4")
    with pytest.raises(CompilationFailed, match=r"4_wgmma\.cu: .*wgmma\.mma_async instructions are serialized"):
        script.compiled(kernel.source, crowded, 90)
