"""The page as a file: complete or partial, safe whatever files are called, and without a reference to anything."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mdmf_deploy.detection.detector import Detector
from mdmf_deploy.detection.outputs import replacing
from mdmf_deploy.detection.rows import COLUMNS, Row
from mdmf_deploy.errors import UsageError
from mdmf_deploy.tasks.report.page import PageTable, in_script
from mdmf_deploy.tasks.report.report import PagePicture, Report, ReportOptions, Section

HOSTILE = "</script><script>alert(1)</script>\"'&<img src=x onerror=alert(1)> \u202egpj.exe\u2028"


class Page(HTMLParser):
    """The scripts, styles, references and text of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.styles: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._in = ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))
        self._in = tag
        if tag == "script":
            self.scripts.append((dict(attributes), ""))

    def handle_endtag(self, tag: str) -> None:
        self._in = ""

    def handle_data(self, data: str) -> None:
        if self._in == "script":
            self.scripts[-1] = (self.scripts[-1][0], self.scripts[-1][1] + data)
        elif self._in == "style":
            self.styles.append(data)
        else:
            self.text += data

    @property
    def data(self) -> Any:
        return json.loads(next(text for attributes, text in self.scripts if attributes.get("id") == "data"))


def value(data: Any, n: int, name: str) -> Any:
    """Return a column of a row as the page's script reads it."""
    return data["rows"][n][data["names"].index(name)] if name in data["names"] else data["common"].get(name)


def png() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4)).save(buffer, "PNG")
    return buffer.getvalue()


def test_the_page_holds_every_column_of_every_row(write: Any, scored: Any, tmp_path: Path) -> None:
    error = Row(uri="cut.jpg", status="error", error_code="truncated", error="it ends early")
    page = Page(write(tmp_path / "r.html", [*scored, (error, None)]))
    rows = [*(row for row, _ in scored), error]
    assert len(page.data["rows"]) == len(rows)
    for n, row in enumerate(rows):
        assert {name: value(page.data, n, name) for name in COLUMNS} == row.to_dict()
    assert page.data["pictures"] == [1] * len(scored) + [0]
    drawn = [attributes["id"] for attributes, _ in page.scripts if (attributes.get("id") or "").startswith("p")]
    assert drawn == [f"p{n}" for n in range(len(scored))]


def test_the_summary_counts_verdicts_and_reasons(write: Any, scored: Any, tmp_path: Path) -> None:
    page = Page(write(tmp_path / "r.html", scored, title="Report on <these>"))
    verdicts = [row.verdict for row, _ in scored]
    assert {"generated", "real"} <= set(verdicts) or {"generated", "uncertain"} <= set(verdicts)
    words = " ".join(page.text.split())
    for verdict in set(verdicts):
        assert f"{verdicts.count(verdict)} {verdict}" in words
    assert "Report on <these>" in words
    assert "is not complete" not in words


def test_the_histogram_counts_every_calibration_score_once(
    write: Any, detector: Detector, scored: Any, tmp_path: Path
) -> None:
    groups = Page(write(tmp_path / "r.html", scored)).data["groups"]
    calibration = detector.bundle.calibration
    assert calibration is not None
    [group] = calibration.groups
    drawn = groups[group.name]
    assert sum(drawn["counts"]) == drawn["n"] == len(group.scores)
    assert (drawn["low"], drawn["high"]) == (group.scores[0], group.scores[-1])


def test_names_and_metadata_cannot_act(write: Any, scored: Any, tmp_path: Path) -> None:
    row, path = scored[0]
    hostile = msgspec.structs.replace(
        row, uri=HOSTILE, provenance="claims_ai", provenance_source=f"javascript:alert(1) {HOSTILE}", notes=HOSTILE
    )
    section = Section(
        title=HOSTILE,
        paragraphs=[HOSTILE],
        tables=[PageTable([HOSTILE], [[HOSTILE]], HOSTILE)],
        pictures=[PagePicture(png(), HOSTILE, HOSTILE)],
        warnings=[HOSTILE],
    )
    labels = {HOSTILE: lambda row: HOSTILE}
    given = {"labels": labels, "sections": [section], "title": HOSTILE}
    plain = Page(write(tmp_path / "plain.html", [scored[0]], sections=[msgspec.structs.replace(section, title="t")]))
    page = Page(write(tmp_path / "hostile.html", [(hostile, path)], **given))
    # The same elements, and the same attributes' names, whatever the texts are.
    assert [(tag, list(held)) for tag, held in page.tags] == [(tag, list(held)) for tag, held in plain.tags]
    assert page.text.count("<img src=x onerror=alert(1)>") >= 6
    assert value(page.data, 0, "uri") == HOSTILE
    raw = (tmp_path / "hostile.html").read_text(encoding="utf-8")
    assert "\u202e" not in raw.split('id="data"')[1]
    assert "\u2028" not in raw.split('id="data"')[1]


