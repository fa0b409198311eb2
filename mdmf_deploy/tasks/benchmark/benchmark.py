"""The benchmark from end to end: samples, subjects, all measurements, one report."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Sequence
from itertools import cycle, islice
from pathlib import Path

from mdmf_deploy.errors import UsageError
from mdmf_deploy.tasks.benchmark import SCENARIOS, cold_start, noise, samples, server, stages
from mdmf_deploy.tasks.benchmark.comparison import measure_drift, ratios
from mdmf_deploy.tasks.benchmark.results import Benchmark, Result, Settings, current_environment
from mdmf_deploy.tasks.benchmark.rounds import Clock, RealClock
from mdmf_deploy.tasks.benchmark.scenarios import measure_offline, measure_single_stream
from mdmf_deploy.tasks.benchmark.subjects import Subject, opened

_PACED = 4  # images timed to estimate how many fit into a run


def run(
    bundles: Sequence[str],
    settings: Settings | None = None,
    *,
    runtimes: Sequence[str] = ("auto",),
    precisions: Sequence[str] = (),
    images: Sequence[Path] | None = None,
    clock: Clock | None = None,
    log: Callable[[str], None] = lambda text: None,
) -> Benchmark:
    """Benchmark every bundle on every runtime in every precision.

    precisions: none means each bundle's own.
    images: None means generated ones.
    log: called with each line of progress.
    Raises UsageError for wrong settings, if no image can be read, or for a precision that is not available.
    Raises BundleError, RuntimeUnavailable.
    """
    settings, clock = settings or Settings(), clock or RealClock()
    check_settings(settings)
    if not bundles or not runtimes:
        raise UsageError("nothing to measure: give at least one bundle and one --runtime (auto, or a name)")
    before = noise.observe(clock)
    environment = current_environment()
    with tempfile.TemporaryDirectory(prefix="mdmf-benchmark-") as scratch:
        log("reading images" if images is not None else "making images")
        sets = samples.generated(Path(scratch)) if images is None else [samples.given(images)]
        paths = sets[0].paths
        log("opening engines" if not precisions else "lowering precisions, opening engines")
        with opened(bundles, runtimes, precisions, settings, paths, Path(scratch)) as subjects:
            tables = []
            for sample in sets:
                log(f"stages, {sample.about.name}")
                pace = _pace(subjects, sample.paths, clock)
                tables.append(stages.measure(subjects, sample, settings, clock, pace))
            pace = _pace(subjects, paths, clock)
            streamed = rated = None
            if "single-stream" in settings.scenarios:
                log("single-stream")
                streamed = measure_single_stream(subjects, paths, settings, clock, pace)
            if "offline" in settings.scenarios:
                log("offline")
                rated = measure_offline(subjects, paths, settings, clock, pace)
            log("verdicts")
            drifts = measure_drift(subjects, paths)
            results = []
            for n, subject in enumerate(subjects):
                served = None
                if "server" in settings.scenarios:
                    log(f"server, {subject.about.name}")
                    own = _pace([subject], paths, clock) if rated is None else 1 / max(rated[n].rates)
                    served = server.measure(subject, paths, settings, clock, own)
                log(f"cold starts, {subject.about.name}")
                results.append(
                    Result(
                        configuration=subject.about,
                        stages=tuple(of_set[n] for of_set in tables),
                        single_stream=None if streamed is None else streamed[n].result,
                        offline=None if rated is None else rated[n].result,
                        server=served,
                        start=cold_start.measure(subject, paths, settings),
                        drift=drifts[n],
                    )
                )
    return Benchmark(
        environment=environment,
        settings=settings,
        images=tuple(sample.about for sample in sets),
        results=tuple(results),
        ratios=(
            *ratios("single-stream", results, [one.rates for one in streamed or ()]),
            *ratios("offline", results, [one.rates for one in rated or ()]),
        ),
        noise=noise.judge(
            before, noise.observe(clock), environment.cores, _unsettled(results), noise.ticks_per_second()
        ),
    )


def check_settings(settings: Settings) -> None:
    """Raise UsageError for settings that cannot be measured, naming the option."""
    unknown = [name for name in settings.scenarios if name not in SCENARIOS]
    if unknown or not settings.scenarios:
        raise UsageError(f"--scenario {','.join(unknown)}: not known; choose from {', '.join(SCENARIOS)}")
    if settings.rate is not None and "server" not in settings.scenarios:
        raise UsageError("--rate is the server scenario's; add server to --scenario")
    for name in ("batch_size", "cold_starts", "seconds", "rate", "p99_bound", "cv_limit"):
        value = getattr(settings, name)
        if value is not None and not (value > 0 and math.isfinite(value)):
            raise UsageError(f"--{name.replace('_', '-')} must be a number above 0, got {value:g}")
    if not (settings.batch_wait >= 0 and math.isfinite(settings.batch_wait)):
        raise UsageError(f"--batch-wait must be a number of milliseconds, 0 or more, got {settings.batch_wait:g}")


def _pace(subjects: Sequence[Subject], paths: Sequence[Path], clock: Clock) -> float:
    """Warm up all subjects, and return the seconds that an image takes end to end on the slowest."""
    slowest = 0.0
    for subject in subjects:
        subject.detector.detect(paths[:1])
        start = clock.now()
        subject.detector.detect(list(islice(cycle(paths), _PACED)))
        slowest = max(slowest, (clock.now() - start) / _PACED)
    return slowest


def _unsettled(results: Sequence[Result]) -> tuple[str, ...]:
    return tuple(
        f"{result.configuration.name} {name}"
        for result in results
        for name, measured in (("single-stream", result.single_stream), ("offline", result.offline))
        if measured is not None and not measured.settled
    )
