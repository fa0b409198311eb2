"""A benchmark as text for the terminal, JSON, CSV, and a self-contained HTML page."""

from __future__ import annotations

import csv
import io
import os
import textwrap
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import NamedTuple

import msgspec

from mdmf_deploy.detection.outputs import check_ending
from mdmf_deploy.errors import UsageError
from mdmf_deploy.tasks.benchmark.headline import headline
from mdmf_deploy.tasks.benchmark.results import Benchmark, Latency, Result, StageTable
from mdmf_deploy.tasks.benchmark.statistics import Spread
from mdmf_deploy.tasks.benchmark.tables import Section, facts, number, sections
from mdmf_deploy.text import cell

WIDTH = 80
ENDINGS = (".json", ".csv", ".html")
COLOURS = 6  # in page.html
_PAGE = Path(__file__).with_name("page.html")
_PERCENTILES = {"min": 0, "p25": 25, "p50": 50, "p75": 75, "p90": 90, "p95": 95, "p99": 99, "max": 100}


class Figure(NamedTuple):
    """One line of the CSV.

    low, high: quartiles, or the 95% interval of a ratio.
    """

    configuration: str
    section: str
    images: str
    figure: str
    unit: str
    value: float | None
    low: float | None = None
    high: float | None = None


class _Bar(NamedTuple):
    """A bar of the length `value`, and a line from `low` to `high` across its end."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, value: float | None) -> _Bar | None:
        """Return a bar without a line, or None for a figure that is not known."""
        return None if value is None else cls(value, value, value)


def check_output(path: Path) -> None:
    """Raise UsageError, before anything is measured, if no report can be written to this path."""
    check_ending(path, ENDINGS)
    folder = path.resolve().parent
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UsageError(f"-o {path}: cannot be written there; give the name of a file in a folder you can write to")


def to_bytes(benchmark: Benchmark, ending: str) -> bytes:
    """Return the whole report in the format of an ending, one of ENDINGS."""
    if ending == ".json":
        whole: bytes = msgspec.json.format(msgspec.json.encode(benchmark), indent=2)
        return whole + b"\n"
    return (_csv(benchmark) if ending == ".csv" else _html(benchmark)).encode()


def lines(benchmark: Benchmark) -> Iterator[str]:
    """Yield the lines of the report for the terminal, its headline first. Text is wrapped at 80 columns."""
    for sentence in headline(benchmark):
        yield from textwrap.wrap(sentence, WIDTH, subsequent_indent="  ", break_on_hyphens=False)
    yield ""
    known = facts(benchmark)
    width = max(len(name) for name, _ in known) + 2
    for name, text in known:
        yield from _wrapped(text, f"{name:<{width}}")
    for section in sections(benchmark):
        yield ""
        yield from _aligned(section)
    if benchmark.noise.warnings:
        yield ""
        for warning in benchmark.noise.warnings:
            yield from _wrapped(warning, "noisy: ")


def figures(benchmark: Benchmark) -> Iterator[Figure]:
    """Yield every figure of the report."""
    first = benchmark.images[0].name
    for result in benchmark.results:
        yield from _result_figures(result, first)
    for ratio in benchmark.ratios:
        times = ratio.times
        yield Figure(ratio.configuration, "ratio", first, ratio.figure, "times", times.value, times.low, times.high)
    noise = benchmark.noise
    for name, unit, value in (
        ("load before", "processes", noise.load_before),
        ("other programs", "share", noise.others),
        ("steal", "share", noise.steal),
        ("forced off a core", "1/s", noise.forced_off),
        ("warnings", "count", float(len(noise.warnings))),
    ):
        yield Figure("", "noise", "", name, unit, value)


def _aligned(section: Section) -> Iterator[str]:
    columns = list(zip(section.header, *section.rows, strict=True))
    widths = [max(map(len, column)) for column in columns]
    # Two spaces between columns, unless one makes the table fit.
    gap = "  " if sum(widths) + 2 * len(widths) <= WIDTH else " "
    yield section.title
    for row in (section.header, *section.rows):
        first, *others = (
            f"{cell:>{width}}" if n else f"{cell:<{width}}"
            for n, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        yield gap.join(["", first, *others]).rstrip()
    for note in section.notes:
        yield from _wrapped(note, "  ")


def _wrapped(text: str, start: str) -> list[str]:
    """Return the lines of a text after `start`, each below the first one's beginning."""
    return textwrap.wrap(
        text, WIDTH, initial_indent=start, subsequent_indent=" " * len(start), break_on_hyphens=False
    ) or [start]


def _csv(benchmark: Benchmark) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(Figure._fields)
    writer.writerows(map(cell, figure) for figure in figures(benchmark))
    return text.getvalue()


def _result_figures(result: Result, images: str) -> Iterator[Figure]:
    name = result.configuration.name
    for table in result.stages:
        yield from _stage_figures(name, table)
    if result.single_stream is not None:
        yield from _latency_figures(name, "single-stream", images, result.single_stream.latency)
    if result.offline is not None:
        yield _spread(name, "offline", images, "throughput", "images/s", result.offline.images_per_second)
        yield Figure(name, "offline", images, "energy", "J/image", result.offline.joules)
    if result.server is not None:
        yield Figure(name, "server", images, "rate", "1/s", result.server.rate)
        if result.server.latency is not None:
            yield from _latency_figures(name, "server", images, result.server.latency)
    if result.start is not None:
        start = result.start
        yield _spread(name, "cold start", images, "process to first row", "ms", start.process)
        for part, value in (("import", start.importing), ("open", start.opening), ("first row", start.first_row)):
            yield Figure(name, "cold start", images, part, "ms", value)
        yield Figure(name, "memory", images, "peak", "MiB", start.peak_mib)
    if result.drift is not None:
        drift = result.drift
        yield Figure(name, "drift", images, "score change", "spreads", drift.score_change)
        yield Figure(name, "drift", images, "rank correlation", "", drift.rank_correlation)
        yield Figure(name, "drift", images, "flipped verdicts", "count", drift.flipped)
        yield Figure(name, "drift", images, "images", "count", float(drift.images))


