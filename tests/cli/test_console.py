"""Console: JSON that every terminal can take, long lists cut, and progress that changes nothing."""

from __future__ import annotations

import io
import json
import sys

import pytest

from mdmf_deploy.cli.console import behave, log_list, print_facts, print_json, progress


def test_json_is_valid_utf_8_whatever_the_encoding(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii"))
    print_json({"uri": "café.jpg", "score": float("nan"), "small": 1e-7})
    assert json.loads(written.getvalue().decode("utf-8")) == {"uri": "café.jpg", "score": None, "small": 1e-7}


def test_json_escapes_a_path_that_is_not_utf_8(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="utf-8"))
    print_json({"bundle": "caf\udce9.mdmf", "n": 1})
    assert json.loads(written.getvalue().decode("utf-8")) == {"bundle": "caf\udce9.mdmf", "n": 1}


def test_facts_are_aligned_and_a_missing_value_is_a_dash(capsys: pytest.CaptureFixture[str]) -> None:
    print_facts({"bundle": "a.mdmf", "bound": None, "skipped": 0})
    assert capsys.readouterr().out == "bundle   a.mdmf\nbound    -\nskipped  0\n"


def test_a_long_list_is_cut(capsys: pytest.CaptureFixture[str]) -> None:
    behave()
    log_list("warning", [f"{n}" for n in range(12)])
    lines = capsys.readouterr().err.splitlines()
    assert lines[:2] == ["mdmf: warning: 0", "mdmf: warning: 1"]
    assert lines[10:] == ["mdmf: warning: 2 more; --json lists them all"]


@pytest.mark.parametrize("shown", [True, False, None])
def test_progress_passes_every_item_on(shown: bool | None) -> None:
    with progress(range(5), "counting", 5, shown) as items:
        assert list(items) == [0, 1, 2, 3, 4]
