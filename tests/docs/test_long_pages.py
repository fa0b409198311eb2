"""The commands of the pages that train and export run in their order. They have a file, so that they get a process."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.pages import LONG, name, runnable
from helpers.running import Scratch


@pytest.mark.parametrize("page", [page for page in runnable() if name(page) in LONG], ids=name)
def test_page_runs(page: Path, scratch: Scratch) -> None:
    scratch.run(page)
