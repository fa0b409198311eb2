"""README.md and docs/: their commands, names, links and tables are those of the code."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import get_args

import pytest
from helpers.pages import MARK, PAGES, ROOMS, ROOT, blocks, lines, name
from typer.main import get_command

import mdmf_deploy
from mdmf_deploy.bundle.calibration import Reason
from mdmf_deploy.cli import app
from mdmf_deploy.detection.rows import COLUMNS
from mdmf_deploy.errors import MdmfError
from mdmf_deploy.images.decode import Code
from mdmf_deploy.images.limits import Note
from mdmf_deploy.images.provenance import Claim

# Why tests cannot run a block. Any other reason is a block to run.
REASONS = {
    "needs Docker",
    "needs a GPU",
    "needs a bucket and a cluster",
    "needs a head trained elsewhere",
    "needs strace",
    "needs the extra for videos",
    "needs the images it was judged on",
    "needs the network",
    "needs the network and the CUDA toolkit",
}


def commands() -> list[str]:
    """Every `mdmf ...` in a shell block, also in those that tests cannot run."""
    found = [block for page in [*PAGES, *ROOMS] for block in blocks(page) if block.language == "sh"]
    parts = [part.strip() for block in found for line in lines(block.text) for part in re.split(r" [|>] ", line)]
    return sorted({part for part in parts if part.startswith("mdmf ")})


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


@pytest.mark.parametrize("page", [*PAGES, *ROOMS], ids=name)
def test_every_block_is_run_or_says_why_not(page: Path) -> None:
    """tests/docs runs blocks of sh and python. A block in another way of writing would escape it."""
    found = blocks(page)
    text = page.read_text(encoding="utf-8")
    assert len(re.findall(r"^```", text, re.MULTILINE)) == 2 * len(found)
    assert {block.language for block in found} <= {"", "python", "sh", "toml"}
    assert {block.reason for block in found} <= {None, *REASONS}
    assert len(re.findall(f"^<!-- {MARK}", text, re.MULTILINE)) == sum(block.reason is not None for block in found)
    assert not re.search(r"^(    |\$ )\$?(mdmf|python|pip) ", text, re.MULTILINE)
    assert not any(re.search(r"^(\$ )?mdmf ", block.text, re.MULTILINE) for block in found if block.language != "sh")


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_python_compiles_and_its_public_names_exist(page: Path) -> None:
    for text in (block.text for block in blocks(page) if block.language == "python"):
        compile(text, str(page), "exec")
        for names in re.findall(r"^from mdmf_deploy import (.+)$", text, re.MULTILINE):
            assert {name.strip() for name in names.split(",")} <= set(mdmf_deploy.__all__)


@pytest.mark.parametrize("page", [*PAGES, *ROOMS], ids=name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), target


SOURCES = sorted(
    path
    for room in ("mdmf_deploy", "engines", "export", "benchmarks", "tests")
    for suffix in ("py", "cu", "cuh", "toml")
    for path in (ROOT / room).rglob(f"*.{suffix}")
)


def test_citations_in_code_name_pages_and_sections_that_exist() -> None:
    """A citation is a page, and for docs/method.md also a section: docs/method.md, "The score"."""
    cited = set()
    for path in SOURCES:
        text = re.sub(r"\s+#?\s*", " ", path.read_text(encoding="utf-8"))
        for page, section in re.findall(r"\b(docs/[\w/]+\.md)(?:, \"([^\"]+)\")?", text):
            if path.name in ("test_docs.py", "test_pages.py"):
                continue
            assert (ROOT / page).is_file(), f"{path}: {page}"
            assert section or page != "docs/method.md", f"{path}: name the section of {page}"
            if section:
                headings = re.findall(r"^#+ (.+)$", (ROOT / page).read_text(encoding="utf-8"), re.MULTILINE)
                assert section in headings, f"{path}: {page} has no section {section!r}"
                cited.add(section)
    assert len(cited) > 5


def test_papers_that_code_cites_are_among_the_references() -> None:
    references = (ROOT / "docs" / "method.md").read_text(encoding="utf-8").partition("## References")[2]
    package = [path.read_text(encoding="utf-8") for path in SOURCES if path.is_relative_to(ROOT / "mdmf_deploy")]
    authors = {author for text in package for author in re.findall(r"(\w+) et al\.", text)}
    assert len(authors) > 5
    assert {author for author in authors if author not in references} == set()


def table(title: str, pattern: str, page: str = "rows.md") -> list[str]:
    """First cells of the table below a heading of a page in docs."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    section = text[text.index(f"## {title}\n") + 3 :].partition("\n## ")[0]
    return re.findall(pattern, section, re.MULTILINE)


def test_every_column_is_explained_in_its_order() -> None:
    cells = table("Columns", r"^\| (`.*?`) \|")
    assert tuple(name for cell in cells for name in re.findall(r"`(\w+)`", cell)) == COLUMNS


def test_every_error_code_is_explained() -> None:
    assert sorted(table("Error codes", r"^\| `(\w+)` \|")) == sorted(get_args(Code))


def test_every_reason_is_explained() -> None:
    assert sorted(table("Reasons", r"^\| `(\w+)` \|")) == sorted(get_args(Reason))


def test_every_note_is_explained() -> None:
    assert sorted(table("Notes", r"^\| `(\w+)` \|")) == sorted(get_args(Note))


def test_every_claim_of_metadata_is_explained() -> None:
    assert sorted(table("Claims", r"^\| `(?!provenance)(\w+)` \|", "provenance.md")) == sorted(get_args(Claim))


def test_every_exit_code_is_explained() -> None:
    codes = {kind.exit_code for kind in (MdmfError, *MdmfError.__subclasses__())}
    assert set(re.findall(r"\d+", " ".join(table("Exit codes", r"^\| ([\d, ]+) \|")))) == {
        str(code) for code in codes | {0, 3, 70, 129, 130, 141, 143}
    }
