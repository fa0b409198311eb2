"""`mdmf evaluate`: figures on images of known class."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mdmf_deploy.bundle import DEFAULT_BUNDLE
from mdmf_deploy.cli.console import log, log_written, print_json, print_lines, progress
from mdmf_deploy.cli.options import AsJson, BundleOption, Yes, complete_recipe, runtime_option

if TYPE_CHECKING:
    from mdmf_deploy.detection.outputs import Writer
    from mdmf_deploy.detection.rows import Row
    from mdmf_deploy.tasks.evaluate.audit import Audit
    from mdmf_deploy.tasks.evaluate.datasets import KnownImage
    from mdmf_deploy.tasks.evaluate.evaluate import Table
    from mdmf_deploy.tasks.evaluate.metrics import Estimate

_SHOWN = 3
# Columns of -o before those of a row.
_LABELS = ("condition", "generator")


class SplitPart(StrEnum):
    """The parts of a recipe's split, as choices."""

    test = "test"
    validation = "validation"
    train = "train"


def evaluate(
    dataset: Annotated[Path, typer.Argument(help="A folder that contains real/ and generated/<generator>/.")],
    bundle: BundleOption = DEFAULT_BUNDLE,
    runtime: Annotated[str, runtime_option("Runtime to evaluate it on.")] = "auto",
    split: Annotated[
        str | None,
        typer.Option(
            metavar="RECIPE",
            autocompletion=complete_recipe,
            help="The recipe (name or .toml) that trained the bundle. Its split says on which images.",
        ),
    ] = None,
    part: Annotated[SplitPart, typer.Option(help="With --split: the part to evaluate.")] = SplitPart.test,
    condition: Annotated[
        list[str] | None,
        typer.Option(
            help="Change every image in the same way first: jpeg:75, resize:0.5, both as resize:0.5,jpeg:75, or "
            "'as is'. May be repeated, each for a table of its own; by default 'as is'."
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o", "--output", metavar="FILE", help="Also write every row here: .jsonl, .json, .csv or .parquet."
        ),
    ] = None,
    min_auroc: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Exit with 1 if a generator's AUROC is below this, or missing, in any table."),
    ] = None,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Measure a bundle on images of known class.

    Prints AUROC, AP, ACC, TPR and FPR per generator, worst first.

    Brackets hold 95% intervals. ACC, TPR and FPR come from the bundle's own verdicts: the share that is "generated".
    Images that are "uncertain" are counted beside them. AUROC, AP and ACC weigh real and generated images equally.
    Images in the bundle's bank or calibration, and copies, are left out and counted.
    Exit code 3 if some images were unreadable.

    Example: mdmf evaluate data/ --split dinov2s --condition "as is" --condition jpeg:75
    """
    from mdmf_deploy.bundle.anonymous import cannot_be_told
    from mdmf_deploy.bundle.bundle import suggestion
    from mdmf_deploy.bundle.recipe import load_recipe
    from mdmf_deploy.detection.detector import Detector
    from mdmf_deploy.detection.outputs import WRITERS, check_ending, open_output
    from mdmf_deploy.errors import GateFailed, UsageError
    from mdmf_deploy.tasks.evaluate.audit import audit
    from mdmf_deploy.tasks.evaluate.conditions import AS_IS, Condition
    from mdmf_deploy.tasks.evaluate.datasets import find_images
    from mdmf_deploy.tasks.evaluate.evaluate import judge, tabulate, unscored

    if output is not None:
        check_ending(output, WRITERS)
    conditions = [Condition.parse(text) for text in condition or [AS_IS]]
    if split is None and part is not SplitPart.test:
        raise UsageError(f"--part {part} needs --split, which says what the parts are")
    recipe = None if split is None else load_recipe(split)
    fractions = None if recipe is None else recipe.training.split
    tables = []
    with ExitStack() as stack:
        writer = None if output is None else stack.enter_context(open_output(output, _LABELS))
        detector = stack.enter_context(Detector(bundle, runtime=runtime, frames=None))
        samples, audited = audit(find_images(dataset, yes, log), detector.bundle, fractions, part.value)
        trained_by = detector.bundle.manifest.provenance.recipe
        if recipe is not None and recipe.name != trained_by:
            log(
                f"warning: --split {split} is recipe {recipe.name!r}, but this bundle was trained by {trained_by!r}; "
                "images that it was trained on may be judged"
            )
        _log_audit(audited)
        if unrecognised := cannot_be_told(detector.bundle, calibration=True):
            log(unrecognised)
        if detector.caveat:
            log(detector.caveat)
        for chosen in conditions:
            judged = judge(detector, samples, chosen)
            tables.append(tabulate(chosen.name, _written(judged, len(samples), chosen.name, writer)))
        ids = {"bundle_id": detector.bundle.bundle_id, "calibration_id": detector.bundle.calibration_id}
    if as_json:
        print_json({**ids, "audit": audited, "tables": tables})
    else:
        for n, table in enumerate(tables):
            print_lines([""] * (n > 0) + _lines(table))
    if output is not None:
        log_written(f"{len(samples) * len(tables)} rows", output, suggestion("detect", detector.bundle.path))
    worst = min(table.worst_auroc for table in tables)
    if min_auroc is not None and worst < min_auroc:
        raise GateFailed(f"the worst AUROC is {worst:.4f}, below --min-auroc {min_auroc:g}")
    unjudged = [*audited.left_out, *unscored(samples, tables)]
    if min_auroc is not None and unjudged:
        raise GateFailed(f"--min-auroc cannot be judged, for no image is left of: {', '.join(unjudged)}")
    if any(table.unreadable for table in tables):
        raise typer.Exit(3)


def _written(
    judged: Iterable[tuple[KnownImage, Row]], total: int, condition: str, writer: Writer | None
) -> Iterator[tuple[KnownImage, Row]]:
    """Pass the pairs on, write each one's row to the file, and show a bar."""
    with progress(judged, condition, total) as pairs:
        for sample, row in pairs:
            if writer is not None:
                writer.write(row, condition, sample.generator)
            yield sample, row


