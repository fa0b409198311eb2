"""Tools of the benchmarks: alternating timings, ratios of paired rounds, the machine in a line, Markdown tables."""

from __future__ import annotations

import os
import shlex
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata

import numpy as np

from mdmf_deploy.bundle.bank import Bank, BankSource
from mdmf_deploy.hardware.host import look_at_machine
from mdmf_deploy.mmd.reference import bank_self_term

SELF_TERM_POINTS = 4096
HEADINGS = ("what", "figure", "aim", "ratio")


@dataclass(frozen=True, slots=True)
class Timing:
    """The seconds of every round, in order. Round n of one timing ran beside round n of the others."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        return float(np.median(self.seconds))

    @property
    def min(self) -> float:
        return min(self.seconds)

    @property
    def max(self) -> float:
        return max(self.seconds)

    @property
    def quartiles(self) -> tuple[float, float]:
        low, high = np.quantile(self.seconds, (0.25, 0.75))
        return float(low), float(high)


@dataclass(frozen=True, slots=True)
class Ratio:
    """The median, smallest and largest of the rounds' own ratios."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{number(self.median)} ({number(self.low)} to {number(self.high)})"


PAUSE = 0.1


def interleaved(
    work: Mapping[str, Callable[[], object]], rounds: int, *, warmup: int = 1, repeats: int = 1
) -> dict[str, Timing]:
    """Time every callable once a round, each round in another order, so that a busy moment hits all of them alike.

    warmup: untimed rounds before.
    repeats: calls that make up one time, for work of microseconds.
    There is a pause between two callables, because threads of OpenBLAS and OpenMP keep spinning for tens of
    milliseconds after their work and would take a core from the next one.
    """
    names = list(work)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for n in range(-warmup, rounds):
        turn = n % len(names)
        order = names[turn:] + names[:turn]
        for name in order if n % 2 else reversed(order):
            call = work[name]
            time.sleep(PAUSE)
            start = time.perf_counter()
            for _ in range(repeats):
                call()
            if n >= 0:
                seconds[name].append((time.perf_counter() - start) / repeats)
    return {name: Timing(tuple(times)) for name, times in seconds.items()}


def ratio(slower: Timing, faster: Timing) -> Ratio:
    """Return how many times as long the first took, round by round. Above 1, the second is faster."""
    ratios = np.divide(slower.seconds, faster.seconds)
    return Ratio(float(np.median(ratios)), float(ratios.min()), float(ratios.max()))


def machine(*packages: str) -> str:
    """Describe this machine, its load, and the versions of Python, NumPy and these packages in one line."""
    m = look_at_machine()
    features = ", ".join(m.cpu_features)
    memory = "" if m.memory is None else f", {m.memory / 2**30:.0f} GiB"
    versions = ", ".join(f"{name} {_version(name)}" for name in ("numpy", *packages))
    load = f"; load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    return f"{m.cpu} ({features}), {m.cores} cores{memory}, {m.system.split()[0]}; {m.python}, {versions}{load}"


def header(*packages: str) -> None:
    """Print the command that is running, and the machine."""
    print(f"`python {shlex.join(sys.argv)}`\n\n{machine(*packages)}\n", flush=True)


def table(rows: Iterable[Sequence[object]], headings: Sequence[str] = HEADINGS) -> str:
    """Return a Markdown table. Rows shorter than the headings are filled up with empty cells."""
    lines = [f"| {' | '.join(headings)} |", "|---" * len(headings) + "|"]
    for row in rows:
        cells = [*map(str, row), *[""] * (len(headings) - len(row))]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def number(value: float) -> str:
    """Format with three significant digits and without an exponent."""
    return f"{float(f'{value:.3g}'):.15g}"


def ms(timing: Timing, share: float = 1.0) -> str:
    """Format the median and range in milliseconds, each times `share` (say 1 / images)."""
    middle, low, high = (1e3 * share * value for value in (timing.median, timing.min, timing.max))
    return f"{number(middle)} ms ({number(low)} to {number(high)})"


def per_second(timing: Timing, count: int) -> str:
    """Format the median and range of a rate: `count` things in each time."""
    middle, low, high = (count / value for value in (timing.median, timing.max, timing.min))
    return f"{number(middle)}/s ({number(low)} to {number(high)})"


def random_bank(
    points: int, width: int, *, generator: np.random.Generator | None = None, sigma: float | None = None
) -> Bank:
    """Draw normal signatures, (points, width), with the median distance as the bandwidth unless sigma is given.

    The self term is that of the first SELF_TERM_POINTS: it takes hours at a million, and every reduction only adds it.
    """
    generator = generator or np.random.default_rng(0)
    signatures = generator.standard_normal((points, width), np.float32)
    sigma = sigma or (2.0 * width) ** 0.5
    few = signatures[:SELF_TERM_POINTS]
    return Bank(
        signatures=signatures,
        weights=np.full(points, 1 / points),
        sigma=sigma,
        self_term=bank_self_term(few, np.full(len(few), 1 / len(few)), sigma),
        source=np.zeros(points, np.int32),
        sources=(BankSource("drawn", "0" * 64),),
        model_sha256="0" * 64,
    )


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
