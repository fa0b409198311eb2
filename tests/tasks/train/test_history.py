"""The plot of a training run leaves nothing in the home."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from helpers.libraries import needed

from mdmf_deploy.files import cache_folder
from mdmf_deploy.tasks.train.history import write_csv, write_plot

HISTORY = [{"step": 1.0, "loss": 0.5, "power": 1.0}, {"step": 2.0, "loss": 0.4, "power": 2.0}]


def test_matplotlib_keeps_its_list_of_fonts_in_the_cache_folder(tmp_path: Path) -> None:
    before = dict(os.environ)
    write_plot(tmp_path / "plot.png", HISTORY, "a run")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
    # matplotlib settles on its folders once, when it is imported.
    assert Path(needed("matplotlib").get_cachedir()) == cache_folder("matplotlib")
    assert dict(os.environ) == before


def test_a_cache_that_cannot_be_written_costs_no_plot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("MDMF_CACHE", str(tmp_path / "file"))
    write_plot(tmp_path / "plot.png", HISTORY, "a run")
    assert (tmp_path / "plot.png").is_file()


def test_no_name_of_a_folder_is_a_formula(tmp_path: Path) -> None:
    write_csv(tmp_path / "history.csv", [{"step": 1.0, "auroc_a;=b": -0.5}, {"step": 2.0, "loss": 3.0}])
    assert (tmp_path / "history.csv").read_text().splitlines() == ["step,auroc_a;'=b,loss", "1.0,-0.5,", "2.0,,3.0"]
