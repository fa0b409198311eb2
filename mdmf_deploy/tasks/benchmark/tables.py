"""A benchmark as titled tables of text, which the terminal and the HTML page lay out in their own ways."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from mdmf_deploy.tasks.benchmark.results import Benchmark, Configuration, ImageSet, Latency, Ratio, Result, StageTable
from mdmf_deploy.tasks.benchmark.rounds import BATCHES
from mdmf_deploy.tasks.benchmark.statistics import Interval, Spread, least_samples

_NONE = "-"


@dataclass(frozen=True, slots=True)
class Section:
    """One table. The first column holds names, the others numbers.

    notes: sentences below the table.
    """

    title: str
    header: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    notes: Sequence[str] = ()


def number(value: float | None) -> str:
    """Format with three significant digits or more and no exponent: 0.0123, 1.23, 12.3, 1234. Zero gives "0"."""
    if value is None:
        return _NONE
    exponent = math.floor(math.log10(abs(value))) if value and math.isfinite(value) else 2
    return f"{value:.{max(0, 2 - exponent)}f}"


def percent(share: float | None) -> str:
    """Format a share as a percentage, with one decimal below 10%."""
    return _NONE if share is None else f"{100 * share:.1f}%" if share < 0.1 else f"{100 * share:.0f}%"


def interval(found: Interval) -> str:
    """Format a value and its interval: "2.50 [2.25, 2.75]"."""
    if found.low is None or found.high is None:
        return f"{found.value:.2f}"
    return f"{found.value:.2f} [{found.low:.2f}, {found.high:.2f}]"


def facts(benchmark: Benchmark) -> list[tuple[str, str]]:
    """Return (name, text) pairs that describe environment, settings, images and configurations."""
    here = benchmark.environment
    machine, settings = here.machine, benchmark.settings
    limit = "" if machine.core_limit is None else f", container limit {machine.core_limit:g}"
    known = [
        ("date", here.date),
        ("mdmf-deploy", here.version if here.commit is None else f"{here.version} ({here.commit})"),
        ("cpu", f"{machine.cpu} ({' '.join(machine.cpu_features) or 'no known features'})"),
        ("cores", f"{here.cores} used of {machine.cores} allowed{limit}"),
        ("governor", here.governor or "not readable"),
        ("memory", "unknown" if machine.memory is None else f"{machine.memory / 2**30:.1f} GiB"),
        ("load before", number(benchmark.noise.load_before)),
        ("system", f"{machine.system}, {machine.python}"),
        ("decoder", here.decoder),
        ("libraries", ", ".join(f"{name} {version}" for name, version in here.libraries.items())),
        ("settings", f"batch {settings.batch_size}, {settings.seconds:g} s per scenario, seed {settings.seed}"),
    ]
    for images in benchmark.images:
        lost = f", {images.unreadable} unreadable left out" if images.unreadable else ""
        chosen = f" of {images.given}, evenly spaced" if images.given > images.images + images.unreadable else ""
        size = f"{images.megapixels:.3g} MP, {images.kilobytes:.0f} kB each"
        known.append((f"{images.name} images", f"{images.images}{chosen}, {size}; {images.origin}{lost}"))
    for result in benchmark.results:
        known.append((result.configuration.name, _describe(result.configuration)))
    return known


def sections(benchmark: Benchmark) -> Iterator[Section]:
    """Yield the tables in the order in which they are shown, without scenarios that were not measured."""
    results, first = benchmark.results, f"{benchmark.images[0].name} images"
    for result in results:
        for table in result.stages:
            yield _stages(result.configuration.name, table)
    yield from _single_stream(results, first)
    yield from _offline(results, first)
    yield from _server(results, first)
    yield from _comparison(results, benchmark.ratios, benchmark.images[0])
    yield from _cold_start(results)


def _describe(configuration: Configuration) -> str:
    derived = f"; {configuration.derived}" if configuration.derived else ""
    return f"{configuration.bundle}, id {configuration.bundle_id[:12]}{derived}"


def _stages(name: str, table: StageTable) -> Section:
    rows = [
        (stage.name, number(stage.ms.median), _quartiles(stage.ms), f"{stage.cores:.2f}", str(stage.lanes))
        for stage in table.stages
    ]
    whole = table.end_to_end
    rows.append(("sum", number(table.total), "", "", ""))
    rows.append(("end to end", number(whole.ms.median), _quartiles(whole.ms), f"{whole.cores:.2f}", ""))
    overlap = ", because stages overlap" if table.explained > 1 else ""
    filling = ", too few to hide the filling of the pipeline: give more --seconds"
    filling = filling if table.count < BATCHES * table.batch else ""
    return Section(
        f"stages of {name}, {table.images} images",
        ("stage", "ms/image", "quartiles", "cores", "at once"),
        rows,
        [
            f"the sum is {percent(table.explained)} of end to end{overlap}, {percent(table.explained_cpu)} of its CPU "
            f"time; the limit is {table.limit}, {percent(table.limit_share)} of end to end; "
            f"runs of {table.count} images in batches of {table.batch}{filling}"
        ],
    )


def _single_stream(results: Sequence[Result], images: str) -> Iterator[Section]:
    rows = [
        (result.configuration.name, *_latency(one.latency), str(one.latency.count), percent(one.medians.cv))
        for result in results
        if (one := result.single_stream) is not None
    ]
    if rows:
        header = ("ms", "p50", "p90", "p95", "p99", "max", "images", "CV")
        latencies = [one.latency for result in results if (one := result.single_stream) is not None]
        yield Section(f"single-stream, {images}", header, rows, ["CV: of the runs' medians", *_too_few(latencies)])


def _offline(results: Sequence[Result], images: str) -> Iterator[Section]:
    measured = [(result.configuration.name, one) for result in results if (one := result.offline) is not None]
    rows = [
        (
            name,
            number(one.images_per_second.median),
            _quartiles(one.images_per_second),
            f"{one.images_per_second.runs} x {one.images_per_run}",
            percent(one.images_per_second.cv),
            number(one.joules),
        )
        for name, one in measured
    ]
    if rows:
        notes = list(dict.fromkeys(f"energy: {one.energy}" for _, one in measured))
        header = ("", "images/s", "quartiles", "runs x images", "CV", "J/image")
        yield Section(f"offline, {images}", header, rows, notes)


def _server(results: Sequence[Result], images: str) -> Iterator[Section]:
    measured = [(result.configuration.name, one) for result in results if (one := result.server) is not None]
    if not measured:
        return
    bound = measured[0][1].bound
    rate = "at a given rate" if bound is None else f"the most that keep p99 within {bound:g} ms"
    rows, notes = [], []
    for name, one in measured:
        cells = _latency(one.latency) if one.latency is not None else (_NONE,) * 5
        rows.append((name, number(one.rate), *cells, str(one.requests), number(one.batch)))
        unserved = f"{one.unserved} requests left unserved" if one.unserved else ""
        notes += [f"{name}: {'; '.join(part for part in (unserved, one.note) if part)}"] if unserved or one.note else []
    notes += _too_few([one.latency for _, one in measured if one.latency is not None])
    header = ("ms", "rate/s", "p50", "p90", "p95", "p99", "max", "requests", "batch")
    yield Section(f"server, {images}, Poisson arrivals, {rate}", header, rows, notes)


def _comparison(results: Sequence[Result], ratios: Sequence[Ratio], images: ImageSet) -> Iterator[Section]:
    rows, notes = [], []
    for result in results:
        drift = result.drift
        if drift is None:
            continue
        name = result.configuration.name
        own = {ratio.figure: interval(ratio.times) for ratio in ratios if ratio.configuration == name}
        rows.append(
            (
                name,
                own.get("single-stream", _NONE),
                own.get("offline", _NONE),
                number(drift.score_change),
                f"{drift.rank_correlation:.4f}",
                f"{_NONE if drift.flipped is None else drift.flipped} of {drift.images}",
            )
        )
        notes += [f"{name}: {drift.note}"] if drift.note else []
    if rows:
        header = ("", "single-stream", "offline", "score", "rank", "flipped")
        if images.generated:
            notes.insert(0, "scores on generated images say little about yours: give photographs with --images")
        notes.insert(
            0,
            "times as fast, 95% interval; score: the largest change, in spreads of real scores; rank: correlation; "
            "flipped: verdicts",
        )
        yield Section(f"against {results[0].configuration.name}", header, rows, notes)


def _cold_start(results: Sequence[Result]) -> Iterator[Section]:
    rows = []
    for result in results:
        start = result.start
        if start is not None:
            times = (start.process.median, start.importing, start.opening, start.first_row)
            memory = _NONE if start.peak_mib is None else f"{start.peak_mib:.0f}"
            rows.append((result.configuration.name, *map(number, times), memory))
    if rows:
        header = ("ms", "process", "import", "open", "first row", "peak MiB")
        runs = next(result.start for result in results if result.start is not None)
        note = f"fresh processes, median of {runs.process.runs}; memory while scoring {runs.peak_images} images"
        yield Section("cold start and memory", header, rows, [note])


def _latency(latency: Latency) -> tuple[str, ...]:
    return tuple(map(number, (latency.p50, latency.p90, latency.p95, latency.p99, latency.max)))


def _too_few(latencies: Sequence[Latency]) -> list[str]:
    """Return a note on the percentiles that some latencies are too few for."""
    missing = [
        f"p{percent} of {least_samples(percent)}"
        for percent in (50, 90, 95, 99)
        if any(getattr(latency, f"p{percent}") is None for latency in latencies)
    ]
    return [f"-: too few to tell; {', '.join(missing)} or more"] if missing else []


def _quartiles(spread: Spread) -> str:
    return f"{number(spread.low)} - {number(spread.high)}"
