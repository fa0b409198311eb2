"""What a benchmark says, typed; the JSON report is these, as they are.  Times are in milliseconds unless named."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import msgspec

from mdmf_deploy.hardware.host import Machine, cores, look_at_machine, text_of
from mdmf_deploy.tasks.benchmark import BATCH_SIZE, SCENARIOS
from mdmf_deploy.tasks.benchmark.noise import Noise
from mdmf_deploy.tasks.benchmark.statistics import Interval, Spread, percentile

SCHEMA_VERSION = 1


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """seconds: for each scenario and configuration.  rate: requests a second, None to search for the highest.

    p99_bound: for that search.  batch_wait: the longest that a request waits for others to join its batch.
    cv_limit: coefficient of variation of the runs at which they end.  threads: None for one a core.
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


class ImageSet(msgspec.Struct, frozen=True, kw_only=True):
    """origin: where the images come from; generated: not from the user.  given: all that there are to choose from.

    images, unreadable: of those chosen.  megapixels, kilobytes: medians.
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
    """What is compared.  derived: how its graph was made from the bundle's own; None where it is that one."""

    name: str
    bundle: str
    bundle_id: str
    runtime: str
    precision: str
    derived: str | None = None


class Stage(msgspec.Struct, frozen=True, kw_only=True):
    """ms: wall-clock time an image.  cores: CPU time over wall-clock time.  lanes: how many run at once in detect."""

    name: str
    ms: Spread
    cores: float
    lanes: int


class StageTable(msgspec.Struct, frozen=True, kw_only=True):
    """Every stage measured on its own, and all of them together.

    count: images of a run.  batch: those given to the engine at once.  total: the stages' ms, summed.
    explained: total over end to end, above 1 where stages overlap; explained_cpu: the same of CPU time.
    limit: the thread, or threads, that have most to do for an image (decoding, engine, reduction + write), than which
    end to end could not be faster; limit_share: the time they need over end to end.
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
    """Percentiles by nearest rank.  curve: the percentiles 0 to 100, all of them."""

    count: int
    p50: float
    p90: float
    p95: float
    p99: float
    max: float
    curve: tuple[float, ...]

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Latency:
        """Of these latencies, at least one."""
        ordered = sorted(1e3 * value for value in seconds)
        curve = tuple(percentile(ordered, percent) for percent in range(101))
        return cls(
            count=len(ordered), p50=curve[50], p90=curve[90], p95=curve[95], p99=curve[99], max=ordered[-1], curve=curve
        )


class SingleStream(msgspec.Struct, frozen=True, kw_only=True):
    """One image after another.  latency: of all runs.  medians: of the runs' medians; settled: within cv_limit."""

    latency: Latency
    medians: Spread
    settled: bool


class Offline(msgspec.Struct, frozen=True, kw_only=True):
    """All images at once.  joules: of the whole processor, an image; energy: why there is none, or what it covers."""

    images_per_second: Spread
    images_per_run: int
    settled: bool
    joules: float | None
    energy: str


class Trial(msgspec.Struct, frozen=True, kw_only=True):
    """A rate that was tried.  p99: None where it was given up, sure to be missed."""

    rate: float
    requests: int
    p99: float | None
    held: bool


class Server(msgspec.Struct, frozen=True, kw_only=True):
    """Poisson arrivals.  rate: what latency was measured at, None where no rate keeps the bound.

    bound: None for a fixed rate.  unserved: still waiting when an overloaded run was given up; their latency so far
    counts.  batch: mean images served at once.  note: what else to know.
    """

    rate: float | None
    bound: float | None
    latency: Latency | None
    requests: int
    unserved: int
    batch: float | None
    trials: tuple[Trial, ...]
    note: str


class Start(msgspec.Struct, frozen=True, kw_only=True):
    """Fresh processes, the files in the system's cache.  process: from starting it to its first row.

    peak_mib: the most memory that one held resident while scoring all images; None where the system does not say.
    """

    process: Spread
    importing: float
    opening: float
    first_row: float
    peak_mib: float | None
    peak_images: int


class Drift(msgspec.Struct, frozen=True, kw_only=True):
    """Rows of the very engine that was timed, against the first configuration's, on the same images.

    score_change: largest, in units of spread, the standard deviation of real scores.  flipped: verdicts on the other
    side of the threshold; None without one.
    """

    images: int
    score_change: float
    rank_correlation: float
    flipped: int | None
    spread: float
    note: str


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """All figures of one configuration; None for what was not asked for."""

    configuration: Configuration
    stages: tuple[StageTable, ...]
    single_stream: SingleStream | None
    offline: Offline | None
    server: Server | None
    start: Start | None
    drift: Drift | None


class Ratio(msgspec.Struct, frozen=True, kw_only=True):
    """How many times as fast as the first configuration; above 1 is faster.  rounds: pairs it comes from."""

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


_LIBRARIES = ("numpy", "pillow", "onnxruntime", "onnxruntime-gpu", "openvino", "tensorrt", "tensorrt-rtx", "cuda-core")
_GOVERNOR = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")


class Environment(msgspec.Struct, frozen=True, kw_only=True):
    """date: UTC, ISO 8601.  commit: of the source tree the package runs from, None for an installed wheel.

    cores: worth using, by affinity and quota.  governor: of the cores' frequency, None where the system does not say.
    libraries: those installed that time or pixels depend on.
    """

    date: str
    version: str
    commit: str | None
    machine: Machine
    cores: int
    governor: str | None
    decoder: str
    libraries: dict[str, str]


def look_around() -> Environment:
    from mdmf_deploy import __version__
    from mdmf_deploy.images.decode import decoder_version

    return Environment(
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        version=__version__,
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
    source = Path(__file__).resolve().parents[3]
    if not (source / ".git").exists():
        return None
    command = ["git", "-C", str(source), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
