"""README.md and docs/: their commands, names, links and tables are those of the code."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import get_args

import pytest
from typer.main import get_command

import mdmf_deploy
from mdmf_deploy.bundle.calibration import Reason
from mdmf_deploy.cli import app
from mdmf_deploy.detection.rows import COLUMNS
from mdmf_deploy.errors import MdmfError
from mdmf_deploy.images.decode import Code

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/**/*.md")])
ROOMS = sorted(page for room in ("benchmarks", "engines", "examples", "export") for page in (ROOT / room).rglob("*.md"))


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def commands() -> list[str]:
    """Every `mdmf ...` in a shell block."""
    text = "".join(block for page in [*PAGES, *ROOMS] for block in blocks(page, "sh"))
    lines = text.replace("\\\n", " ").splitlines()
    return sorted({part.strip() for line in lines for part in line.split(" | ") if part.startswith("mdmf ")})


def leaves(command: object, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], object]:
    """Command words -> the command that takes options."""
    children = getattr(command, "commands", None)
    if children is None:
        return {path: command}
    return {key: leaf for name, child in children.items() for key, leaf in leaves(child, (*path, name)).items()}


LEAVES = leaves(get_command(app))


@pytest.mark.parametrize("line", commands())
def test_a_command_is_accepted_as_it_stands(line: str) -> None:
    words = shlex.split(line, comments=True)[1:]
    path = next(path for path in LEAVES if tuple(words[: len(path)]) == path)
    # Parses options, their types and choices; runs nothing.
    context = LEAVES[path].make_context("mdmf", words[len(path) :])  # type: ignore[attr-defined]
    context.close()


def test_every_command_is_shown() -> None:
    shown = {tuple(line.split()[1:3]) for line in commands()}
    for path in LEAVES:
        assert any(words[: len(path)] == path for words in shown), path


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_compiles_and_its_public_names_exist(page: Path) -> None:
    for block in blocks(page, "python"):
        compile(block, str(page), "exec")
        for names in re.findall(r"^from mdmf_deploy import (.+)$", block, re.MULTILINE):
            assert {name.strip() for name in names.split(",")} <= set(mdmf_deploy.__all__)


@pytest.mark.parametrize("page", [*PAGES, *ROOMS], ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), target


def table(title: str, pattern: str) -> list[str]:
    """First cells of the table below a heading of docs/rows.md."""
    text = (ROOT / "docs" / "rows.md").read_text(encoding="utf-8")
    section = text[text.index(f"## {title}\n") + 3 :].partition("\n## ")[0]
    return re.findall(pattern, section, re.MULTILINE)


def test_every_column_is_explained_in_its_order() -> None:
    cells = table("Columns", r"^\| (`.*?`) \|")
    assert tuple(name for cell in cells for name in re.findall(r"`(\w+)`", cell)) == COLUMNS


def test_every_error_code_is_explained() -> None:
    assert sorted(table("Error codes", r"^\| `(\w+)` \|")) == sorted(get_args(Code))


def test_every_reason_is_explained() -> None:
    assert sorted(table("Reasons", r"^\| `(\w+)` \|")) == sorted(get_args(Reason))


def test_every_exit_code_is_explained() -> None:
    codes = {kind.exit_code for kind in (MdmfError, *MdmfError.__subclasses__())}
    assert set(re.findall(r"\d+", " ".join(table("Exit codes", r"^\| ([\d, ]+) \|")))) == {
        str(code) for code in codes | {0, 3, 70, 129, 130, 141, 143}
    }
