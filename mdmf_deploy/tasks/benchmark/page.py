"""A benchmark as one self-contained page: no script, nothing fetched, light and dark."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape

from mdmf_deploy.tasks.benchmark import svg
from mdmf_deploy.tasks.benchmark.results import Benchmark
from mdmf_deploy.tasks.benchmark.tables import Section, facts, sections

# Okabe and Ito's colours, told apart by all kinds of colour vision (jfly.uni-koeln.de/color); lighter ones for dark.
_LIGHT = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00")
_DARK = ("#56b4e9", "#e69f00", "#2bc49a", "#e19bc4", "#9ad4f5", "#ff8c42")

_STYLE = """
:root { color-scheme: light dark; --ink: #1d2129; --dim: #5b6472; --paper: #ffffff; --rule: #d9dde3; --warn: #fff3d6 }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e8eb; --dim: #9aa4b2; --paper: #14171c; --rule: #343a43; --warn: #42351a }
}
body { color: var(--ink); background: var(--paper); font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto;
  max-width: 860px; padding: 0 1rem }
h1 { font-size: 1.5rem; margin: 0 0 .25rem }
h2 { font-size: 1.05rem; margin: 2.25rem 0 .5rem }
.scroll { overflow-x: auto }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9rem; width: 100% }
th, td { padding: .25rem .7rem; text-align: right; border-bottom: 1px solid var(--rule); white-space: nowrap }
th { color: var(--dim); font-weight: 500 }
th:first-child, td:first-child { text-align: left; padding-left: 0 }
.facts td { text-align: left; white-space: normal; vertical-align: top }
.facts td:first-child { color: var(--dim); white-space: nowrap }
p { margin: .4rem 0; color: var(--dim); font-size: .9rem }
.warning { background: var(--warn); color: var(--ink); padding: .5rem .8rem; border-radius: 6px }
svg { display: block; width: 100%; height: auto; margin-top: .75rem }
svg text { font: 11px system-ui, sans-serif; fill: var(--ink); paint-order: stroke; stroke: var(--paper);
  stroke-width: 3px }
svg text.dim { fill: var(--dim) }
svg .grid { stroke: var(--rule) }
svg .axis { stroke: var(--ink) }
svg polyline { fill: none; stroke-width: 2 }
"""


def to_html(benchmark: Benchmark) -> str:
    """The whole page."""
    return "\n".join(_page(benchmark)) + "\n"


def _page(benchmark: Benchmark) -> Iterator[str]:
    names = ", ".join(result.configuration.name for result in benchmark.results)
    title = f"mdmf benchmark: {names}"
    yield '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
    yield '<meta name="viewport" content="width=device-width, initial-scale=1">'
    yield f"<title>{escape(title)}</title><style>{_STYLE}{_colours()}</style></head><body>"
    yield f"<h1>{escape(title)}</h1>"
    if benchmark.noise.warnings:
        yield f'<p class="warning">{"<br>".join(f"Noisy: {escape(text)}" for text in benchmark.noise.warnings)}</p>'
    yield '<table class="facts">'
    for name, text in facts(benchmark):
        yield f"<tr><td>{escape(name)}</td><td>{escape(text)}</td></tr>"
    yield "</table>"
    yield from _stage_bars(benchmark)
    yield from _latencies(benchmark)
    for section in sections(benchmark):
        yield from _section(section)
    yield "</body></html>"


def _stage_bars(benchmark: Benchmark) -> Iterator[str]:
    for n, images in enumerate(benchmark.images):
        tables = [(result.configuration.name, result.stages[n]) for result in benchmark.results]
        labels = [*(stage.name for stage in tables[0][1].stages), "end to end"]
        series = [
            (name, [svg.Bar(s.ms.median, s.ms.low, s.ms.high) for s in (*table.stages, table.end_to_end)])
            for name, table in tables
        ]
        yield f"<h2>Where the time goes, {escape(images.name)} images</h2>"
        yield svg.bars(labels, series, "ms per image")
        yield "<p>Each stage on its own, and end to end, where they overlap. Lines: quartiles of the runs.</p>"


def _latencies(benchmark: Benchmark) -> Iterator[str]:
    single = [r.single_stream.latency if r.single_stream else None for r in benchmark.results]
    served = [r.server.latency if r.server else None for r in benchmark.results]
    names = [r.configuration.name for r in benchmark.results]
    for what, measured in (("single-stream", single), ("server", served)):
        if any(measured):
            yield f"<h2>Latency, {what}, {escape(benchmark.images[0].name)} images</h2>"
            curves = [latency.curve if latency else None for latency in measured]
            yield svg.percentiles(list(zip(names, curves, strict=True)), "ms")


def _section(section: Section) -> Iterator[str]:
    yield f'<h2>{escape(section.title[:1].upper() + section.title[1:])}</h2><div class="scroll"><table>'
    yield f"<tr>{''.join(f'<th>{escape(cell)}</th>' for cell in section.header)}</tr>"
    for row in section.rows:
        yield f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>"
    yield "</table></div>"
    yield from (f"<p>{escape(note[:1].upper() + note[1:])}.</p>" for note in section.notes)


def _colours() -> str:
    def rules(colours: tuple[str, ...]) -> str:
        return "".join(f"svg .s{n} {{ fill: {c} }} svg .l{n} {{ stroke: {c} }}\n" for n, c in enumerate(colours))

    return f"{rules(_LIGHT)}@media (prefers-color-scheme: dark) {{\n{rules(_DARK)}}}\n"
