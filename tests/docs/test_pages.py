"""The commands of a page run in their order."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.pages import LONG, MARK, name, runnable
from helpers.running import Scratch

# Files that a page presupposes, because another page makes them.
GIVEN = {
    "docs/bundle.md": ("mine.mdmf",),
    "docs/calibration.md": ("new.mdmf", "run"),
    "docs/evaluation.md": ("mine.mdmf",),
    "docs/guide.md": ("a.mdmf", "b.mdmf"),
    "docs/triton.md": ("mine.mdmf",),
}


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ("```sh\nmdmf detect photos/ --no-such-option\n```", "no-such-option"),
        ("```sh\nmdmf inspect dinov2s\nmdmf detect nowhere.jpg\n```", "nowhere.jpg"),
        ("```sh\nfind photos -name '*.gif' | mdmf detect -\n```", "holds no path"),
        ("```sh\nmdmf detect \\\n  photos/ --bundle new.mdmf\n```", "new.mdmf"),
        ("```sh\nls photos/\n```", "mark its block"),
        ("```python\nassert Path\n```", "Path"),
    ],
)
def test_a_broken_block_fails(
    block: str, message: str, scratch: Scratch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("helpers.pages.ROOT", tmp_path)
    page = tmp_path / "page.md"
    page.write_text(f"<!-- {MARK}: needs a GPU -->\n```sh\nmdmf nonsense\n```\n\n{block}\n")
    with pytest.raises((AssertionError, NameError), match=message):
        scratch.run(page)


@pytest.mark.parametrize("page", [page for page in runnable() if name(page) not in LONG], ids=name)
def test_page_runs(page: Path, scratch: Scratch) -> None:
    scratch.give(*GIVEN.get(name(page), ()))
    scratch.run(page)
