"""Plots of an evaluation: ROC curves, the scores of both classes, and bars for each generator."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mdmf_deploy.tasks.evaluate.comparison import Comparison, Judged
from mdmf_deploy.tasks.evaluate.evaluate import Table
from mdmf_deploy.tasks.evaluate.metrics import Estimate, roc_curve
from mdmf_deploy.tasks.plots import new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's blue and vermilion, which colour-blind eyes can tell apart, and greys.
REAL, GENERATED, QUIET = "#0072B2", "#D55E00", "#8a8a8a"
_GRID = np.linspace(0, 1, 501)
_LONGEST = 28  # characters of a generator's name


@dataclass(frozen=True, slots=True)
class Plot:
    """A plot, its file's name without an ending, and its content in words."""

    name: str
    title: str
    description: str
    figure: Figure


def plots_of(judged: Sequence[Judged], table: Table) -> list[Plot]:
    """Draw the images of one condition and their table.

    Raises ModuleNotFoundError if matplotlib is not installed.
    """
    scored = [pair for pair in judged if pair.row.score is not None]
    comparison = Comparison(scored, 0.0, 0)
    return [_roc(comparison, table), _scores(comparison, table), _bars(table)]


def _roc(comparison: Comparison, table: Table) -> Plot:
    figure = new_figure(6.4, 5.6)
    axes = figure.subplots(gridspec_kw={"left": 0.11, "right": 0.97, "bottom": 0.1, "top": 0.92})
    rates = []
    worst = next(iter(table.generators))
    for name, own in comparison.generated.items():
        fpr, tpr = (values[0] for values in roc_curve(_of(comparison.real_of(name)), _of(own)))
        rates.append(np.interp(_GRID, fpr, tpr))
        if name != worst:
            axes.plot(fpr, tpr, color=QUIET, linewidth=0.7, alpha=0.6)
        else:
            axes.plot(
                fpr, tpr, color=GENERATED, linewidth=1.4, label=_named(f"worst: {name}", table.generators[name].auroc)
            )
    axes.plot(
        _GRID,
        np.mean(rates, axis=0),
        color=REAL,
        linewidth=2.2,
        label=_named("mean of generators", table.mean["auroc"]),
    )
    axes.plot([0, 1], [0, 1], color=QUIET, linewidth=0.8, linestyle=":")
    tpr_mean = table.mean["tpr"]
    if table.fpr is not None and tpr_mean is not None:
        axes.plot([table.fpr.value], [tpr_mean.value], "o", color=REAL, label="the bundle's verdicts")
    axes.set(xlim=(0, 1), ylim=(0, 1.01), xlabel="false positive rate", ylabel="true positive rate")
    axes.set_title(f"ROC by generator ({table.condition})", fontsize=11, loc="left")
    axes.legend(loc="lower right", fontsize=9, frameon=False)
    _plain(axes)
    mean = table.mean["auroc"]
    text = "ROC curves, one for each generator"
    if mean is not None:
        text += f". The mean AUROC is {mean.value:.3f}, the worst is {worst} with {table.worst_auroc:.3f}"
    return Plot("roc", "ROC by generator", text, figure)


def _scores(comparison: Comparison, table: Table) -> Plot:
    figure = new_figure(7.2, 3.8)
    axes = figure.subplots(gridspec_kw={"left": 0.09, "right": 0.97, "bottom": 0.15, "top": 0.88})
    real = _of(comparison.real)
    # Each generator weighs as much as another, whatever its number of images.
    own = [(_of(pairs), np.full(len(pairs), 1 / len(pairs))) for pairs in comparison.generated.values()]
    generated, weights = (np.concatenate(values) for values in zip(*own, strict=True))
    edges = np.histogram_bin_edges(np.concatenate([real, generated]), bins=40).tolist()
    shares: list[tuple[str, str, NDArray[np.float64], NDArray[np.float64]]] = [
        ("real", REAL, real, np.full(len(real), 1 / len(real))),
        ("generated, each generator alike", GENERATED, generated, weights / weights.sum()),
    ]
    for name, colour, values, weight in shares:
        axes.hist(values, edges, weights=weight, color=colour, alpha=0.35)
        axes.hist(values, edges, weights=weight, color=colour, histtype="step", linewidth=1.4, label=name)
    thresholds = thresholds_of([*comparison.real, *(pair for pairs in comparison.generated.values() for pair in pairs)])
    for n, (value, sizes) in enumerate(thresholds.items()):
        axes.axvline(
            value, color="#202020", linewidth=1.2, linestyle=("--", ":", "-.")[n % 3], label=f"threshold, {sizes}"
        )
    axes.set(xlabel="score (squared MMD)", ylabel="share of images")
    axes.set_title(f"Scores ({table.condition})", fontsize=11, loc="left")
    axes.legend(fontsize=8.5, frameon=False)
    _plain(axes)
    text = (
        f"Histograms of the scores of real and generated images. Their medians are {np.median(real):.4f} and "
        f"{_weighted_median(generated, weights):.4f}"
    )
    return Plot("scores", "Scores and thresholds", text, figure)


