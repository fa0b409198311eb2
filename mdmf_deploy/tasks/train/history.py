"""The history of a training run as a table and a plot."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from mdmf_deploy.files import atomic_file
from mdmf_deploy.tasks.plots import new_figure
from mdmf_deploy.tasks.train.validate import Record
from mdmf_deploy.text import cell


def write_csv(path: Path, history: Sequence[Record]) -> None:
    """Write one line per logged step. Columns come in order of first appearance, and are empty if not measured."""
    columns = list(dict.fromkeys(name for record in history for name in record))
    with atomic_file(path, durable=False) as scratch, scratch.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(map(cell, columns))  # some hold names of folders
        writer.writerows([record.get(name, "") for name in columns] for record in history)


def write_plot(path: Path, history: Sequence[Record], title: str) -> None:
    """Plot loss, test power, validation AUROC and gates over the steps as a PNG."""
    figure = new_figure(13, 3.2)
    # Fixed margins: to compute them takes three times as long as to draw.
    panels = figure.subplots(
        1, 4, gridspec_kw={"left": 0.04, "right": 0.99, "bottom": 0.15, "top": 0.82, "wspace": 0.2}
    )
    names = {name for record in history for name in record}
    curves = [
        ("loss", ["loss"]),
        ("test power", ["power"]),
        ("validation AUROC", sorted(name for name in names if name.startswith("auroc_"))),
        ("gates", sorted(name for name in names if name.startswith(("mean_kernel", "self_rank", "fpr_")))),
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
    with atomic_file(path, durable=False) as scratch:
        figure.savefig(scratch, format="png", dpi=120)
