"""The picture of a robustness sweep: for each axis a panel of AUROC, beside the paper's points, and one of FPR."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from mdmf_deploy.detection.outputs import check_ending, open_report
from mdmf_deploy.errors import RuntimeUnavailable, install
from mdmf_deploy.tasks.evaluate.conditions import AS_IS
from mdmf_deploy.tasks.evaluate.evaluate import Table
from mdmf_deploy.tasks.evaluate.metrics import Estimate
from mdmf_deploy.tasks.evaluate.robustness import Axis, SweepResult
from mdmf_deploy.tasks.plots import FORMATS, encoded, new_figure

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLUMNS = 3
# Okabe and Ito's colours, which colour-blind eyes can tell apart, and a grey.
_OURS, _WORST, _PAPER, _FPR = "#0072B2", "#56B4E9", "#555555", "#D55E00"
# Inches. A block is an axis: its title, a panel of AUROC, a panel of FPR, and the labels of the steps.
_WIDTH, _TITLE, _UPPER, _BETWEEN, _LOWER, _LABELS = 2.7, 0.35, 1.6, 0.12, 1.0, 0.35
_BLOCK = _TITLE + _UPPER + _BETWEEN + _LOWER + _LABELS
_LEFT, _GAP, _RIGHT, _CAPTION = 0.6, 0.3, 0.1, 0.85

Curve = Callable[[Table], Estimate | None]


def write_picture(path: Path, result: SweepResult) -> None:
    """Write the picture. The path's ending, .svg or .png, names the format.

    Raises UsageError for another ending or a place that cannot be written to, RuntimeUnavailable without matplotlib.
    """
    ending = check_ending(path, [f".{name}" for name in FORMATS])
    with open_report(path) as write:
        write(picture(result, ending[1:]))


def picture(result: SweepResult, format: str) -> bytes:
    """Return the picture as the bytes of a file.  format: "svg" or "png".

    Raises RuntimeUnavailable without matplotlib.
    """
    columns = min(_COLUMNS, len(result.axes))
    rows = -(-len(result.axes) // columns)
    # The legend takes three columns, however few the axes are.
    width = _LEFT + _COLUMNS * _WIDTH + (_COLUMNS - 1) * _GAP + _RIGHT
    height = rows * _BLOCK + _CAPTION
    try:
        figure = new_figure(width, height)
    except ModuleNotFoundError as error:
        raise RuntimeUnavailable(f"a picture needs {error.name}; run: {install('evaluate')}") from error
    lowest, highest = _range(result.tables)
    for n, (axis, (upper, lower)) in enumerate(zip(result.axes, _panels(figure, len(result.axes)), strict=True)):
        _draw_auroc(upper, axis, result.tables)
        _curve(lower, axis, result.tables, _fpr, _FPR, "FPR at the shipped threshold, 95% interval")
        upper.set_ylim(lowest - 0.02, 1.02)
        lower.set_ylim(-0.03 * highest, 1.03 * highest)
        upper.set_title(axis.title, fontsize=9)
        _settle(upper, axis, None if n % _COLUMNS else "AUROC", labelled=False)
        _settle(lower, axis, None if n % _COLUMNS else "FPR", labelled=True)
    _legend(figure)
    figure.text(_LEFT / width, 0.1 / height, _caption(result), fontsize=7, color="#444444")
    return encoded(figure, format)


def _panels(figure: Figure, count: int) -> Iterator[tuple[Axes, Axes]]:
    """Yield the panels of each axis, upper and lower, row by row."""
    width, height = figure.get_size_inches()
    for n in range(count):
        left = _LEFT + (n % _COLUMNS) * (_WIDTH + _GAP)
        top = height - (n // _COLUMNS) * _BLOCK - _TITLE
        places = ((top - _UPPER, _UPPER), (top - _UPPER - _BETWEEN - _LOWER, _LOWER))
        upper, lower = (
            figure.add_axes((left / width, bottom / height, _WIDTH / width, tall / height)) for bottom, tall in places
        )
        yield upper, lower


def _legend(figure: Figure) -> None:
    """Name each curve once, below the panels."""
    named: dict[str, Artist] = {}
    for panel in figure.axes:
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True):
            named.setdefault(label, handle)
    width, height = figure.get_size_inches()
    figure.legend(
        list(named.values()),
        list(named),
        loc="lower left",
        bbox_to_anchor=(_LEFT / width - 0.01, 0.3 / height),
        borderaxespad=0,
        ncols=2,
        frameon=False,
        fontsize=8,
    )


def _range(tables: dict[str, Table]) -> tuple[float, float]:
    """Return the lowest AUROC and the highest FPR to draw, which all panels share."""
    aurocs = [figures.auroc.value for table in tables.values() for figures in table.generators.values()]
    aurocs += [one.low for table in tables.values() if (one := _auroc(table)) is not None]
    rates = [table.fpr.high for table in tables.values() if table.fpr is not None]
    return min(0.5, *aurocs), max([0.1, *rates])


def _draw_auroc(panel: Axes, axis: Axis, tables: dict[str, Table]) -> None:
    panel.axhline(0.5, color="#999999", linewidth=0.8, linestyle=":")
    _curve(panel, axis, tables, _auroc, _OURS, "AUROC, mean of generators, 95% interval")
    worst = [min(one.auroc.value for one in tables[step.condition].generators.values()) for step in axis.steps]
    panel.plot(range(len(worst)), worst, color=_WORST, linewidth=1, marker=".", label="AUROC, worst generator")
    paper = [(n, step.paper) for n, step in enumerate(axis.steps) if step.paper is not None]
    if paper:
        places, values = [n for n, _ in paper], [value for _, value in paper]
        label = "AUROC in the paper: ViT-L/14, its ImageNet generators"
        [line] = panel.plot(places, values, "D", color=_PAPER, markersize=4.5, linewidth=1, label=label)
        line.set(markerfacecolor="white", linestyle=(0, (1, 3)))


def _curve(panel: Axes, axis: Axis, tables: dict[str, Table], figure: Curve, colour: str, label: str) -> None:
    found = [(n, one) for n, step in enumerate(axis.steps) if (one := figure(tables[step.condition])) is not None]
    if not found:
        panel.text(0.5, 0.5, "no verdicts", transform=panel.transAxes, ha="center", va="center", fontsize=8)
        return
    places = [n for n, _ in found]
    low, high = [one.low for _, one in found], [one.high for _, one in found]
    panel.fill_between(places, low, high, color=colour, alpha=0.15, linewidth=0)
    panel.plot(places, [one.value for _, one in found], "o-", color=colour, markersize=4, linewidth=1.6, label=label)


def _settle(panel: Axes, axis: Axis, name: str | None, labelled: bool) -> None:
    """Set the grid and the labels.  name: of the vertical axis. None means that the panel to the left has them."""
    panel.set_xticks(range(len(axis.steps)), [step.label if labelled else "" for step in axis.steps])
    panel.set_xlim(-0.4, len(axis.steps) - 0.6)
    panel.tick_params(labelsize=8, length=2, labelleft=name is not None)
    panel.set_ylabel(name or "", fontsize=9)
    panel.grid(color="#e6e6e6", linewidth=0.7)
    panel.set_axisbelow(True)
    panel.spines[["top", "right"]].set_visible(False)


def _auroc(table: Table) -> Estimate | None:
    return table.mean["auroc"]


def _fpr(table: Table) -> Estimate | None:
    return table.fpr


def _caption(result: SweepResult) -> str:
    first = result.tables.get(AS_IS) or next(iter(result.tables.values()))
    generated = sum(figures.images for figures in first.generators.values())
    settings = result.settings
    return (
        f"{first.real_images} real images and {generated} of {len(first.generators)} generators. Bundle "
        f"{settings.bundle_id[:12]}, {settings.runtime} {settings.precision}. The paper has other images and a larger "
        "backbone: compare how far curves fall."
    )
