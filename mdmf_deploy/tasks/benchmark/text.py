"""A benchmark for the terminal."""

from __future__ import annotations

from collections.abc import Iterator

from mdmf_deploy.tasks.benchmark.results import Benchmark
from mdmf_deploy.tasks.benchmark.tables import Section, facts, sections


def lines(benchmark: Benchmark) -> Iterator[str]:
    known = facts(benchmark)
    width = max(len(name) for name, _ in known)
    yield from (f"{name:<{width}}  {text}" for name, text in known)
    for section in sections(benchmark):
        yield ""
        yield from _table(section)
    if benchmark.noise.warnings:
        yield ""
        yield from (f"noisy: {warning}" for warning in benchmark.noise.warnings)


def _table(section: Section) -> Iterator[str]:
    columns = list(zip(section.header, *section.rows, strict=True))
    widths = [max(map(len, column)) for column in columns]
    yield section.title
    for row in (section.header, *section.rows):
        first, *others = (
            f"{cell:>{width}}" if n else f"{cell:<{width}}"
            for n, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        yield "  ".join(["", first, *others]).rstrip()
    yield from (f"  {note}" for note in section.notes)
