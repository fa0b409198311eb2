"""A module imports only from its own package and from the layers below it, lazy imports included."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import mdmf_deploy

PACKAGE = Path(mdmf_deploy.__file__).parent
# From the ground up. Packages of one layer do not import each other.
LAYERS = (
    {"errors", "interrupts", "text"},
    {"scratch"},
    {"files"},
    {"hardware"},
    {"bundle"},
    {"images", "mmd", "model", "runtime"},
    {"detection"},
    {"tasks"},
    {"cli"},
    {"__main__"},
)
HEIGHT = {name: height for height, layer in enumerate(LAYERS) for name in layer}


def module_name(path: Path) -> str:
    """The module that a file holds, without the leading "mdmf_deploy."."""
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_name(path): path for path in PACKAGE.rglob("*.py") if path.parent != PACKAGE or path.stem in HEIGHT}


@cache
def nodes(path: Path) -> tuple[ast.AST, ...]:
    """Every node of a file that may import something, or be a part of a table."""
    kinds = (ast.Import, ast.ImportFrom, ast.Tuple, ast.Call, ast.Dict)
    return tuple(node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, kinds))


def imported(path: Path) -> Iterator[str]:
    """Every module of ours that a file imports, at any depth, without the leading "mdmf_deploy."."""
    for node in nodes(path):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: write imports in full"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            package, _, rest = name.partition(".")
            if package == "mdmf_deploy" and rest.partition(".")[0] in HEIGHT:
                # The last part may be a name in the module.
                yield rest if rest in MODULES else rest.rpartition(".")[0]


def imported_late(path: Path) -> Iterator[tuple[str, str]]:
    """Every module of ours, and the class in it, that a table of a file names as text."""
    for node in nodes(path):
        rows: list[list[ast.expr | None]] = []
        if isinstance(node, ast.Tuple | ast.Call):
            rows = [list(node.elts if isinstance(node, ast.Tuple) else node.args)[:2]]
        elif isinstance(node, ast.Dict):
            rows = [[module, name] for name, module in zip(node.keys, node.values, strict=True)]
        for row in rows:
            texts = [part.value for part in row if isinstance(part, ast.Constant) and isinstance(part.value, str)]
            if len(texts) == 2 and texts[0].startswith("mdmf_deploy."):
                yield texts[0].removeprefix("mdmf_deploy."), texts[1]


def names_in(path: Path) -> set[str]:
    """The classes and functions of a file, and the names that it assigns."""
    names: set[str] = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign):
            names |= {ast.unparse(target) for target in node.targets}
    return names


def test_imports_go_down() -> None:
    wrong = [
        f"{name} imports {other}"
        for name, path in MODULES.items()
        for other in [*imported(path), *(module for module, _ in imported_late(path))]
        if (own := name.partition(".")[0]) != (theirs := other.partition(".")[0]) and HEIGHT[theirs] >= HEIGHT[own]
    ]
    assert not wrong


def test_no_modules_import_each_other() -> None:
    TopologicalSorter({name: set(imported(path)) - {name} for name, path in MODULES.items()}).prepare()


def test_tables_of_late_imports_name_classes_that_exist() -> None:
    """Most runtimes and libraries are not installed where the tests run, so nothing is imported."""
    rows = [row for path in PACKAGE.rglob("*.py") for row in imported_late(path)]
    assert len(rows) > 12
    for module, name in rows:
        assert module in MODULES, f"no module {module}"
        assert name in names_in(MODULES[module]), f"no {name} in {module}"


def test_every_module_has_a_layer() -> None:
    tops = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()}
    assert tops - {"__init__"} == HEIGHT.keys()
