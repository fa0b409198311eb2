"""A benchmark in a few sentences: how fast, by how much faster, and what the limit is."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from mdmf_deploy.tasks.benchmark.results import Benchmark, Result
from mdmf_deploy.tasks.benchmark.tables import interval, number


def headline(benchmark: Benchmark) -> Iterator[str]:
    """Yield a sentence for each configuration, one for each ratio, and a warning if the figures are noisy."""
    for result in benchmark.results:
        yield _speed(result)
    for ratio in benchmark.ratios:
        times = interval(ratio.times)
        yield f"{ratio.configuration} is {times} times as fast as {ratio.against} ({ratio.figure})."
    if benchmark.noise.warnings:
        yield "The machine was not quiet, so these figures are noisy: see the end."


def _speed(result: Result) -> str:
    parts = []
    if result.offline is not None:
        parts.append(f"{number(result.offline.images_per_second.median)} images/s offline")
    if result.single_stream is not None and result.single_stream.latency.p50 is not None:
        parts.append(f"one image takes {number(result.single_stream.latency.p50)} ms (median)")
    if result.server is not None:
        rate = result.server.rate
        bound = "" if result.server.bound is None else f" within {result.server.bound:g} ms"
        parts.append(f"a server keeps {number(rate)} requests/s{bound}" if rate else f"a server keeps no rate{bound}")
    table = result.stages[0]
    if not parts:
        parts.append(f"{number(table.end_to_end.ms.median)} ms an image, end to end")
    parts.append(f"{'the engine' if table.limit == 'engine' else table.limit} is the limit")
    about = result.configuration
    return f"{Path(about.bundle).name.removesuffix('.mdmf')} on {about.runtime} {about.precision}: {'; '.join(parts)}."
