"""Lines on logarithmic axes: as a Markdown table with fitted exponents, and as a small SVG."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from common import number, table

TAIL = 3
_COLOURS = ("#0b5fa5", "#d1632a", "#2f8f5b", "#8a5fb0", "#6b6b6b")
_MARKS = "osD^v"

Line = Mapping[int, float]
"""Size -> cost; a line may stop before the others do."""


def exponent(line: Line) -> float:
    """b of cost = a size^b, by least squares over the last three points: small sizes show constant costs."""
    points = sorted(line.items())[-TAIL:]
    sizes, costs = np.log(np.array(points)).T
    return float(np.polyfit(sizes, costs, 1)[0])


def tabulate(lines: Mapping[str, Line], size: str, unit: str) -> str:
    """A row a size, a column a line, and a row of exponents."""
    sizes = sorted({x for line in lines.values() for x in line})
    rows = [
        (f"{x:,}", *(f"{number(line[x])} {unit}".strip() if x in line else "too slow" for line in lines.values()))
        for x in sizes
    ]
    return table([*rows, ("exponent", *(f"{exponent(line):.2f}" for line in lines.values()))], (size, *lines))


def plot(path: Path, lines: Mapping[str, Line], title: str, xlabel: str, ylabel: str) -> None:
    """Write an SVG, the same bytes for the same numbers."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams.update({"svg.hashsalt": "mdmf", "svg.fonttype": "none", "font.family": "sans-serif"})
    from matplotlib import pyplot as plt
    from matplotlib.ticker import LogLocator, NullLocator

    figure, axes = plt.subplots(figsize=(6.4, 4.0), layout="constrained")
    for (name, line), colour, mark in zip(lines.items(), _COLOURS, _MARKS, strict=False):
        xs, ys = zip(*sorted(line.items()), strict=True)
        label = f"{name} ({exponent(line):.2f})"
        axes.plot(xs, ys, color=colour, marker=mark, markersize=5, linewidth=1.6, label=label)
    axes.set(xscale="log", yscale="log", title=title, xlabel=xlabel, ylabel=ylabel)
    ticks = sorted({x for line in lines.values() for x in line})
    axes.set_xticks(ticks, [short(x) for x in ticks])
    axes.set_xticks([], minor=True)
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=20))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter("{x:g}")
    axes.grid(which="major", color="#e3e3e3", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(title="exponent in brackets", frameon=False, fontsize=8, title_fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def short(value: float) -> str:
    """1,048,576 -> 1M."""
    for size, name in ((1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{number(value / size)}{name}"
    return number(value)
