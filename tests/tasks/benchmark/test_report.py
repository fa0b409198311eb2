"""One benchmark as text, JSON, CSV and HTML: all of them hold its figures."""

from __future__ import annotations

import csv
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import msgspec
import pytest

import mdmf_deploy
from mdmf_deploy.hardware.host import Machine
from mdmf_deploy.tasks.benchmark.headline import headline
from mdmf_deploy.tasks.benchmark.noise import Noise
from mdmf_deploy.tasks.benchmark.report import COLOURS, Figure, figures, lines, to_bytes
from mdmf_deploy.tasks.benchmark.results import (
    Benchmark,
    ColdStart,
    Configuration,
    Drift,
    Environment,
    ImageSet,
    Latency,
    Offline,
    RateTrial,
    Ratio,
    Result,
    Server,
    Settings,
    SingleStream,
    current_environment,
)
from mdmf_deploy.tasks.benchmark.stages import END_TO_END, NAMES, Cost, table
from mdmf_deploy.tasks.benchmark.statistics import Interval, spread
from mdmf_deploy.tasks.benchmark.tables import number, percent, sections

ODD = 'a<b> & "c"'


def result(name: str, ms: float, **changes: object) -> Result:
    costs = {stage: Cost(ms / (n + 1), ms / (n + 1)) for n, stage in enumerate((*NAMES, END_TO_END))}
    runtime, _, precision = name.partition(" ")
    values: dict[str, object] = {
        "configuration": Configuration(
            name=name, bundle=ODD, bundle_id="abcdef" * 11, runtime=runtime, precision=precision
        ),
        "stages": (table("0.5 MP", 24, 8, [costs] * 3, lanes=2),),
        "single_stream": SingleStream(
            latency=Latency.of([ms / 1e3 * (1 + n // 3 / 100) for n in range(300)]),
            medians=spread([ms, ms]),
            settled=True,
        ),
        "offline": Offline(
            images_per_second=spread([1e3 / ms]), images_per_run=7, settled=False, joules=0.75, energy="RAPL"
        ),
        "server": Server(
            rate=12.5,
            bound=100.0,
            latency=Latency.of([0.0421, 0.0765]),
            requests=2,
            unserved=0,
            batch=1.5,
            trials=(RateTrial(rate=12.5, requests=2, p99=76.5, held=True),),
            note="found in 7 trials",
        ),
        "start": ColdStart(
            process=spread([612.0]), importing=301.0, opening=202.0, first_row=33.3, peak_mib=345.6, peak_images=9
        ),
        "drift": None,
    }
    return Result(**(values | changes))  # type: ignore[arg-type]


DRIFT = Drift(images=16, score_change=0.0456, rank_correlation=0.9987, flipped=3, spread=0.01, note="a note")


def make(*results: Result, warnings: tuple[str, ...] = ("load average 9",)) -> Benchmark:
    machine = Machine(
        python="CPython 3",
        system="Linux",
        cpu=ODD,
        cpu_features=("avx2",),
        cores=2,
        core_limit=None,
        memory=2**34,
        gpus=(),
    )
    environment = Environment(
        date="2026-01-02T03:04:05+00:00",
        version="0.1",
        commit=None,
        machine=machine,
        cores=2,
        governor=None,
        decoder="Pillow",
        libraries={"numpy": "2"},
    )
    name = results[-1].configuration.name
    return Benchmark(
        environment=environment,
        settings=Settings(),
        images=(
            ImageSet(
                name="0.5 MP",
                origin="generated",
                images=4,
                unreadable=1,
                given=9,
                megapixels=0.5,
                kilobytes=130,
                generated=True,
            ),
        ),
        results=results,
        ratios=(Ratio(configuration=name, against="a", figure="offline", times=Interval(2.5, 2.25, 2.75), rounds=5),),
        noise=Noise(load_before=0.5, others=0.25, steal=None, forced_off=1.0, warnings=warnings),
    )


@pytest.fixture
def both() -> Benchmark:
    return make(result("onnxruntime fp32", 20.0), result("onnxruntime int8", 8.0, drift=DRIFT))


def test_json_reads_back_as_it_was(both: Benchmark) -> None:
    assert msgspec.json.decode(to_bytes(both, ".json"), type=Benchmark) == both


def test_csv_has_a_line_for_every_figure(both: Benchmark) -> None:
    read = list(csv.DictReader(io.StringIO(to_bytes(both, ".csv").decode())))
    assert len(read) == len(list(figures(both)))
    assert list(read[0]) == list(Figure._fields)
    found = {(row["configuration"], row["section"], row["figure"]): row for row in read}
    assert len(found) == len(read)
    assert found["onnxruntime int8", "drift", "flipped verdicts"]["value"] == "3"
    assert found["onnxruntime int8", "ratio", "offline"]["low"] == "2.25"
    assert float(found["onnxruntime fp32", "offline", "throughput"]["value"]) == pytest.approx(50)
    assert float(found["onnxruntime fp32", "server", "max"]["value"]) == pytest.approx(76.5)
    assert found["onnxruntime fp32", "server", "p99"]["value"] == ""
    assert found["", "noise", "steal"]["value"] == ""
    assert found["", "noise", "warnings"]["value"] == "1.0"
    assert {row["section"] for row in read} >= {"stages", "single-stream", "cold start", "memory"}


def test_no_name_in_the_csv_is_a_formula(both: Benchmark, monkeypatch: pytest.MonkeyPatch) -> None:
    figure = Figure("=evil.mdmf", "offline", "-1 MP", "throughput", "1/s", -2.0)
    monkeypatch.setattr("mdmf_deploy.tasks.benchmark.report.figures", lambda _: [figure])
    assert to_bytes(both, ".csv").splitlines()[1] == b"'=evil.mdmf,offline,'-1 MP,throughput,1/s,-2.0,,"


def test_text_holds_the_figures_in_aligned_columns(both: Benchmark) -> None:
    text = list(lines(both))
    whole = "\n".join(text)
    prose = " ".join(whole.split())
    for figure in ("2.50 [2.25, 2.75]", "0.9987", "3 of 16", "0.0456", "612", "346", "12.5", "76.5", "0.750"):
        assert figure in whole
    start = text.index("single-stream, 0.5 MP images")
    assert len({len(line) for line in text[start + 1 : start + 4]}) == 1
    assert "on generated images" in prose
    assert "4 of 9, evenly spaced, 0.5 MP" in prose
    assert "runs of 24 images in batches of 8" in prose
    assert text[-1] == "noisy: load average 9"
    assert "the limit is decoding" in prose


@pytest.mark.parametrize(("count", "noted"), [(127, True), (128, False)])
def test_runs_too_short_for_stages_to_overlap_have_a_note(count: int, noted: bool) -> None:
    costs = dict.fromkeys((*NAMES, END_TO_END), Cost(1.0, 1.0))
    report = make(result("a fp32", 20.0, stages=(table("0.5 MP", count, 8, [costs] * 3, lanes=2),)))
    assert ("too few to hide the filling of the pipeline" in " ".join(" ".join(lines(report)).split())) == noted


def test_the_report_opens_with_its_headline(both: Benchmark) -> None:
    opening = " ".join("\n".join(lines(both)).partition("\n\n")[0].split())
    served = "a server keeps 12.5 requests/s within 100 ms; decoding is the limit."
    assert opening == (
        f"{ODD} on onnxruntime fp32: 50.0 images/s offline; one image takes 29.8 ms (median); {served} "
        f"{ODD} on onnxruntime int8: 125 images/s offline; one image takes 11.9 ms (median); {served} "
        "onnxruntime int8 is 2.50 [2.25, 2.75] times as fast as a (offline). "
        "The machine was not quiet, so these figures are noisy: see the end."
    )
    page = to_bytes(both, ".html").decode()
    assert page.index("50.0 images/s offline; one image takes 29.8 ms (median)") < page.index("<table")


def test_a_headline_says_what_was_measured_and_no_more() -> None:
    none = Server(rate=None, bound=5.0, trials=(), note="")
    few = SingleStream(latency=Latency.of([0.02] * 4), medians=spread([20.0]), settled=False)
    costs = dict.fromkeys((*NAMES, END_TO_END), Cost(1.0, 1.0)) | {"engine": Cost(20.0, 20.0)}
    slow = (table("0.5 MP", 24, 8, [costs] * 3, lanes=2),)
    report = make(result("a fp32", 20.0, single_stream=few, offline=None, server=none, stages=slow), warnings=())
    bare = make(result("a fp32", 20.0, single_stream=None, offline=None, server=None), warnings=())
    assert [*headline(report)][:-1] == [
        f"{ODD} on a fp32: a server keeps no rate within 5 ms; the engine is the limit."
    ]
    assert [*headline(bare)][:-1] == [f"{ODD} on a fp32: 2.86 ms an image, end to end; decoding is the limit."]


def test_no_percentile_is_drawn_from_too_few_samples() -> None:
    latencies = Latency.of([n / 1e3 for n in range(1, 41)])
    assert (latencies.p50, latencies.p90, latencies.p95, latencies.p99, latencies.max) == (20, 36, None, None, 40)
    assert (latencies.curve[0], latencies.curve[1], latencies.curve[100]) == (1, None, 40)
    single = SingleStream(latency=latencies, medians=spread([20.0]), settled=True)
    report = make(result("a fp32", 20.0, single_stream=single, server=None))
    text = list(lines(report))
    at = text.index("single-stream, 0.5 MP images")
    assert text[at + 2].split() == ["a", "fp32", "20.0", "36.0", "-", "-", "40.0", "40", "-"]
    assert "  -: too few to tell; p95 of 59, p99 of 299 or more" in text[at:]
    assert json.loads(to_bytes(report, ".json"))["results"][0]["single_stream"]["latency"]["p99"] is None
    assert b"a fp32,single-stream,0.5 MP,p99,ms,,," in to_bytes(report, ".csv")
    chart = Page(report).charts[1]
    assert (chart["p90"], chart["p95"], chart["p99"], chart["max"]) == (
        [("c0", "36.0")],
        [("c0", "-")],
        [("c0", "-")],
        [("c0", "40.0")],
    )


def test_the_text_fits_80_columns(both: Benchmark) -> None:
    assert [line for line in lines(both) if len(line) > 80] == []


class Page(HTMLParser):
    """A page's cells, and its bars.

    tags: every tag of the page.
    cells: the text of every table cell and heading.
    charts: for each chart, group label -> (colour, figure) of its bars.
    """

    def __init__(self, benchmark: Benchmark) -> None:
        super().__init__()
        self.source = to_bytes(benchmark, ".html").decode()
        self.tags: set[str] = set()
        self.cells: list[str] = []
        self.charts: list[dict[str, list[tuple[str, str]]]] = []
        self._cell, self._chart, self._colour = False, False, ""
        self.feed(self.source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        classes = (dict(attrs).get("class") or "").split()
        if tag in ("td", "th"):
            self._cell = True
            self.cells.append("")
            self._colour = next((name for name in classes if name != "track"), self._colour)
        if tag == "table":
            self._chart = "chart" in classes
            self.charts += [{}] if self._chart else []

    def handle_data(self, data: str) -> None:
        if not self._cell:
            return
        self.cells[-1] += data.strip()
        if self._chart and self.lasttag == "th":
            self.charts[-1][data.strip()] = []
        elif self._chart and self.lasttag == "td" and data.strip():
            list(self.charts[-1].values())[-1].append((self._colour, data.strip()))

    def handle_endtag(self, tag: str) -> None:
        self._cell = self._cell and tag != "table"


def test_the_page_works_offline_in_light_and_dark_and_escapes_text(both: Benchmark) -> None:
    page = Page(both)
    assert page.tags.isdisjoint({"script", "link", "img", "iframe", "a", "b"})  # b: of ODD
    assert not re.search(r"(?:src|href)\s*=|url\(|@import", page.source)
    assert "prefers-color-scheme: dark" in page.source
    assert "a&lt;b&gt; &amp;" in page.source
    assert ODD not in page.source
    assert "$" not in page.source
    assert "warning>Noisy: load average 9<" in page.source


def test_the_page_holds_every_cell_of_every_table(both: Benchmark) -> None:
    cells = set(Page(both).cells)
    for section in sections(both):
        assert {*section.header, *(cell for row in section.rows for cell in row)} <= cells


def test_its_charts_hold_the_figures_of_stages_and_latencies(both: Benchmark) -> None:
    stages, single, server = Page(both).charts
    assert list(stages) == [*NAMES, END_TO_END]
    assert stages["engine"] == [("c0", "5.00"), ("c1", "2.00")]
    assert list(single) == ["min", "p25", "p50", "p75", "p90", "p95", "p99", "max"]
    assert single["p50"] == [("c0", "29.8"), ("c1", "11.9")]
    assert single["p99"] == [("c0", "39.6"), ("c1", "15.8")]
    assert server["max"] == [("c0", "76.5"), ("c1", "76.5")]


def test_bars_and_quartiles_are_as_long_as_their_figures() -> None:
    costs = [dict.fromkeys((*NAMES, END_TO_END), Cost(ms, ms)) for ms in (2.0, 4.0, 6.0, 8.0, 10.0)]
    source = Page(make(result("a fp32", 20.0, stages=(table("0.5 MP", 24, 8, costs, lanes=2),)))).source
    # Median 6 and quartiles 4 and 8. The longest quartile fills the width.
    assert source.count("width:75.00%'></i><i class=line style='left:50.00%;width:50.00%'") == 7


def test_a_configuration_without_latencies_leaves_the_others_their_colours() -> None:
    _, single, _ = Page(make(result("a fp32", 20.0, single_stream=None), result("b fp32", 8.0, drift=DRIFT))).charts
    assert single["p50"] == [("c1", "11.9")]


def test_colours_repeat_after_the_last() -> None:
    stages, *_ = Page(make(*(result(f"{n} fp32", 20.0, drift=DRIFT) for n in range(COLOURS + 1)))).charts
    colours = [colour for colour, _ in stages["read"]]
    assert colours[-1] == colours[0] == "c0"
    assert len(set(colours)) == COLOURS


def test_stages_too_short_for_the_clock_have_bars_of_no_length() -> None:
    costs = [dict.fromkeys((*NAMES, END_TO_END), Cost(0.0, 0.0))] * 2
    page = Page(make(result("a fp32", 20.0, stages=(table("0.5 MP", 24, 8, costs, lanes=2),))))
    assert page.charts[0]["read"] == [("c0", "0")]


def test_no_name_and_no_warning_can_break_the_page() -> None:
    odd = make(result(f"{ODD} fp32", 20.0), warnings=(ODD,))
    assert ODD not in to_bytes(odd, ".html").decode()


def test_scenarios_that_were_not_measured_are_left_out() -> None:
    alone = make(result("a fp32", 20.0, single_stream=None, offline=None, server=None, start=None), warnings=())
    text = "\n".join(lines(alone))
    assert "stages of a fp32" in text
    for absent in ("single-stream,", "offline,", "server,", "cold start", "against", "noisy"):
        assert absent not in text
    page = Page(alone)
    assert len(page.charts) == 1
    assert "Noisy" not in page.source


def test_a_server_that_keeps_no_rate_gives_the_reason() -> None:
    none = Server(rate=None, bound=5.0, trials=(), note="an image alone takes 9")
    report = make(result("a fp32", 20.0, server=none))
    assert "a fp32: an image alone takes 9" in "\n".join(lines(report))
    assert len(Page(report).charts) == 2
    assert b"server,0.5 MP,rate,1/s,,," in to_bytes(report, ".csv")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"),
        (0.0, "0"),
        (0.0004, "0.000400"),
        (0.01234, "0.0123"),
        (0.1, "0.100"),
        (1.234, "1.23"),
        (12.34, "12.3"),
        (123.4, "123"),
        (98765.4, "98765"),
        (-5.0, "-5.00"),
        (float("inf"), "inf"),
    ],
)
def test_numbers_have_three_digits_or_more(value: float | None, text: str) -> None:
    assert number(value) == text


def test_shares_are_percentages() -> None:
    assert [percent(share) for share in (None, 0.0123, 0.5, 1.25)] == ["-", "1.2%", "50%", "125%"]


def test_the_environment_names_the_commit_of_a_checkout() -> None:
    checkout = (Path(mdmf_deploy.__file__).parents[1] / ".git").exists()
    assert (current_environment().commit is not None) == checkout