@given(st.text(st.characters(codec="utf-8") | st.sampled_from("</script>&\u2028\u2029"), max_size=30))
def test_json_in_a_script_reads_back_and_cannot_end_it(value: str) -> None:
    text = str(in_script(msgspec.json.encode([value])))
    assert json.loads(text) == [value]
    assert not set(text) & set("<>&\u2028\u2029")


def test_the_policy_allows_this_script_and_style_alone(write: Any, scored: Any, tmp_path: Path) -> None:
    page = Page(write(tmp_path / "r.html", scored))
    [policy] = [held["content"] for tag, held in page.tags if tag == "meta" and "http-equiv" in held]
    assert policy is not None
    assert policy.startswith("default-src 'none'; img-src data:; ")

    def of(text: str) -> str:
        return "'sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() + "'"

    assert re.search(r"style-src ([^;]+);", policy)[1] == of("".join(page.styles))  # type: ignore[index]
    [script] = [text for attributes, text in page.scripts if not attributes]
    assert re.search(r"script-src ([^;]+);", policy)[1] == of(script)  # type: ignore[index]
    assert "unsafe" not in policy


def test_the_page_refers_to_nothing_outside(write: Any, scored: Any, tmp_path: Path) -> None:
    page = Page(
        write(tmp_path / "r.html", scored, sections=[Section(title="t", pictures=[PagePicture(png(), "a picture")])])
    )
    references = [held[name] for _, held in page.tags for name in ("src", "href", "srcset", "action") if name in held]
    assert all(one is not None and one.startswith(("data:image/", "#")) for one in references)
    assert not any(name.startswith("on") for _, held in page.tags for name in held)
    assert not any("style" in held for _, held in page.tags)


def test_labels_become_columns(write: Any, scored: Any, tmp_path: Path) -> None:
    labels = {"condition": lambda row: "jpeg:75", "generator": lambda row: row.uri[-6:]}
    data = Page(write(tmp_path / "r.html", scored, labels=labels)).data
    assert data["labels"] == ["condition", "generator"]
    assert data["labelled"] == [["jpeg:75", row.uri[-6:]] for row, _ in scored]


def test_sections_stand_before_the_rows(write: Any, scored: Any, tmp_path: Path) -> None:
    section = Section(
        title="Figures",
        paragraphs=["Worst first."],
        tables=[PageTable(["generator", "AUROC"], [["sd", "0.91"], ["mj", "0.95"]], "By generator")],
        pictures=[PagePicture(png(), "ROC curves", "One line a generator.")],
        warnings=["Metadata alone separates the classes."],
    )
    text = " ".join(Page(write(tmp_path / "r.html", scored, sections=[section])).text.split())
    told = ("Figures", "Metadata alone", "Worst first.", "By generator", "generator", "sd", "0.91", "One line", "Rows")
    places = [text.index(words) for words in told]
    assert places == sorted(places)


def test_no_rows_give_a_page(write: Any, tmp_path: Path) -> None:
    page = Page(write(tmp_path / "r.html", []))
    assert page.data["rows"] == []
    assert "0 all rows" in " ".join(page.text.split())


def test_an_interrupt_keeps_the_finished_rows_and_the_older_file(
    detector: Detector, scored: Any, tmp_path: Path
) -> None:
    path = tmp_path / "r.html"
    path.write_text("older")
    options = ReportOptions(title="t", rows=12, threads=1)
    with pytest.raises(KeyboardInterrupt) as caught:  # noqa: PT012, SIM117
        with replacing(path) as scratch, Report(scratch, path, detector, options) as report:
            for row, source in scored[:5]:
                report.add(row, source)
            raise KeyboardInterrupt
    assert path.read_text() == "older"
    partial = Page(tmp_path / "r.partial.html")
    assert len(partial.data["rows"]) == 5
    assert "This report is not complete." in partial.text
    assert f"the 5 rows finished before are in {tmp_path / 'r.partial.html'}" in caught.value.__notes__


def test_an_interrupt_before_the_first_row_leaves_nothing(detector: Detector, tmp_path: Path) -> None:
    path = tmp_path / "r.html"
    with pytest.raises(KeyboardInterrupt):  # noqa: SIM117
        with replacing(path) as scratch, Report(scratch, path, detector, ReportOptions(title="t", rows=12)):
            raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())


def test_a_place_that_takes_no_file_is_found_at_once(write: Any, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="choose a place you can write to"):
        write(tmp_path / "missing" / "r.html", [])