def _stage_figures(name: str, table: StageTable) -> Iterator[Figure]:
    for stage in (*table.stages, table.end_to_end):
        yield _spread(name, "stages", table.images, stage.name, "ms/image", stage.ms)
        yield Figure(name, "stages", table.images, f"{stage.name}, cores", "cores", stage.cores)
    yield Figure(name, "stages", table.images, "sum over end to end", "share", table.explained)
    yield Figure(name, "stages", table.images, "sum over end to end, CPU time", "share", table.explained_cpu)


def _latency_figures(name: str, section: str, images: str, latency: Latency) -> Iterator[Figure]:
    for figure in ("p50", "p90", "p95", "p99", "max"):
        yield Figure(name, section, images, figure, "ms", getattr(latency, figure))


def _spread(name: str, section: str, images: str, figure: str, unit: str, spread: Spread) -> Figure:
    return Figure(name, section, images, figure, unit, spread.median, spread.low, spread.high)


def _html(benchmark: Benchmark) -> str:
    names = ", ".join(result.configuration.name for result in benchmark.results)
    parts = {
        "headline": (f"<p class=headline>{escape(sentence)}</p>" for sentence in headline(benchmark)),
        "warnings": (f"<p class=warning>Noisy: {escape(text)}</p>" for text in benchmark.noise.warnings),
        "facts": (f"<tr><td>{escape(name)}<td>{escape(text)}" for name, text in facts(benchmark)),
        "charts": _charts(benchmark),
        "tables": map(_table, sections(benchmark)),
    }
    filled = {name: "\n".join(part) for name, part in parts.items()}
    return Template(_PAGE.read_text(encoding="utf-8")).substitute(title=escape(f"mdmf benchmark: {names}"), **filled)


def _charts(benchmark: Benchmark) -> Iterator[str]:
    names = [result.configuration.name for result in benchmark.results]
    for n, images in enumerate(benchmark.images):
        stages = [(*result.stages[n].stages, result.stages[n].end_to_end) for result in benchmark.results]
        bars = [[_Bar(stage.ms.median, stage.ms.low, stage.ms.high) for stage in own] for own in stages]
        note = "Milliseconds per image: each stage alone, and end to end, with overlap. Lines: quartiles of the runs."
        yield _chart(f"Where the time goes, {images.name} images", note, names, [one.name for one in stages[0]], bars)
    single = [result.single_stream.latency if result.single_stream else None for result in benchmark.results]
    served = [result.server.latency if result.server else None for result in benchmark.results]
    for scenario, latencies in (("single-stream", single), ("server", served)):
        if any(latencies):
            curves = [None if one is None else [one.curve[at] for at in _PERCENTILES.values()] for one in latencies]
            title = f"Latency, {scenario}, {benchmark.images[0].name} images"
            own = [[_Bar.of(value) for value in curve or ()] for curve in curves]
            yield _chart(title, "Milliseconds, by percentile of requests.", names, list(_PERCENTILES), own)


def _chart(
    title: str, note: str, names: Sequence[str], labels: Sequence[str], series: Sequence[Sequence[_Bar | None]]
) -> str:
    """Return a group of bars for each label, with a bar for each series that is not empty. None is a dash."""
    longest = max((bar.high for bars in series for bar in bars if bar is not None), default=0.0) or 1.0
    legend = "".join(f"<span class=c{n % COLOURS}>{escape(name)}</span>" for n, name in enumerate(names))
    groups = []
    for at, label in enumerate(labels):
        rows = [_bar_cells(n, bars[at], longest) for n, bars in enumerate(series) if bars]
        groups.append(f"<tbody><tr><th rowspan={len(rows)}>{escape(label)}{'<tr>'.join(rows)}")
    return (
        f"<h2>{escape(title)}</h2>\n<div class=legend>{legend if len(names) > 1 else ''}</div>\n"
        f"<table class=chart>{''.join(groups)}</table>\n<p>{escape(note)}</p>"
    )


def _bar_cells(series: int, bar: _Bar | None, longest: float) -> str:
    if bar is None:
        return f"<td class='track c{series % COLOURS}'><td>{number(None)}"
    value, low, high = (100 * end / longest for end in bar)
    ends = f"left:{low:.2f}%;width:{high - low:.2f}%"
    track = f"<i class=bar style='width:{value:.2f}%'></i><i class=line style='{ends}'></i>"
    return f"<td class='track c{series % COLOURS}'>{track}<td>{number(bar.value)}"


def _table(section: Section) -> str:
    header = "".join(f"<th>{escape(cell)}" for cell in section.header)
    rows = "\n".join(f"<tr>{''.join(f'<td>{escape(cell)}' for cell in row)}" for row in section.rows)
    notes = "".join(f"<p>{escape(_capital(note))}.</p>" for note in section.notes)
    title = escape(_capital(section.title))
    return f"<h2>{title}</h2>\n<div class=scroll><table><tr>{header}\n{rows}</table></div>\n{notes}"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
