"""Every figure of a benchmark on a line of its own, for spreadsheets."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from typing import NamedTuple

from mdmf_deploy.tasks.benchmark.results import Benchmark, Latency, Result, StageTable
from mdmf_deploy.tasks.benchmark.statistics import Spread


class Figure(NamedTuple):
    """low, high: quartiles, or of a ratio its 95% interval."""

    configuration: str
    section: str
    images: str
    figure: str
    unit: str
    value: float | None
    low: float | None = None
    high: float | None = None


def to_csv(benchmark: Benchmark) -> str:
    """With a header; empty where there is no value."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(Figure._fields)
    writer.writerows(figures(benchmark))
    return text.getvalue()


def figures(benchmark: Benchmark) -> Iterator[Figure]:
    first = benchmark.images[0].name
    for result in benchmark.results:
        yield from _of(result, first)
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


def _of(result: Result, images: str) -> Iterator[Figure]:
    name = result.configuration.name
    for table in result.stages:
        yield from _stages(name, table)
    if result.single_stream is not None:
        yield from _latency(name, "single-stream", images, result.single_stream.latency)
    if result.offline is not None:
        yield _spread(name, "offline", images, "throughput", "images/s", result.offline.images_per_second)
        yield Figure(name, "offline", images, "energy", "J/image", result.offline.joules)
    if result.server is not None:
        yield Figure(name, "server", images, "rate", "1/s", result.server.rate)
        if result.server.latency is not None:
            yield from _latency(name, "server", images, result.server.latency)
    if result.start is not None:
        start = result.start
        yield _spread(name, "cold start", images, "process to first row", "ms", start.process)
        for what, value in (("import", start.importing), ("open", start.opening), ("first row", start.first_row)):
            yield Figure(name, "cold start", images, what, "ms", value)
        yield Figure(name, "memory", images, "peak", "MiB", start.peak_mib)
    if result.drift is not None:
        drift = result.drift
        yield Figure(name, "drift", images, "score change", "spreads", drift.score_change)
        yield Figure(name, "drift", images, "rank correlation", "", drift.rank_correlation)
        yield Figure(name, "drift", images, "flipped verdicts", "count", drift.flipped)
        yield Figure(name, "drift", images, "images", "count", float(drift.images))


def _stages(name: str, table: StageTable) -> Iterator[Figure]:
    for stage in (*table.stages, table.end_to_end):
        yield _spread(name, "stages", table.images, stage.name, "ms/image", stage.ms)
        yield Figure(name, "stages", table.images, f"{stage.name}, cores", "cores", stage.cores)
    yield Figure(name, "stages", table.images, "sum over end to end", "share", table.explained)
    yield Figure(name, "stages", table.images, "sum over end to end, CPU time", "share", table.explained_cpu)


def _latency(name: str, section: str, images: str, latency: Latency) -> Iterator[Figure]:
    for figure in ("p50", "p90", "p95", "p99", "max"):
        yield Figure(name, section, images, figure, "ms", getattr(latency, figure))


def _spread(name: str, section: str, images: str, figure: str, unit: str, spread: Spread) -> Figure:
    return Figure(name, section, images, figure, unit, spread.median, spread.low, spread.high)
