"""The page in headless Chromium: it sorts, filters and opens rows, by mouse and keyboard, and asks for nothing."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from helpers.browser import Watched, chromium, in_parts
from helpers.libraries import needed

from mdmf_deploy.detection.rows import Row
from mdmf_deploy.tasks.report.page import PageTable
from mdmf_deploy.tasks.report.report import Section

HOSTILE = (
    "<img src=x onerror=alert(1)>.jpg",
    "</script><script>alert(2)</script>.jpg",
    "\"'><svg onload=alert(3)>.jpg",
    "\u202egpj.exe",
    "${alert(4)}{{7*7}}.jpg",
)
REASONS = ("borderline", "featureless")

Open = Callable[..., Watched]


@pytest.fixture(scope="session")
def page() -> Iterator[Any]:
    with chromium() as browser:
        yield browser.new_page()


@pytest.fixture
def show(page: Any) -> Iterator[Open]:
    """Open a report. At the end of the test, it may not have complained or asked for anything."""
    opened: list[Watched] = []

    def shown(report: Path | str, **options: Any) -> Watched:
        opened.append(Watched(page, report if isinstance(report, str) else report.as_uri(), **options))
        return opened[-1]

    yield shown
    for one in opened:
        one.close()


@pytest.fixture(scope="session")
def rows(scored: list[tuple[Row, Path]]) -> list[tuple[Row, Path | None]]:
    """Rows of four photographs, hostile ones, an error, an uncalibrated and an uncertain row, and a video's."""
    row, path = scored[0]
    replace = msgspec.structs.replace
    generated = [one for one in scored if one[0].verdict == "generated"]
    others = [one for one in scored if one[0].verdict != "generated"]
    made: list[tuple[Row, Path | None]] = [others[0], generated[0], generated[1], others[1]]
    made += [
        (replace(row, uri=name, provenance="claims_ai", provenance_source=f"javascript:alert(5) {name}"), path)
        for name in HOSTILE
    ]
    made.append((Row(uri="cut.jpg", status="error", error_code="truncated", error="jpeg: it ends early"), None))
    bare = {"p_value": None, "threshold": None}
    made.append((replace(row, uri="u.jpg", verdict="uncalibrated", reason="not_verified", **bare), path))
    made += [(replace(row, uri=f"{why}.jpg", verdict="uncertain", reason=why), path) for why in REASONS]
    made.append(
        (replace(row, uri="v.mp4", frames=10, highest_time=1.24, highest_score=0.5, notes="frames_missing"), None)
    )
    return made


