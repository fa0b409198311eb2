"""The tables of `mdmf evaluate` as lines of text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mdmf_deploy.tasks.evaluate.evaluate import Table
    from mdmf_deploy.tasks.evaluate.groups import GroupFigures
    from mdmf_deploy.tasks.evaluate.metrics import Estimate
    from mdmf_deploy.tasks.evaluate.robustness import SweepResult

# Four figures with their intervals do not fit one terminal line. The first column counts images.
_BLOCKS = (
    (("images", "images"), ("AUROC", "auroc"), ("AP", "ap")),
    (("uncertain", "uncertain"), ("ACC", "acc"), ("TPR", "tpr")),
    (None, ("best ACC", "best_acc"), ("EER", "eer")),
    (None, ("TPR at 1% FPR", "tpr_at_1"), ("TPR at 5% FPR", "tpr_at_5")),
)
_WIDTH = 20


def evaluation_lines(tables: Sequence[Table], swept: SweepResult | None) -> list[str]:
    """Return the tables of all conditions and of the robustness sweep."""
    listed: list[str] = []
    for table in tables:
        listed += [*([""] if listed else []), *table_lines(table)]
    if swept is not None:
        from mdmf_deploy.tasks.evaluate.robustness import lines

        listed += ["", *lines(swept)]
    return listed


def table_lines(table: Table) -> list[str]:
    """Return one condition's tables: by generator, by kind and by size."""
    uncertain = "" if table.real_uncertain is None else f", {table.real_uncertain} uncertain"
    lines = [f"{table.condition}: {table.real_images} real images, FPR {cell(table.fpr)}{uncertain}"]
    for count, *figures in _BLOCKS:
        lines += ["", *_block(table, count, [figure for figure in figures if figure is not None])]
    lines += _groups("kind", table.kinds) + _groups("size", table.sizes)
    if table.unreadable:
        lines.append(f"{len(table.unreadable)} unreadable, left out")
    return lines


def cell(estimate: Estimate | None, missing: str = "- (uncalibrated)") -> str:
    """Return a figure and its interval as text.  missing: what stands for None."""
    if estimate is None:
        return missing
    return f"{estimate.value:.3f} [{estimate.low:.3f}, {estimate.high:.3f}]"


def _block(table: Table, count: tuple[str, str] | None, figures: Sequence[tuple[str, str]]) -> list[str]:
    """Return figures of every generator, of their mean and of all images pooled."""
    width = max(map(len, [*table.generators, "generator"]))
    heading = f"{count[0] if count else '':>9}"
    lines = ["  ".join([f"{'generator':<{width}}", heading, *(f"{title:<{_WIDTH}}" for title, _ in figures)]).rstrip()]
    rows = [(name, getattr(row, count[1]) if count else "", row) for name, row in table.generators.items()]
    for name, number, row in rows:
        lines.append(_line(name, width, number, [cell(getattr(row, field), _missing(field)) for _, field in figures]))
    lines.append(_line("mean", width, "", [cell(table.mean[field], "-") for _, field in figures]))
    pooled = [cell(getattr(table.pooled, field), _missing(field)) for _, field in figures]
    lines.append(_line("pooled", width, getattr(table.pooled, count[1]) if count else "", pooled))
    return lines


def _line(name: str, width: int, number: int | str | None, cells: Sequence[str]) -> str:
    shown = "-" if number is None else number
    return "  ".join([f"{name:<{width}}", f"{shown:>9}", *(f"{text:<{_WIDTH}}" for text in cells)]).rstrip()


def _missing(field: str) -> str:
    """Return why a figure may be missing."""
    if field.startswith("tpr_at"):
        return "- (too few real)"
    return "- (too few)" if field == "best_acc" else "- (uncalibrated)"


def _groups(title: str, groups: Mapping[str, GroupFigures]) -> list[str]:
    """Return the figures by kind or size. AUROC and TPR are means over generators."""
    if not groups:
        return []
    width = max(map(len, [*groups, title]))
    lines = ["", f"{title:<{width}}  {'real':>5}  {'FPR':<{_WIDTH}}  {'generated':>9}  AUROC, mean of generators"]
    for name, group in groups.items():
        count = f"{group.generated_images}{'*' if group.all_generated else ''}"
        auroc = "-" if group.auroc is None else cell(group.auroc)
        fpr = cell(group.fpr, "-")
        lines.append(f"{name:<{width}}  {group.real_images:>5}  {fpr:<{_WIDTH}}  {count:>9}  {auroc}")
    if any(group.all_generated for group in groups.values()):
        lines.append("* all generated images, because none of them is of this kind")
    return lines
