"""`mdmf detect -o report.html`: the page holds the rows that a run writes, and its options fit the others."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from helpers.mdmf import mdmf
from helpers.rows import timeless_lines

from mdmf_deploy.cli.row_output import row_output
from mdmf_deploy.detection.rows import COLUMNS
from mdmf_deploy.errors import UsageError


def page_rows(page: Path) -> list[dict[str, Any]]:
    """Return the rows that a page holds, without their timings."""
    found = re.search(r'id="data">(.*?)</script>', page.read_text(encoding="utf-8"), re.DOTALL)
    assert found is not None
    data = json.loads(found[1])
    rows = [{**data["common"], **dict(zip(data["names"], row, strict=True))} for row in data["rows"]]
    lines = "\n".join(json.dumps({name: row.get(name) for name in COLUMNS}) for row in rows)
    return timeless_lines(lines)


@pytest.fixture
def mixed(photos: Path, tmp_path: Path) -> Path:
    """Three photographs, one of them with a hostile name, and a file that is cut."""
    folder = tmp_path / "mixed"
    folder.mkdir()
    for name in ("photo00.jpg", "photo01.png"):
        shutil.copy(photos / name, folder)
    shutil.copy(photos / "photo02.jpg", folder / "<img src=x onerror=alert(1)>.jpg")
    (folder / "cut.jpg").write_bytes((photos / "photo00.jpg").read_bytes()[:500])
    return folder


def test_the_page_holds_the_rows_and_nothing_goes_to_stdout(calibrated: Path, mixed: Path, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    result = mdmf("detect", mixed, "--bundle", calibrated, "-o", page)
    assert (result.exit_code, result.stdout) == (3, "")
    rows = timeless_lines(mdmf("detect", mixed, "--bundle", calibrated, "--json").stdout)
    assert page_rows(page) == rows
    assert len(rows) == 4
    text = page.read_text(encoding="utf-8")
    assert "<img src=x" not in text
    assert f"wrote 4 rows to {page}" in result.stderr
    assert re.findall(r'id="p(\d)"', text) == [str(n) for n, row in enumerate(rows) if row["status"] == "ok"]


def test_a_report_goes_with_rows(calibrated: Path, mixed: Path, tmp_path: Path) -> None:
    page, rows = tmp_path / "report.HTML", tmp_path / "rows.jsonl"
    result = mdmf("detect", mixed, "--bundle", calibrated, "-o", rows, "--report", page)
    assert f"wrote a report to {page}" in result.stderr
    assert page_rows(page) == timeless_lines(rows.read_text(encoding="utf-8"))
    result = mdmf("detect", mixed, "--bundle", calibrated, "--json", "--report", page)
    assert page_rows(page) == timeless_lines(result.stdout)


@pytest.mark.parametrize("alone", [True, False])
def test_rows_judged_together_have_those_verdicts_on_the_page(
    alone: bool, tiny_bundle: Path, photos: Path, tmp_path: Path
) -> None:
    page, rows, bundle = tmp_path / "report.html", tmp_path / "rows.jsonl", tmp_path / "b.mdmf"
    # Six photographs give thresholds at 50%, and all twelve together more alarms than chance explains at 1%.
    some = sorted(photos.iterdir())[:6]
    assert mdmf("calibrate", tiny_bundle, *some, "--fpr", 0.5, "-o", bundle).exit_code == 0
    command = ("detect", photos, "--bundle", bundle, "--fdr", 0.01)
    assert mdmf(*command, "-o", rows).exit_code == 0
    written = timeless_lines(rows.read_text(encoding="utf-8"))
    assert "expected_by_chance" in {row["reason"] for row in written}
    assert mdmf(*command, *(("-o", page) if alone else ("-o", rows, "--report", page))).exit_code == 0
    assert page_rows(page) == written


def test_each_frame_is_a_row(calibrated: Path, photos: Path, tmp_path: Path) -> None:
    from helpers.clips import write_clip

    clip = write_clip(tmp_path / "clip.mp4", frames=12)
    page = tmp_path / "frames.html"
    mdmf("detect", clip, photos / "photo00.jpg", "--frames", 3, "--each-frame", "--bundle", calibrated, "-o", page)
    rows = page_rows(page)
    assert [row["frame_time"] is not None for row in rows] == [True, True, True, False]
    assert len(re.findall(r'id="p\d"', page.read_text(encoding="utf-8"))) == 4
    mdmf("detect", clip, "--bundle", calibrated, "-o", page)
    [row] = page_rows(page)
    assert row["frames"] == 10
    assert len(re.findall(r'id="p\d"', page.read_text(encoding="utf-8"))) == 1


REFUSED = {
    ("-o", "r.html", "--resume"): "-o r.html: --resume cannot add to a report; leave out --resume, or make no report",
    ("-o", "r.jsonl", "--report", "r.html", "--resume"): "--report r.html: --resume cannot add to a report",
    ("-o", "r.html", "--json"): "give --report r.html --json for both",
    ("-o", "r.html", "--report", "s.html"): "are both reports; give -o the name of a file for rows",
    ("--report", "r.jsonl"): "--report r.jsonl: a report ends in .html; give such a name",
    ("--report", "https://host/r.html"): "is a URL; give a path",
    ("-o", "r.html", "--engine", "ray"): "--engine ray writes a folder of Parquet parts",
    ("-o", "rows/", "--report", "r.html", "--engine", "ray"): "--report is for runs on this machine",
}


@pytest.mark.parametrize("options", REFUSED, ids=" ".join)
def test_options_that_do_not_fit_are_refused_in_one_line(
    options: tuple[str, ...], photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = mdmf("detect", photos, *options)
    assert result.exit_code == 2
    assert REFUSED[options] in result.stderr
    assert result.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_folder_is_no_report(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "r.html").mkdir()
    for option in ("-o", "--report"):
        result = mdmf("detect", photos, option, tmp_path / "r.html")
        assert result.exit_code == 2
        assert "is a folder" in result.stderr


@pytest.mark.parametrize("option", ["-o", "--report"])
def test_a_place_that_takes_no_file_is_found_before_a_model_is_read(option: str, photos: Path, tmp_path: Path) -> None:
    page = tmp_path / "missing" / "r.html"
    result = mdmf("detect", photos, "--bundle", tmp_path / "no.mdmf", option, page)
    assert result.exit_code == 2
    assert (
        result.stderr
        == f"mdmf: {option} {page.resolve()}: No such file or directory; choose a place you can write to\n"
    )


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_is_refused(photos: Path, tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    result = mdmf("detect", photos, "-o", tmp_path / "r.html")
    tmp_path.chmod(0o700)
    assert result.exit_code == 2
    assert "Permission denied; choose a place you can write to" in result.stderr


def test_a_picture_that_cannot_be_drawn_costs_no_row(
    calibrated: Path, mixed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mdmf_deploy.errors import ImageError
    from mdmf_deploy.tasks.report import pictures

    draw_row = pictures.draw_row

    def failing(row: Any, source: Path, options: Any) -> Any:
        if source.suffix == ".png":
            raise ImageError("unreadable", "it changed")
        return draw_row(row, source, options)

    monkeypatch.setattr(pictures, "draw_row", failing)
    page = tmp_path / "r.html"
    result = mdmf("detect", mixed, "--bundle", calibrated, "-o", page)
    assert f"warning: no picture of {mixed / 'photo01.png'} in the report: it changed" in result.stderr
    assert len(page_rows(page)) == 4
    assert len(re.findall(r'id="p\d"', page.read_text(encoding="utf-8"))) == 2


def test_commands_without_a_report_refuse_its_ending(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no format ends in '\.html'"), row_output(tmp_path / "r.html", False, ""):
        pass


def test_help_names_the_report() -> None:
    text = mdmf("detect", "--help").stdout
    assert ".html" in text
    assert "--report" in text
