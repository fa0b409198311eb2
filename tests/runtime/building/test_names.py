"""Every TensorRT name that the code uses is one of the real bindings', of versions that cannot be installed here.

names/ lists what the bindings of TensorRT 10.16.1 and 11.4.0 export.  The names in use are read from the source: the
module is always called `library` there, and what it makes is annotated, as `config: trt.IBuilderConfig`.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from helpers.libraries import needed

import mdmf_deploy

PACKAGE = Path(mdmf_deploy.__file__).parent
NAMES = Path(__file__).parent / "names"
# These touch TensorRT; what runtime/building/rtx.py uses is RTX's alone.
SHARED = [*(path for path in sorted((PACKAGE / "runtime" / "building").glob("*.py")) if path.stem != "rtx")]
SHARED.append(PACKAGE / "runtime" / "trt.py")
LIBRARY = "library"
OURS = {"__version__"}

Known = Callable[[str, str | None], bool]
"""Whether there is a class (or function) of this name, with a member of this one."""


def used_in(source: str) -> set[tuple[str, str | None]]:
    """(class, member) of every use, (class, None) where the class itself is meant."""
    uses: set[tuple[str, str | None]] = set()
    for function in [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef | ast.ClassDef)]:
        types = dict(_annotated(function))
        uses |= {(name, None) for name in types.values()}
        for node in ast.walk(function):
            if not isinstance(node, ast.Attribute):
                continue
            value = node.value
            if isinstance(value, ast.Call) and _owner(value.func, types):
                # Nobody could say of what class it is.
                raise AssertionError(f"line {node.lineno}: annotate what {ast.unparse(value)} is before using it")
            if isinstance(value, ast.Name) and value.id == LIBRARY:
                uses.add((node.attr, None))
            elif isinstance(value, ast.Attribute) and ast.unparse(value.value) == LIBRARY:
                uses.add((value.attr, node.attr))
            elif ast.unparse(value) in types:
                uses.add((types[ast.unparse(value)], node.attr))
        _refuse_unannotated(function, types)
    return {(name, member) for name, member in uses if name not in OURS and not (member or "").startswith("__")}


def _annotated(function: ast.AST) -> Iterator[tuple[str, str]]:
    """Variable, argument or attribute -> the class of the library that it is annotated with."""
    for node in ast.walk(function):
        if isinstance(node, ast.arg):
            name, annotation = node.arg, node.annotation
        elif isinstance(node, ast.AnnAssign):
            name, annotation = ast.unparse(node.target), node.annotation
        else:
            continue
        if isinstance(annotation, ast.Attribute) and ast.unparse(annotation.value) in ("trt", "tensorrt_rtx"):
            yield name, annotation.attr


def _owner(function: ast.expr, types: dict[str, str]) -> bool:
    return isinstance(function, ast.Attribute) and ast.unparse(function.value) in (LIBRARY, *types)


def _refuse_unannotated(function: ast.AST, types: dict[str, str]) -> None:
    """What the library returns is annotated where attributes of it are used."""
    made = {
        ast.unparse(node.targets[0])
        for node in ast.walk(function)
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call) and _owner(node.value.func, types)
    }
    for node in ast.walk(function):
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) in made - types.keys():
            raise AssertionError(f"line {node.lineno}: annotate {ast.unparse(node.value)}")


def listed(version: str) -> Known:
    names = json.loads((NAMES / f"tensorrt-{version}.json").read_text(encoding="utf-8"))

    def known(name: str, member: str | None) -> bool:
        # Of classes whose members are not listed, RTX's are the best there is to compare with.
        members = names["classes"].get(name)
        return name in names["module"] and (member is None or members is None or member in members)

    return known


def installed(name: str, member: str | None) -> bool:
    library = needed("tensorrt_rtx")
    return hasattr(library, name) and (member is None or hasattr(getattr(library, name), member))


def in_use() -> set[tuple[str, str | None]]:
    return set().union(*(used_in(path.read_text(encoding="utf-8")) for path in SHARED))


@pytest.mark.parametrize("known", [listed("10.16.1"), listed("11.4.0"), installed], ids=["10.16.1", "11.4.0", "rtx"])
def test_every_name_is_in_the_bindings(known: Known) -> None:
    assert sorted(use for use in in_use() if not known(*use)) == []


def test_what_only_rtx_has_is_in_rtx() -> None:
    uses = used_in((PACKAGE / "runtime" / "building" / "rtx.py").read_text(encoding="utf-8"))
    assert ("IBuilderConfig", "num_compute_capabilities") in uses
    assert [use for use in uses if not installed(*use)] == []


def test_no_other_module_touches_tensorrt() -> None:
    touching = {path for path in PACKAGE.rglob("*.py") if "import tensorrt as trt" in path.read_text(encoding="utf-8")}
    assert touching
    assert touching <= set(SHARED)


def test_the_names_are_found() -> None:
    uses = in_use()
    assert {("Builder", "build_serialized_network"), ("BuilderFlag", "TF32"), ("Runtime", None)} <= uses
    assert {("IExecutionContext", "execute_async_v3"), ("EngineInspector", "get_engine_information")} <= uses
    assert len(uses) > 45


@pytest.mark.parametrize(
    ("line", "use"),
    [
        ("library.BuilderFlag.FP16", ("BuilderFlag", "FP16")),
        ("library.IInt8Calibrator", ("IInt8Calibrator", None)),
        ("config.int8_calibrator = None", ("IBuilderConfig", "int8_calibrator")),
        ("self._engine.device_memory_size", ("ICudaEngine", "device_memory_size")),
    ],
)
def test_a_name_that_a_version_lacks_is_found(line: str, use: tuple[str, str | None]) -> None:
    source = f"def build(library, config: trt.IBuilderConfig):\n self._engine: trt.ICudaEngine = make()\n {line}\n"
    assert use in used_in(source)
    assert listed("10.16.1")(*use)
    assert not listed("11.4.0")(*use)


@pytest.mark.parametrize(
    "line", ["config.get_timing_cache().serialize()", "cache = config.get_timing_cache(); cache.x"]
)
def test_what_no_annotation_tells_is_refused(line: str) -> None:
    with pytest.raises(AssertionError, match="annotate"):
        used_in(f"def build(library, config: trt.IBuilderConfig):\n {line}\n")