@pytest.fixture(scope="session")
def report(write: Any, rows: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    section = Section(
        title="Figures", paragraphs=["Worst first."], tables=[PageTable(["generator", "AUROC"], [["sd", "0.9"]])]
    )
    labels = {"generator": lambda row: "sd" if row.verdict == "generated" else "real"}
    path: Path = write(tmp_path_factory.mktemp("browser") / "r.html", rows, labels=labels, sections=[section])
    return path


@pytest.fixture(scope="session")
def many(write: Any, scored: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report of 5,000 rows, of which the first have pictures."""
    rows = [
        (msgspec.structs.replace(scored[n % 12][0], uri=f"folder/{n:05}.jpg"), scored[n % 12][1] if n < 24 else None)
        for n in range(5000)
    ]
    path: Path = write(tmp_path_factory.mktemp("many") / "many.html", rows, expected=5000)
    return path


def names(page: Any) -> list[str]:
    return [str(text) for text in page.locator("#table button.open").all_inner_texts()]


def test_every_row_is_shown_in_the_order_of_the_inputs(show: Open, report: Path, rows: Any) -> None:
    page = show(report).page
    assert names(page) == [row.uri for row, _ in rows]
    assert page.locator("#count").inner_text().startswith(f"{len(rows)} of {len(rows)} rows")


def test_every_column_sorts_both_ways_and_says_so(show: Open, report: Path, rows: Any) -> None:
    page = show(report).page
    headers = page.locator("#table thead th")
    for at in range(headers.count()):
        if at:  # the first column is sorted from the beginning
            headers.nth(at).locator("button").click()
        first = headers.nth(at).get_attribute("aria-sort")
        assert first in ("ascending", "descending")
        headers.nth(at).locator("button").click()
        assert {first, headers.nth(at).get_attribute("aria-sort")} == {"ascending", "descending"}
        assert page.locator("#table th[aria-sort=none]").count() == headers.count() - 1
        assert sorted(names(page)) == sorted(row.uri for row, _ in rows)
    page.get_by_role("button", name="Score", exact=True).click()
    scores = {row.uri: row.score for row, _ in rows}
    order = [scores[name] for name in names(page)]
    given = [score for score in order if score is not None]
    assert given == sorted(given, reverse=True)
    assert None not in order[: len(given)]  # missing values come last


def test_filters_and_the_search_narrow_the_rows(show: Open, report: Path, rows: Any) -> None:
    page = show(report).page
    page.locator("button[data-verdict=generated]").click()
    generated = [row.uri for row, _ in rows if row.verdict == "generated"]
    assert names(page) == generated != []
    assert page.locator("#count").inner_text().startswith(f"{len(generated)} of {len(rows)} rows")
    assert page.locator("button[data-verdict=generated]").get_attribute("aria-pressed") == "true"
    page.get_by_role("button", name="Show all").click()
    page.get_by_label("Reason").select_option("featureless")
    assert names(page) == ["featureless.jpg"]
    page.get_by_role("button", name="Show all").click()
    page.get_by_label("generator", exact=True).select_option("sd")
    assert names(page) == generated
    page.get_by_role("button", name="Show all").click()
    page.get_by_label("Search").fill("CUT.")
    assert names(page) == ["cut.jpg"]
    page.get_by_label("Search").fill("no such name")
    assert names(page) == []
    assert page.locator("#count").inner_text() == f"0 of {len(rows)} rows"


def test_thumbnails_are_drawn_when_they_come_into_view(show: Open, many: Path) -> None:
    page = show(many).page
    images = page.locator("#table img")
    assert images.count() == 24
    assert images.last.get_attribute("src") is None
    images.last.scroll_into_view_if_needed()
    page.locator("#table img[src]").nth(10).wait_for()
    page.locator("#table tr:nth-child(24) img[src^='data:image/webp;base64,']").wait_for()
    assert images.last.evaluate("(image) => image.decode().then(() => image.naturalWidth)") > 0


@pytest.mark.parametrize("cut", ["before", "within", "behind"])
def test_a_page_that_arrives_in_two_parts_shows_all_its_pictures(show: Open, report: Path, cut: str) -> None:
    content = report.read_bytes()
    start = content.index(b'<script type="application/json" id="p0">')
    end = content.index(b"</script>", start)
    first = content[: {"before": start, "within": (start + end) // 2, "behind": end + len(b"</script>")}[cut]]
    with in_parts(first, content[len(first) :]) as (url, go_on):
        page = show(url, wait_until="commit").page
        page.locator("button.open").first.click()  # the table works before the pictures are there
        if cut != "behind":
            assert "still being read" in page.locator("#stages").inner_text()
        go_on()
        page.locator(".stage img.base").wait_for()
        page.keyboard.press("Escape")
        page.locator("#table tr:nth-child(1) img[src]").wait_for()


def test_a_page_that_was_cut_shows_what_is_left(show: Open, report: Path, tmp_path: Path) -> None:
    content = report.read_bytes()
    starts = [content.index(b'<script type="application/json" id="p%d">' % n) for n in (1, 2)]
    cut = tmp_path / "cut.html"
    cut.write_bytes(content[: sum(starts) // 2])
    page = show(cut).page
    page.locator("#table tr:nth-child(1) img[src]").wait_for()
    page.locator("button.open").nth(1).click()
    assert "The picture is missing: this file was cut." in page.locator("#stages").inner_text()
    assert page.locator("#evidence").inner_text() != ""


def test_the_slider_blends_the_map_into_the_picture(show: Open, report: Path) -> None:
    page = show(report, reduced_motion="reduce").page
    page.locator("button.open").first.click()
    heat = page.locator(".stage img.heat").first
    assert heat.evaluate("(image) => image.decode().then(() => image.naturalWidth)") > 0
    for percent in (0, 100, 30):
        page.get_by_label("Heat map").fill(str(percent))
        assert float(heat.evaluate("(image) => getComputedStyle(image).opacity")) == pytest.approx(percent / 100)
        assert page.locator("#blend-value").inner_text() == f"{percent}%"
    assert page.locator(".stage i").count() == 1  # the frame around the one crop
    inside = "(image) => [image, image.parentElement].map((one) => one.getBoundingClientRect().width)"
    map_width, picture_width = heat.evaluate(inside)
    assert map_width == pytest.approx(picture_width * 56 / 96, rel=0.1)  # a crop of 56 pixels of 96


def test_a_row_is_read_by_keyboard_alone(show: Open, report: Path, rows: Any) -> None:
    page = show(report).page
    title = page.locator("#row-name")
    page.locator("button.open").nth(1).focus()
    page.keyboard.press("Enter")
    assert title.inner_text() == rows[1][0].uri
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert title.inner_text() == rows[3][0].uri
    for _ in range(4):
        page.keyboard.press("ArrowLeft")
    assert title.inner_text() == rows[0][0].uri
    assert page.locator("#previous").is_disabled()
    page.keyboard.press("ArrowRight")
    assert title.inner_text() == rows[1][0].uri
    page.get_by_label("Heat map").focus()
    page.keyboard.press("ArrowRight")  # moves the slider alone
    assert (title.inner_text(), page.locator("#blend").input_value()) == (rows[1][0].uri, "51")
    page.keyboard.press("Escape")
    assert not page.locator("dialog").is_visible()
    assert page.evaluate("document.activeElement.innerText") == rows[1][0].uri


def test_the_mouse_goes_through_rows_in_the_order_shown(show: Open, report: Path) -> None:
    page = show(report).page
    page.get_by_role("button", name="Score", exact=True).click()
    order = names(page)
    page.locator("#table tbody tr").nth(0).locator("td").nth(2).click()
    for name in order[:3]:
        assert page.locator("#row-name").inner_text() == name
        page.locator("#next").click()
    page.locator("#close").click()
    assert not page.locator("dialog").is_visible()


def test_the_evidence_of_a_row_is_in_words_and_on_the_histogram(show: Open, report: Path, rows: Any) -> None:
    page = show(report).page
    at = next(n for n, (row, _) in enumerate(rows) if row.verdict == "generated")
    page.locator("button.open").nth(at).click()
    evidence = page.locator("#evidence").inner_text()
    assert "At most 1 in 21 photographs scores this high." in evidence or "photographs score this high." in evidence
    assert "evidence, not proof" in evidence
    plot = page.locator(".plot")
    assert re.search(r"Histogram of 20 calibration scores .* threshold", plot.get_attribute("aria-label"))
    score, threshold = (plot.locator(f"line.{name}").get_attribute("x1") for name in ("here", "limit"))
    assert float(score) > float(threshold)
    page.get_by_text("All facts of this row").click()
    facts = page.locator("#facts").inner_text()
    for value in (rows[at][0].sha256, rows[at][0].bundle_id, rows[at][0].calibration_id, "onnxruntime"):
        assert value in facts


def test_rows_without_a_verdict_say_why(show: Open, report: Path) -> None:
    page = show(report).page
    told = {
        "cut.jpg": ("could not be scored", "jpeg: it ends early", "There is no picture"),
        "u.jpg": ("not verified", "no verdict"),
        "featureless.jpg": ("texture", "says nothing here"),
        "borderline.jpg": ("not high enough",),
        "v.mp4": ("frames could not be read",),
    }
    for name, words in told.items():
        page.get_by_role("button", name=name, exact=True).click()
        text = page.locator("dialog").inner_text()
        assert all(one in text for one in words), (name, text)
        page.keyboard.press("Escape")


def test_hostile_names_are_shown_and_do_nothing(show: Open, report: Path) -> None:
    page = show(report).page
    page.get_by_label("Metadata", exact=True).select_option("claims_ai")
    assert names(page) == list(HOSTILE)
    for at, name in enumerate(HOSTILE):
        page.locator("button.open").nth(at).click()
        assert page.locator("#row-name").inner_text() == name
        assert f"javascript:alert(5) {name}" in page.locator("#evidence").inner_text()
        page.get_by_text("All facts of this row").click()
        page.keyboard.press("Escape")
    assert page.locator("img[src=x], svg[onload], a[href^=javascript]").count() == 0
    assert page.locator("#table bdi").count() > 0  # a name cannot turn the text around it


def test_axe_finds_no_serious_violation(show: Open, report: Path) -> None:
    axe = needed("axe_playwright_python.sync_playwright").Axe()
    page = show(report, reduced_motion="reduce").page
    page.get_by_text("What scored these images").click()
    for opened in (False, True):
        if opened:
            page.locator("button.open").first.click()
            page.get_by_text("All facts of this row").click()
        # A scheme changes nothing but colours.
        for scheme, rules in (("light", {}), ("dark", {"options": {"runOnly": ["color-contrast"]}})):
            page.emulate_media(color_scheme=scheme)
            found = axe.run(page, **rules).response["violations"]
            serious = [one["id"] for one in found if one["impact"] in ("serious", "critical")]
            assert serious == [], (scheme, [node["html"] for one in found for node in one["nodes"]])


def test_a_phone_scrolls_down_alone(show: Open, report: Path) -> None:
    page = show(report, size=(375, 812)).page
    wide = "(() => [document.documentElement.scrollWidth, document.getElementById('row').scrollWidth])()"
    assert page.evaluate(wide)[0] <= 375
    page.get_by_label("Sort by").select_option("Score")
    page.locator("button.open").first.click()
    assert max(page.evaluate(wide)) <= 375
    assert page.locator(".stage img.base").first.bounding_box()["width"] <= 375


def test_five_thousand_rows_are_paged_sorted_and_searched(show: Open, many: Path) -> None:
    page = show(many).page
    assert page.evaluate("performance.getEntriesByName('interactive').length") == 1
    assert page.locator("#table tbody tr").count() == 100
    assert page.locator("#table").get_attribute("aria-rowcount") == "5001"
    page.get_by_role("button", name="Next page").click()
    assert names(page)[0] == "folder/00100.jpg"
    assert page.locator("#table tbody tr").first.get_attribute("aria-rowindex") == "102"
    page.get_by_label("Page", exact=True).select_option("50")
    assert names(page)[-1] == "folder/04999.jpg"
    page.get_by_role("button", name="Name", exact=True).click()
    page.get_by_role("button", name="Name", exact=True).click()
    assert names(page)[0] == "folder/04999.jpg"
    page.get_by_label("Search").fill("/0123")
    assert names(page) == [f"folder/0123{n}.jpg" for n in reversed(range(10))]


def test_a_page_prints_its_rows_without_its_controls(show: Open, many: Path) -> None:
    page = show(many).page
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.locator("#table tbody tr").count() == 1000
    page.emulate_media(media="print")
    assert not page.locator(".controls").is_visible()
    assert page.get_by_text("bundle_id", exact=True).first.is_visible()  # what is folded away is printed, too
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.locator("#table tbody tr").count() == 100
    assert page.locator("details[open]").count() == 0
