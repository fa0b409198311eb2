"""The parts of an evaluation's report that stand before its rows: figures, leaks, the robustness sweep."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from mdmf_deploy.cli.evaluate_tables import cell

if TYPE_CHECKING:
    from mdmf_deploy.tasks.evaluate.audit import Audit
    from mdmf_deploy.tasks.evaluate.evaluate import Table
    from mdmf_deploy.tasks.evaluate.groups import GroupFigures
    from mdmf_deploy.tasks.evaluate.leaks import LeakAudit
    from mdmf_deploy.tasks.evaluate.plots import Plot
    from mdmf_deploy.tasks.evaluate.robustness import SweepResult
    from mdmf_deploy.tasks.report.page import PageTable
    from mdmf_deploy.tasks.report.report import Section

# Eight figures with their intervals are too wide for one table.
_FIGURES = (
    {"auroc": "AUROC", "ap": "AP", "eer": "EER", "best_acc": "best ACC"},
    {"acc": "ACC", "tpr": "TPR", "tpr_at_1": "TPR at 1% FPR", "tpr_at_5": "TPR at 5% FPR"},
)
_SHOWN = 5


def figures_section(table: Table, plots: Sequence[Plot], audited: Audit) -> Section:
    """Return one condition's figures.  plots: PNGs are made of them."""
    from mdmf_deploy.tasks.evaluate.evaluate import FEW
    from mdmf_deploy.tasks.plots import encoded
    from mdmf_deploy.tasks.report.report import PagePicture, Section

    warnings = []
    if table.few:
        warnings.append(
            f"These generators have fewer than {FEW} images, so their figures say little: {_some(table.few)}."
        )
    if table.unreadable:
        warnings.append(f"{len(table.unreadable)} files could not be read and are left out of the figures.")
    return Section(
        title=f"Figures, {table.condition}",
        paragraphs=tuple(_paragraphs(table, audited)),
        tables=tuple(_tables(table)),
        pictures=[PagePicture(encoded(one.figure, "png"), one.description, one.title) for one in plots],
        warnings=warnings,
    )


def leaks_section(leaks: LeakAudit) -> Section:
    """Return what the audit of leaks says, with its warning first."""
    from mdmf_deploy.tasks.evaluate.leaks import lines
    from mdmf_deploy.tasks.report.report import Section

    said = [line.strip().removeprefix("warning: ").removeprefix("leaks: ") for line in lines(leaks)]
    sentences = [f"{line[:1].upper()}{line[1:]}{'' if line.endswith('.') else '.'}" for line in said]
    warns = leaks.verdict == "leak"
    return Section(
        title="Leaks", paragraphs=sentences[1:] if warns else sentences, warnings=sentences[:1] if warns else ()
    )


def sweep_section(swept: SweepResult) -> Section:
    """Return the tables and the picture of the robustness sweep."""
    from mdmf_deploy.errors import RuntimeUnavailable
    from mdmf_deploy.tasks.evaluate.robustness_plot import picture
    from mdmf_deploy.tasks.report.page import PageTable
    from mdmf_deploy.tasks.report.report import PagePicture, Section

    tables = []
    for axis in swept.axes:
        rows = []
        for step in axis.steps:
            table = swept.tables[step.condition]
            paper = "-" if step.paper is None else f"{step.paper:.3f}"
            rows.append((step.label, cell(table.mean["auroc"], "-"), paper, cell(table.fpr, "-")))
        tables.append(PageTable(("", "AUROC, mean of generators", "the paper's", "FPR"), rows, axis.title))
    try:
        text = "AUROC and FPR on each axis of the sweep. The tables below hold the same figures."
        pictures = [PagePicture(picture(swept, "png"), text, "Robustness")]
    except RuntimeUnavailable:
        pictures = []
    said = "The paper's figures are of ViT-L/14 on its ImageNet benchmark, so compare falls, not heights."
    return Section(title="Robustness", paragraphs=(said,), tables=tables, pictures=pictures)


def _paragraphs(table: Table, audited: Audit) -> Iterator[str]:
    yield (
        f"{table.real_images} real images, {table.pooled.images} generated ones of {len(table.generators)} generators. "
        f"Of the real images, {cell(table.fpr)} are called generated (FPR). Brackets hold 95% intervals."
    )
    left_out = len(audited.in_bank) + len(audited.in_calibration)
    if left_out:
        yield f"{left_out} images are left out, because they are in the bundle's bank or calibration."
    if audited.copies:
        yield f"{len(audited.copies)} images are left out, because they are copies of others."


def _tables(table: Table) -> Iterator[PageTable]:
    from mdmf_deploy.tasks.report.page import PageTable

    for n, figures in enumerate(_FIGURES):
        rows = [
            (name, str(row.images), *(cell(getattr(row, field), "-") for field in figures))
            for name, row in [*table.generators.items(), ("pooled", table.pooled)]
        ]
        rows.insert(-1, ("mean", "", *(cell(table.mean[field], "-") for field in figures)))
        caption = "By generator, lowest AUROC first" if n == 0 else "By generator, rates at thresholds"
        yield PageTable(("generator", "images", *figures.values()), rows, caption)
    for title, groups in (("By kind", table.kinds), ("By size", table.sizes)):
        if groups:
            yield PageTable(("", "real", "FPR", "generated", "AUROC", "TPR"), _group_rows(groups), title)


def _group_rows(groups: Mapping[str, GroupFigures]) -> list[tuple[str, ...]]:
    return [
        (
            name,
            str(group.real_images),
            cell(group.fpr, "-"),
            f"{group.generated_images}{' (of all kinds)' if group.all_generated else ''}",
            cell(group.auroc, "-"),
            cell(group.tpr, "-"),
        )
        for name, group in groups.items()
    ]


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
