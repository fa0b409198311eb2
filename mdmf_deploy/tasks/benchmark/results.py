"""The report as typed structs, which are written as JSON unchanged. Times are in milliseconds unless stated."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import msgspec

import mdmf_deploy
from mdmf_deploy.hardware.host import Machine, cores, look_at_machine, text_of
from mdmf_deploy.tasks.benchmark import BATCH_SIZE, SCENARIOS
from mdmf_deploy.tasks.benchmark.noise import Noise
from mdmf_deploy.tasks.benchmark.statistics import Interval, Spread, sure_percentile

SCHEMA_VERSION = 1
_LIBRARIES = (
    "numpy",
    "pillow",
    "onnxruntime",
    "onnxruntime-gpu",
    "openvino",
    "tensorrt",
    "tensorrt-rtx",
    "torch",
    "cuda-core",
)
_GOVERNOR = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """How to measure.

    seconds: for each scenario and configuration.
    rate: requests per second in the server scenario, or None to search for the highest that keeps p99_bound.
    batch_wait: the longest that a request waits for others to join its batch.
    threads: None for one per core.
    cv_limit: runs end once their coefficient of variation is within it.
    """

    scenarios: tuple[str, ...] = SCENARIOS
    batch_size: int = BATCH_SIZE
    seconds: float = 6.0
    rate: float | None = None
    p99_bound: float = 100.0
    batch_wait: float = 0.0
    threads: int | None = None
    cold_starts: int = 3
    cv_limit: float = 0.05
    seed: int = 0


class Environment(msgspec.Struct, frozen=True, kw_only=True):
    """Where and with which software the benchmark ran.

    date: UTC, ISO 8601.
    commit: of the source tree that the package runs from, or None for an installed wheel.
    cores: number worth using, by affinity and quota.
    governor: of the cores' frequency, or None where the system does not say.
    libraries: installed ones that time or pixels depend on, with their versions.
    """

    date: str
    version: str
    commit: str | None
    machine: Machine
    cores: int
    governor: str | None
    decoder: str
    libraries: dict[str, str]


class ImageSet(msgspec.Struct, frozen=True, kw_only=True):
    """The images that were timed.

    origin: where they come from.
    generated: whether they were made here and are not the user's.
    given: the number of inputs to choose from.
    images, unreadable: how many of the chosen inputs could be read, and how many could not.
    megapixels, kilobytes: medians.
    """

    name: str
    origin: str
    generated: bool
    given: int
    images: int
    unreadable: int
    megapixels: float
    kilobytes: float


class Configuration(msgspec.Struct, frozen=True, kw_only=True):
    """A bundle on a runtime in a precision.

    calibration_id: None if the bundle has no thresholds, as one whose precision was lowered.
    derived: how its graph was made from the bundle's own, or None if it is the bundle's own.
    """

    name: str
    bundle: str
    bundle_id: str
    calibration_id: str | None = None
    runtime: str
    precision: str
    derived: str | None = None


class Stage(msgspec.Struct, frozen=True, kw_only=True):
    """One stage of a detection.

    ms: wall-clock time per image.
    cores: CPU time over wall-clock time.
    lanes: how many `mdmf detect` runs at once.
    """

    name: str
    ms: Spread
    cores: float
    lanes: int


class StageTable(msgspec.Struct, frozen=True, kw_only=True):
    """Every stage measured alone, and all of them together.

    count: images of a run.
    batch: the most crops given to the engine at once.
    total: sum of the stages' ms.
    explained: total over end to end, above 1 if stages overlap.
    explained_cpu: the same ratio of CPU times.
    limit: the threads with the most work per image (decoding, engine, reduction + write). End to end cannot be faster.
    limit_share: the time that these threads need, over end to end.
    """

    images: str
    count: int
    batch: int
    stages: tuple[Stage, ...]
    end_to_end: Stage
    total: float
    explained: float
    explained_cpu: float
    limit: str
    limit_share: float


class Latency(msgspec.Struct, frozen=True, kw_only=True):
    """Percentiles by nearest rank, None where there are too few samples (statistics.least_samples).

    curve: all percentiles from 0 to 100.
    """

    count: int
    p50: float | None
    p90: float | None
    p95: float | None
    p99: float | None
    max: float
    curve: tuple[float | None, ...]

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Latency:
        """Return the percentiles of one or more latencies."""
        ordered = sorted(1e3 * value for value in seconds)
        curve = tuple(sure_percentile(ordered, percent) for percent in range(101))
        return cls(
            count=len(ordered), p50=curve[50], p90=curve[90], p95=curve[95], p99=curve[99], max=ordered[-1], curve=curve
        )


class SingleStream(msgspec.Struct, frozen=True, kw_only=True):
    """One image after another.

    latency: of all images of all runs.
    medians: of the runs' medians.
    settled: whether the medians vary within cv_limit.
    """

    latency: Latency
    medians: Spread
    settled: bool


class Offline(msgspec.Struct, frozen=True, kw_only=True):
    """All images at once.

    joules: energy of the whole processor per image, or None.
    energy: what that energy covers, or the reason why there is none.
    """

    images_per_second: Spread
    images_per_run: int
    settled: bool
    joules: float | None
    energy: str


class RateTrial(msgspec.Struct, frozen=True, kw_only=True):
    """A rate that was tried.

    p99: None if the trial was given up because the bound was sure to be missed, or had too few requests for it.
    held: whether 99% of the requests kept the bound, and all of them if they are fewer than 100.
    """

    rate: float
    requests: int
    p99: float | None
    held: bool


class Server(msgspec.Struct, frozen=True, kw_only=True):
    """Poisson arrivals.

    rate: requests per second at which latency was measured, or None if no rate keeps the bound.
    bound: None for a fixed rate.
    unserved: requests still waiting when an overloaded run was given up. Latency counts the time they had waited.
    batch: mean number of images served at once.
    note: remarks for the reader.
    """

    rate: float | None
    bound: float | None
    latency: Latency | None = None
    requests: int = 0
    unserved: int = 0
    batch: float | None = None
    trials: tuple[RateTrial, ...]
    note: str


class ColdStart(msgspec.Struct, frozen=True, kw_only=True):
    """Fresh processes, with the files in the system's cache.

    process: from starting a process to its first row.
    importing, opening, first_row: medians of its parts.
    peak_mib: most memory that a process held resident while scoring peak_images, or None where the system does not say.
    """

    process: Spread
    importing: float
    opening: float
    first_row: float
    peak_mib: float | None
    peak_images: int


class Drift(msgspec.Struct, frozen=True, kw_only=True):
    """Rows of the engine that was timed, compared with the first configuration's rows of the same images.

    score_change: the largest, in units of `spread`, the standard deviation of real scores.
    flipped: verdicts on the other side of the threshold, or None without a threshold.
    """

    images: int
    score_change: float
    rank_correlation: float
    flipped: int | None
    spread: float
    note: str


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """All figures of one configuration. Scenarios that were not asked for are None."""

    configuration: Configuration
    stages: tuple[StageTable, ...]
    single_stream: SingleStream | None
    offline: Offline | None
    server: Server | None
    start: ColdStart | None
    drift: Drift | None


class Ratio(msgspec.Struct, frozen=True, kw_only=True):
    """How many times as fast as the first configuration. Above 1 is faster.

    rounds: number of pairs it comes from.
    """

    configuration: str
    against: str
    figure: str
    times: Interval
    rounds: int


class Benchmark(msgspec.Struct, frozen=True, kw_only=True):
    """The whole report."""

    schema_version: int = SCHEMA_VERSION
    environment: Environment
    settings: Settings
    images: tuple[ImageSet, ...]
    results: tuple[Result, ...]
    ratios: tuple[Ratio, ...]
    noise: Noise


def current_environment() -> Environment:
    """Return the environment of this process."""
    from mdmf_deploy.images.decode import decoder_version

    return Environment(
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        version=mdmf_deploy.__version__,
        commit=_commit(),
        machine=look_at_machine(),
        cores=cores(),
        governor=text_of(_GOVERNOR).strip() or None,
        decoder=decoder_version(),
        libraries=_libraries(),
    )


def _libraries() -> dict[str, str]:
    found = {}
    for name in _LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _commit() -> str | None:
    source = Path(mdmf_deploy.__file__).resolve().parent.parent
    if not (source / ".git").exists():
        return None
    # Without its option, git rewrites the checkout's index.
    command = ["git", "--no-optional-locks", "-C", str(source), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