def _log_audit(audit: Audit) -> None:
    left_out = {
        "in the bundle's bank": audit.in_bank,
        "in its calibration": audit.in_calibration,
        "copies of others": audit.copies,
    }
    for reason, uris in left_out.items():
        if uris:
            more = ", ..." if len(uris) > _SHOWN else ""
            log(f"left out, {reason}: {len(uris)} ({', '.join(uris[:_SHOWN])}{more})")
    if audit.left_out:
        log(f"warning: no image is left of: {', '.join(audit.left_out)}")
    if audit.other_parts:
        log(f"left out, in other parts of the split: {audit.other_parts}")


def _lines(table: Table) -> list[str]:
    uncertain = "" if table.real_uncertain is None else f", {table.real_uncertain} uncertain"
    lines = [f"{table.condition}: {table.real_images} real images, FPR {_cell(table.fpr).strip()}{uncertain}"]
    # Four figures with their intervals do not fit one terminal line.
    lines += ["", *_block(table, ("images", "AUROC", "AP"), ("auroc", "ap"))]
    lines += ["", *_block(table, ("uncertain", "ACC", "TPR"), ("acc", "tpr"))]
    if table.unreadable:
        lines.append(f"{len(table.unreadable)} unreadable, left out")
    return lines


def _block(table: Table, titles: tuple[str, str, str], figures: tuple[str, str]) -> list[str]:
    """Return a count and two figures of every generator, of their mean and of all images pooled."""
    width = max(map(len, [*table.generators, "generator"]))
    count, *names = titles
    lines = [f"{'generator':<{width}} {count:>9}  {names[0]:<20}  {names[1]}"]
    for name, row in [*table.generators.items(), ("pooled", table.pooled)]:
        cells = "  ".join(f"{_cell(getattr(row, figure)):<20}" for figure in figures)
        number = getattr(row, count)
        lines.append(f"{name:<{width}} {'-' if number is None else number:>9}  {cells}".rstrip())
    values = (table.mean[figure] for figure in figures)
    means = "  ".join(f"{'-' if value is None else f'{value:.3f}':<20}" for value in values)
    lines.insert(-1, f"{'mean':<{width}} {'':>9}  {means}".rstrip())
    return lines


def _cell(estimate: Estimate | None) -> str:
    if estimate is None:
        return "- (uncalibrated)"
    return f"{estimate.value:.3f} [{estimate.low:.3f}, {estimate.high:.3f}]"
