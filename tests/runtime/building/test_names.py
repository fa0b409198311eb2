"""Every TensorRT name in the code exists in the real bindings, of versions that cannot be installed here.

names/ lists what the bindings of TensorRT 10.16.1 and 11.4.0 export. The names in use are read from the source. There
the module is always called `library`, and objects it makes are annotated, like `config: trt.IBuilderConfig`.
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
# The modules that use TensorRT. Only RTX has the names in runtime/building/rtx.py.
SHARED = [*(path for path in sorted((PACKAGE / "runtime" / "building").glob("*.py")) if path.stem != "rtx")]
SHARED.append(PACKAGE / "runtime" / "trt.py")
LIBRARY = "library"
OURS = {"__version__"}

Known = Callable[[str, str | None], bool]
"""Return whether a class (or function) of this name exists, with this member."""


def used_in(source: str) -> set[tuple[str, str | None]]:
    """Return (class, member) for every use of a member, and (class, None) for every use of a class itself."""
    uses: set[tuple[str, str | None]] = set()
    for function in [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef | ast.ClassDef)]:
        types = dict(_annotated(function))
        uses |= {(name, None) for name in types.values()}
        for node in ast.walk(function):
            if not isinstance(node, ast.Attribute):
                continue
            value = node.value
            if isinstance(value, ast.Call) and _owner(value.func, types):
                # Its class is unknown.
                raise AssertionError(f"line {node.lineno}: annotate what {ast.unparse(value)} is before using it")
            if _is_library(value):
                uses.add((node.attr, None))
            elif isinstance(value, ast.Attribute) and _is_library(value.value):
                uses.add((value.attr, node.attr))
            elif ast.unparse(value) in types:
                uses.add((types[ast.unparse(value)], node.attr))
        _refuse_unannotated(function, types)
    return {(name, member) for name, member in uses if name not in OURS and not (member or "").startswith("__")}


def _annotated(function: ast.AST) -> Iterator[tuple[str, str]]:
    """Yield each annotated variable, argument or attribute, and its class in the library."""
    for node in ast.walk(function):
        if isinstance(node, ast.arg):
            name, annotation = node.arg, node.annotation
        elif isinstance(node, ast.AnnAssign):
            name, annotation = ast.unparse(node.target), node.annotation
        else:
            continue
        if isinstance(annotation, ast.Attribute) and ast.unparse(annotation.value) in ("trt", "tensorrt_rtx"):
            yield name, annotation.attr


def _is_library(value: ast.expr) -> bool:
    """Return whether an expression is the module: `library`, `request.library` or `self._library`."""
    name = value.id if isinstance(value, ast.Name) else value.attr if isinstance(value, ast.Attribute) else ""
    return name.lstrip("_") == LIBRARY


def _owner(function: ast.expr, types: dict[str, str]) -> bool:
    return isinstance(function, ast.Attribute) and (_is_library(function.value) or ast.unparse(function.value) in types)


def _refuse_unannotated(function: ast.AST, types: dict[str, str]) -> None:
    """Raise AssertionError where the library returns an object whose attributes are used without an annotation."""
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
        # The lists lack the members of some classes. The test with RTX covers those.
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


def test_the_names_in_rtx_exist_in_rtx() -> None:
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
        ("self._library.IInt8Calibrator", ("IInt8Calibrator", None)),
        ("request.library.BuilderFlag.FP16", ("BuilderFlag", "FP16")),
        ("config.int8_calibrator = None", ("IBuilderConfig", "int8_calibrator")),
        ("self._engine.device_memory_size", ("ICudaEngine", "device_memory_size")),
    ],
)
def test_a_name_that_a_version_lacks_is_reported(line: str, use: tuple[str, str | None]) -> None:
    source = f"def build(library, config: trt.IBuilderConfig):\n self._engine: trt.ICudaEngine = make()\n {line}\n"
    assert use in used_in(source)
    assert listed("10.16.1")(*use)
    assert not listed("11.4.0")(*use)


@pytest.mark.parametrize(
    "line", ["config.get_timing_cache().serialize()", "cache = config.get_timing_cache(); cache.x"]
)
def test_an_object_without_annotation_is_refused(line: str) -> None:
    with pytest.raises(AssertionError, match="annotate"):
        used_in(f"def build(library, config: trt.IBuilderConfig):\n {line}\n")
