"""One benchmark as text, JSON, CSV and HTML: all of them hold its figures."""

from __future__ import annotations

import csv
import io
import re
from xml.etree import ElementTree

import msgspec
import pytest

from mdmf_deploy.hardware.host import Machine
from mdmf_deploy.tasks.benchmark import svg
from mdmf_deploy.tasks.benchmark.flat import Figure
from mdmf_deploy.tasks.benchmark.noise import Noise
from mdmf_deploy.tasks.benchmark.report import to_bytes
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
)
from mdmf_deploy.tasks.benchmark.stages import END_TO_END, NAMES, Cost, table
from mdmf_deploy.tasks.benchmark.statistics import Interval, spread
from mdmf_deploy.tasks.benchmark.tables import number, percent
from mdmf_deploy.tasks.benchmark.text import lines

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
            latency=Latency.of([ms / 1e3 * (1 + n / 100) for n in range(100)]), medians=spread([ms, ms]), settled=True
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
    assert list(read[0]) == list(Figure._fields)
    found = {(row["configuration"], row["section"], row["figure"]): row for row in read}
    assert len(found) == len(read)
    assert found["onnxruntime int8", "drift", "flipped verdicts"]["value"] == "3"
    assert found["onnxruntime int8", "ratio", "offline"]["low"] == "2.25"
    assert float(found["onnxruntime fp32", "offline", "throughput"]["value"]) == pytest.approx(50)
    assert float(found["onnxruntime fp32", "server", "p99"]["value"]) == pytest.approx(76.5)
    assert found["", "noise", "steal"]["value"] == ""
    assert found["", "noise", "warnings"]["value"] == "1.0"
    assert {row["section"] for row in read} >= {"stages", "single-stream", "cold start", "memory"}


def test_text_holds_the_figures_in_aligned_columns(both: Benchmark) -> None:
    text = list(lines(both))
    whole = "\n".join(text)
    for figure in ("2.50 [2.25, 2.75]", "0.9987", "3 of 16", "0.0456", "612", "346", "12.5", "76.5", "0.750"):
        assert figure in whole
    start = text.index("single-stream, 0.5 MP images")
    assert len({len(line) for line in text[start + 1 : start + 4]}) == 1
    assert "on generated images" in whole
    assert "4 of 9, evenly spaced, 0.5 MP" in whole
    assert "runs of 24 images in batches of 8" in whole
    assert text[-1] == "noisy: load average 9"
    assert "the limit is decoding" in whole


@pytest.mark.parametrize(("count", "said"), [(127, True), (128, False)])
def test_runs_too_short_for_stages_to_overlap_say_so(count: int, said: bool) -> None:
    costs = dict.fromkeys((*NAMES, END_TO_END), Cost(1.0, 1.0))
    report = make(result("a fp32", 20.0, stages=(table("0.5 MP", count, 8, [costs] * 3, lanes=2),)))
    assert ("so few that filling the pipeline weighs" in "\n".join(lines(report))) == said


def test_the_page_is_self_contained_and_its_pictures_hold_the_figures(both: Benchmark) -> None:
    page = to_bytes(both, ".html").decode()
    assert "<script" not in page
    assert not re.search(r"(?:src|href)\s*=|url\(|@import", page)
    assert "prefers-color-scheme: dark" in page
    assert "a&lt;b&gt; &amp;" in page
    assert ODD not in page
    assert 'class="warning">Noisy: load average 9' in page
    pictures = [ElementTree.fromstring(text) for text in re.findall(r"<svg.*?</svg>", page, re.DOTALL)]
    assert len(pictures) == 3
    texts = [{element.text for element in picture.iter() if element.tag.endswith("text")} for picture in pictures]
    assert {"engine", "end to end", "ms per image", "5.00", "2.00", "onnxruntime int8"} <= texts[0]
    assert {"p50", "p99", "ms", "percentile of requests", "29.8", "39.6"} <= texts[1]