def _bars(table: Table) -> Plot:
    names = list(table.generators)
    height = 1.3 + 0.24 * len(names)
    figure = new_figure(8.4, height)
    edges = {"left": 0.26, "right": 0.98, "bottom": 0.7 / height, "top": 1 - 0.4 / height, "wspace": 0.12}
    left, right = figure.subplots(1, 2, sharey=True, gridspec_kw=edges)
    _bar(left, table, lambda name: table.generators[name].auroc, table.mean["auroc"], "AUROC")
    _bar(right, table, lambda name: table.generators[name].tpr, table.mean["tpr"], "called generated")
    if table.fpr is not None:
        right.set_xlabel(f"of real images, dotted: {table.fpr.value:.3f}", fontsize=9, color=GENERATED)
        right.axvline(table.fpr.value, color=GENERATED, linewidth=1.4, linestyle=":")
    else:
        right.text(0.5, 0.5, "uncalibrated", transform=right.transAxes, ha="center", color=QUIET)
    left.set_yticks(range(len(names)), [_shortened(name) for name in names], fontsize=8.5)
    left.invert_yaxis()
    text = "AUROC and TPR of each generator with 95% intervals, the worst first: " + ", ".join(
        f"{name} {figures.auroc.value:.3f}" for name, figures in table.generators.items()
    )
    return Plot("generators", "Generators, the worst first", text, figure)


def _bar(
    axes: Axes, table: Table, figure_of: Callable[[str], Estimate | None], mean: Estimate | None, title: str
) -> None:
    for n, name in enumerate(table.generators):
        found = figure_of(name)
        if found is not None:
            axes.barh(n, found.value, color=REAL, alpha=0.45, height=0.7)
            axes.plot([found.low, found.high], [n, n], color="#202020", linewidth=1.2)
    if mean is not None:
        axes.axvline(mean.value, color=REAL, linewidth=1)
    axes.set_xlim(0, 1)
    heading = title if mean is None else f"{title}, mean {mean.value:.3f}"
    axes.set_title(heading, fontsize=10, loc="left")
    _plain(axes)


def thresholds_of(judged: Sequence[Judged]) -> dict[float, str]:
    """Return the thresholds that judged these images, each with the names of its size groups."""
    found: dict[float, list[str]] = {}
    for pair in judged:
        if pair.row.threshold is not None:
            groups = found.setdefault(pair.row.threshold, [])
            if pair.row.size_group is not None and pair.row.size_group not in groups:
                groups.append(pair.row.size_group)
    return {value: ", ".join(groups) or "all sizes" for value, groups in sorted(found.items())}


def _of(pairs: Sequence[Judged]) -> NDArray[np.float64]:
    return np.array([pair.row.score for pair in pairs], np.float64)


def _weighted_median(values: NDArray[np.float64], weights: NDArray[np.float64]) -> float:
    order = np.argsort(values)
    return float(values[order][np.searchsorted(np.cumsum(weights[order]), weights.sum() / 2)])


def _named(name: str, found: Estimate | None) -> str:
    return _shortened(name) if found is None else f"{_shortened(name)} ({found.value:.3f})"


def _shortened(name: str) -> str:
    # A dollar sign would begin a formula.
    text = name if len(name) <= _LONGEST else name[: _LONGEST - 3] + "..."
    return text.replace("$", r"\$")


def _plain(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.2)
    axes.set_axisbelow(True)
