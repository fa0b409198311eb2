"""The pages of the documentation and the blocks of code in them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/**/*.md")])
ROOMS = sorted(page for room in ("benchmarks", "engines", "examples", "export") for page in (ROOT / room).rglob("*.md"))

# Pages whose commands train and trace models.
LONG = {"README.md", "docs/training.md"}
MARK = "not run in tests"
_BLOCK = re.compile(
    rf"^(?:<!-- {MARK}: (?P<reason>.*?) -->\n+)?```(?P<language>\w*)\n(?P<text>.*?)^```$", re.DOTALL | re.MULTILINE
)


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block of a page.

    language: the word after its fence, or "".
    reason: the text of the comment before it, `<!-- not run in tests: REASON -->`, or None without one.
    """

    language: str
    text: str
    reason: str | None


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path) -> list[Block]:
    found = _BLOCK.finditer(page.read_text(encoding="utf-8"))
    return [Block(match["language"], match["text"], match["reason"]) for match in found]


def lines(text: str) -> list[str]:
    """Return the commands of a shell block. One that is continued over several lines is one."""
    return [line for line in text.replace("\\\n", " ").splitlines() if line.strip() and not line.startswith("#")]


def runnable() -> list[Path]:
    """Return the pages with blocks that tests run."""
    code = ("sh", "python")
    return [page for page in [*PAGES, *ROOMS] if any(b.language in code and b.reason is None for b in blocks(page))]