def test_no_name_and_no_warning_can_break_the_page() -> None:
    odd = make(result(f"{ODD} fp32", 20.0), warnings=(ODD,))
    assert ODD not in to_bytes(odd, ".html").decode()


def test_what_was_not_asked_for_is_left_out() -> None:
    alone = make(result("a fp32", 20.0, single_stream=None, offline=None, server=None, start=None), warnings=())
    text = "\n".join(lines(alone))
    assert "stages of a fp32" in text
    for absent in ("single-stream,", "offline,", "server,", "cold start", "against", "noisy"):
        assert absent not in text
    page = to_bytes(alone, ".html").decode()
    assert page.count("<svg") == 1
    assert "Noisy" not in page


def test_a_server_that_keeps_no_rate_says_why() -> None:
    none = Server(
        rate=None, bound=5.0, latency=None, requests=0, unserved=0, batch=None, trials=(), note="an image alone takes 9"
    )
    report = make(result("a fp32", 20.0, server=none))
    assert "a fp32: an image alone takes 9" in "\n".join(lines(report))
    assert to_bytes(report, ".html").decode().count("<svg") == 2
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


@pytest.mark.parametrize("largest", [0.0, 1e-7, 0.037, 1.0, 99.0, 101.0, 12345.0])
def test_ticks_are_few_and_reach_the_largest_value(largest: float) -> None:
    ticks = svg.nice_ticks(largest)
    assert ticks[0] == 0
    assert ticks[-1] >= largest * (1 - 1e-6)
    assert 3 <= len(ticks) <= 7
    assert ticks[-2] < largest or largest == 0


def test_labels_of_curves_that_run_together_are_not_written_over_each_other() -> None:
    curve = [float(10 + n) for n in range(101)]
    texts = svg.percentiles([("a", curve), ("b", [value + 0.1 for value in curve])], "ms")
    assert ">60.0<" in texts
    assert ">60.1<" not in texts
    assert ">160<" in svg.percentiles([("a", curve), ("b", [value + 100 for value in curve])], "ms")


def test_the_tail_of_a_latency_curve_has_half_of_the_width() -> None:
    root = ElementTree.fromstring(svg.percentiles([("a", [float(n) for n in range(101)])], "ms"))
    grid = [
        float(line.get("x1", "0"))
        for line in root.iter()
        if line.tag.endswith("line") and line.get("x1") == line.get("x2")
    ]
    start, p90, p99 = grid[0], grid[4], grid[6]
    assert p90 - start == pytest.approx(p99 - p90, abs=0.2)


def test_a_curve_that_is_missing_leaves_the_others_their_colours() -> None:
    picture = svg.percentiles([("a", None), ("b", [1.0] * 101)], "ms")
    assert 'class="l1"' in picture
    assert 'class="l0"' not in picture
    assert ">a<" in picture


def test_a_long_legend_wraps_and_the_picture_grows() -> None:
    names = [f"a bundle of a long name, runtime {n}" for n in range(6)]
    bar = svg.Bar(1.0, 1.0, 1.0)
    roots = [
        ElementTree.fromstring(svg.bars(["engine"], [(name, [bar]) for name in some], "ms"))
        for some in (names[:2], names)
    ]
    width, height = map(float, roots[1].get("viewBox", "").split()[2:])
    labels = [element for element in roots[1].iter() if element.text in names]
    assert len({element.get("y") for element in labels}) == 3
    assert all(float(element.get("x", "")) + 6 * len(element.text or "") < width for element in labels)
    assert height > float(roots[0].get("viewBox", "").split()[3]) + 4 * 16


def test_a_name_of_any_characters_gives_well_formed_pictures() -> None:
    bar = svg.Bar(1.0, 0.5, 1.5)
    root = ElementTree.fromstring(svg.bars([ODD], [(ODD, [bar]), ("b", [bar])], "ms"))
    assert ODD in {element.text for element in root.iter()}
