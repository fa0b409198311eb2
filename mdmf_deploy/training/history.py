"""What a training run leaves to look at: history.csv and history.png."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

Record = dict[str, float]


def write_csv(path: Path, history: Sequence[Record]) -> None:
    """One line a logged step; columns in order of first appearance, empty where not measured."""
    columns = list(dict.fromkeys(name for record in history for name in record))
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(history)


def write_plot(path: Path, history: Sequence[Record], title: str) -> None:
    """Loss, test power and validation AUROC over the steps, as a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.2), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, 3)
    names = {name for record in history for name in record}
    curves = [
        ("loss", ["loss"]),
        ("test power", ["power"]),
        ("validation AUROC", sorted(name for name in names if name.startswith("auroc_"))),
    ]
    for panel, (heading, columns) in zip(panels, curves, strict=True):
        for column in columns:
            points = [(record["step"], record[column]) for record in history if column in record]
            panel.plot([x for x, _ in points], [y for _, y in points], label=column.removeprefix("auroc_"), linewidth=1)
        panel.set_title(heading, fontsize=10)
        panel.set_xlabel("step")
        panel.grid(alpha=0.3)
        if len(columns) > 1:
            panel.legend(fontsize=7)
    figure.suptitle(title, fontsize=10)
    figure.savefig(path, dpi=120)
