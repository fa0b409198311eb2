"""Leaks, matched files, samples and the robustness sweep, as options of `mdmf evaluate`."""

from __future__ import annotations

import inspect
import io
import json
import shutil
from functools import partial
from pathlib import Path

import pytest
from helpers.mdmf import mdmf
from helpers.synthetic_photos import synthetic_photo
from PIL import Image

from mdmf_deploy.tasks.evaluate import robustness
from mdmf_deploy.tasks.evaluate.robustness import AXES

SIDE = 240  # more than the least square of --match


@pytest.fixture(scope="module")
def leaking(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """12 real JPEGs and 6 + 6 generated PNGs."""
    root = tmp_path_factory.mktemp("leaking")
    for n in range(24):
        folder = root / ("real" if n < 12 else "generated/a" if n < 18 else "generated/b")
        folder.mkdir(parents=True, exist_ok=True)
        buffer = io.BytesIO()
        Image.fromarray(synthetic_photo(3000 + n, SIDE, SIDE)).save(buffer, "JPEG" if n < 12 else "PNG")
        (folder / f"{n}.img").write_bytes(buffer.getvalue())
    return root


def test_a_leak_is_warned_of_and_matched_files_are_judged_beside(
    leaking: Path, tiny_bundle: Path, tmp_path: Path
) -> None:
    rows = tmp_path / "rows.jsonl"
    result = mdmf("evaluate", leaking, "--bundle", tiny_bundle, "--match", "--json", "-o", rows)
    assert result.exit_code == 0, result.stderr
    assert "mdmf: warning: format, size and metadata alone tell 12 real images from 12 generated ones" in result.stderr
    assert f"mdmf: matched: the central {SIDE} x {SIDE} pixels of every image, as a JPEG" in result.stderr
    report = json.loads(result.stdout)
    assert report["leaks"]["verdict"] == "leak"
    assert [table["condition"] for table in report["tables"]] == ["as is", "matched"]
    lines = [json.loads(line) for line in rows.read_text().splitlines()]
    assert [line["format"] for line in lines] == ["jpeg"] * 12 + ["png"] * 12 + ["jpeg"] * 24
    assert all(before["sha256"] == after["sha256"] for before, after in zip(lines[:24], lines[24:], strict=True))
    quiet = mdmf("evaluate", leaking, "--bundle", tiny_bundle, "--no-leaks", "--json")
    assert "metadata alone" not in quiet.stderr
    assert json.loads(quiet.stdout)["leaks"] is None


def test_a_sample_is_taken_of_every_generator(leaking: Path, tiny_bundle: Path) -> None:
    result = mdmf("evaluate", leaking, "--bundle", tiny_bundle, "--sample", 2, "--json")
    assert result.exit_code == 0, result.stderr
    assert "--sample 2: 8 of 24 images, chosen by their hashes" in result.stderr
    [table] = json.loads(result.stdout)["tables"]
    assert (table["real_images"], [figures["images"] for figures in table["generators"].values()]) == (4, [2, 2])


def test_a_sweep_is_printed_drawn_kept_and_gone_on_with(
    leaking: Path, tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert inspect.signature(robustness.sweep).parameters["axes"].default is AXES
    # Two axes of the six, whose 12 conditions share the unchanged images.
    few = partial(robustness.sweep, axes=AXES[:2], resamples=20)
    monkeypatch.setattr(robustness, "sweep", few)
    sweep = tmp_path / "sweep"
    command = ("evaluate", leaking, "--bundle", tiny_bundle, "--no-leaks", "--sample", 1, "--robustness", sweep)
    first = mdmf(*command)
    assert first.exit_code == 0, first.stderr
    assert "JPEG quality (an axis of the paper)" in first.stdout
    assert "lowest AUROC: " in first.stdout
    assert (sweep / "robustness.svg").read_bytes().startswith(b"<?xml")
    before = (sweep / "blur-5.jsonl").read_bytes()
    again = mdmf(*command, "--json")
    assert again.exit_code == 0, again.stderr
    assert "48 of 48 rows are in" in again.stderr
    assert (sweep / "blur-5.jsonl").read_bytes() == before
    assert len(json.loads(again.stdout)["robustness"]["tables"]) == 12
    wrong = mdmf(*command[:-1], leaking)
    assert wrong.exit_code == 2
    assert wrong.stderr.splitlines()[-1].startswith(f"mdmf: --robustness {leaking} holds no rows of a sweep")


def test_a_report_shows_figures_leaks_and_every_image(leaking: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    dataset = tmp_path / "set"
    shutil.copytree(leaking, dataset)
    (dataset / "generated/b").rename(dataset / "generated/<b onmouseover=alert(1)>")
    page, rows = tmp_path / "report.html", tmp_path / "rows.jsonl"
    result = mdmf("evaluate", dataset, "--bundle", tiny_bundle, "--match", "-o", rows, "--report", page)
    assert result.exit_code == 0, result.stderr
    assert result.stderr.splitlines()[-1] == f"mdmf: wrote the report to {page}"
    text = page.read_text()
    for heading in ("Leaks", "Figures, as is", "Figures, matched"):
        assert f">{heading}</h2>" in text
    assert "metadata alone tell 12 real images from 12 generated ones" in text
    assert "<b onmouseover" not in text
    assert "&lt;b onmouseover=alert(1)&gt;" in text
    assert len(rows.read_text().splitlines()) == 48
    # A row for each image of the first condition.
    assert "24 rows" in text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["-o", "a.html", "--report", "b.html"], "-o a.html and --report b.html are both reports"),
        (["--report", "a.txt"], "--report a.txt: a report ends in .html"),
        (["--report", "nowhere/deep/a.html"], "nowhere/deep/a.html"),
    ],
)
def test_a_wrong_place_for_the_report_fails_before_anything_is_scored(
    options: list[str], message: str, leaking: Path, tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = mdmf("evaluate", leaking, "--bundle", tiny_bundle, *options)
    assert (result.exit_code, result.stdout) == (2, "")
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
