"""Every script of benchmarks/ names only modules, functions and attributes that exist. Nothing is run or imported."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BENCHMARKS = ROOT / "benchmarks"
SCRIPTS = sorted(BENCHMARKS.rglob("*.py"))
OURS = {"mdmf_deploy": ROOT, "fakes": ROOT / "tests", "helpers": ROOT / "tests"}


def file_of(module: str, script: Path) -> Path | None:
    """Return the file, or the folder of a package, of a module of this repository, as imported by a script."""
    parts = module.split(".")
    for folder in [OURS[parts[0]]] if parts[0] in OURS else [script.parent, BENCHMARKS]:
        place = folder.joinpath(*parts)
        for candidate in (place.with_suffix(".py"), place / "__init__.py", place):
            if candidate.exists():
                return candidate
    return None


def is_ours(module: str, script: Path) -> bool:
    return module.partition(".")[0] in OURS or file_of(module, script) is not None


@cache
def names_in(file: Path) -> frozenset[str]:
    """Return every name that a module binds at its top level, and the modules in a package."""
    names: set[str] = set()
    if file.name == "__init__.py" or file.is_dir():
        folder = file.parent if file.name == "__init__.py" else file
        names |= {path.stem for path in folder.iterdir() if path.suffix == ".py" or path.is_dir()}
    if file.is_dir():
        return frozenset(names)
    for node in bound(ast.parse(file.read_text(encoding="utf-8")).body):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names |= {(alias.asname or alias.name).partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {part.id for target in targets for part in ast.walk(target) if isinstance(part, ast.Name)}
    return frozenset(names)


def bound(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Yield the statements that run when a module is imported, also under `if`, `try` and `with`."""
    for node in body:
        yield node
        if isinstance(node, ast.If | ast.Try | ast.With):
            yield from bound([*node.body, *getattr(node, "orelse", [])])
        if isinstance(node, ast.Try):
            yield from bound([statement for handler in node.handlers for statement in handler.body])


def unresolved(source: str, script: Path) -> list[str]:
    """Return each import, and each attribute of an imported module, that does not exist."""
    tree = ast.parse(source)
    wrong: list[str] = []
    modules: dict[str, Path] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if is_ours(alias.name, script):
                    file = file_of(alias.name, script)
                    if file is None:
                        wrong.append(f"{script.name}:{node.lineno}: no module {alias.name}")
                    elif alias.asname or "." not in alias.name:
                        modules[alias.asname or alias.name] = file
        elif isinstance(node, ast.ImportFrom) and node.module and is_ours(node.module, script):
            file = file_of(node.module, script)
            if file is None:
                wrong.append(f"{script.name}:{node.lineno}: no module {node.module}")
                continue
            for alias in node.names:
                inner = file_of(f"{node.module}.{alias.name}", script)
                if alias.name not in names_in(file):
                    wrong.append(f"{script.name}:{node.lineno}: no {alias.name} in {node.module}")
                elif inner is not None:
                    modules[alias.asname or alias.name] = inner
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in modules:
            file = modules[node.value.id]
            if node.attr not in names_in(file) and not node.attr.startswith("__"):
                wrong.append(f"{script.name}:{node.lineno}: no {node.attr} in {node.value.id}")
    return wrong


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: str(path.relative_to(BENCHMARKS)))
def test_imports_and_attributes_exist(script: Path) -> None:
    assert unresolved(script.read_text(encoding="utf-8"), script) == []


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("from mdmf_deploy.hardware.gone import Device", "no module mdmf_deploy.hardware.gone"),
        ("from mdmf_deploy.hardware.device import Gone", "no Gone in mdmf_deploy.hardware.device"),
        ("def f():\n    import mdmf_deploy.gone", "no module mdmf_deploy.gone"),
        ("from mdmf_deploy.images import jpeg_pixels\njpeg_pixels.gone()", "no gone in jpeg_pixels"),
        ("from common import gone", "no gone in common"),
        ("from fakes.gone import host_device", "no module fakes.gone"),
    ],
)
def test_a_name_that_does_not_exist_is_found(source: str, message: str) -> None:
    [wrong] = unresolved(source, BENCHMARKS / "x.py")
    assert message in wrong


def test_scripts_of_both_folders_have_different_names() -> None:
    """Scripts of benchmarks/gpu import by plain names from both folders."""
    names = [path.stem for path in SCRIPTS]
    assert len(names) == len(set(names))


def test_documented_commands_exist_with_their_options() -> None:
    rooms = [ROOT / name for name in ("benchmarks", "docs", "engines", "export")]
    documents = [path for room in rooms for path in room.rglob("*.md")]
    texts = [*SCRIPTS, *ROOT.glob("*.md"), *documents, *BENCHMARKS.rglob("*.sh")]
    commands = {
        (path.name, *command)
        for path in texts
        for command in re.findall(
            r"(?:python|bash) (benchmarks/[\w/]+\.(?:py|sh))([^`\n]*)", path.read_text(encoding="utf-8")
        )
    }
    assert len(commands) > 20
    for document, script, arguments in sorted(commands):
        assert (ROOT / script).is_file(), (document, script)
        for option in re.findall(r"(?<!\S)--[\w-]+", arguments.replace("--help", "")):
            assert f'"{option}"' in (ROOT / script).read_text(encoding="utf-8"), (document, script, option)


def test_every_script_is_in_a_readme() -> None:
    for folder in (BENCHMARKS, BENCHMARKS / "gpu"):
        readme = (folder / "README.md").read_text(encoding="utf-8")
        files = [path.name for path in folder.iterdir() if path.suffix in (".py", ".sh", ".cu")]
        assert [name for name in files if f"`{name}`" not in readme] == []
