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
from mdmf_deploy.cli.evaluate_tables import table_lines
from mdmf_deploy.cli.options import AsJson, BundleOption, Yes, complete_recipe, runtime_option
from mdmf_deploy.images.limits import FRAMES, MOST_FRAMES

if TYPE_CHECKING:
    from mdmf_deploy.detection.detector import Detector
    from mdmf_deploy.detection.outputs import Writer
    from mdmf_deploy.detection.rows import Row
    from mdmf_deploy.tasks.evaluate.audit import Audit
    from mdmf_deploy.tasks.evaluate.comparison import Judged
    from mdmf_deploy.tasks.evaluate.conditions import Condition
    from mdmf_deploy.tasks.evaluate.datasets import KnownImage
    from mdmf_deploy.tasks.evaluate.evaluate import Table

_SHOWN = 3
# Columns of -o before those of a row.
_LABELS = ("condition", "generator", "kind", "compared_with")


class SplitPart(StrEnum):
    """The parts of a recipe's split, as choices."""

    test = "test"
    validation = "validation"
    train = "train"


def evaluate(
    dataset: Annotated[Path, typer.Argument(help="A folder of labelled images, or a .csv or .json list (see below).")],
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
    plots: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Draw ROC curves, scores and generators here, for the first condition."),
    ] = None,
    tune_on: Annotated[
        Path | None,
        typer.Option(
            metavar="DATASET",
            help="Find the threshold of `best ACC` on this data set; by default on the other half of the images.",
        ),
    ] = None,
    allow_overlap: Annotated[
        bool,
        typer.Option(
            "--allow-overlap", help="Leave out images of the bundle's bank or calibration, where they are refused."
        ),
    ] = False,
    frames: Annotated[
        int, typer.Option(min=1, max=MOST_FRAMES, help="Frames of a video, evenly over its length.")
    ] = FRAMES,
    min_auroc: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Exit with 1 if a generator's AUROC is below this, or missing, in any table."),
    ] = None,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Measure a bundle on images and videos of known class.

    DATASET is a folder with real/ and generated/GENERATOR/, GENERATOR/0_real and 1_fake, or GENERATOR/nature and ai. Or
    it is a list with the columns path, label and perhaps generator.

    Prints figures per generator, worst AUROC first, then by kind and size. Brackets hold 95% intervals. ACC, TPR and
    FPR come from the bundle's own verdicts: the share that is "generated". Images that are "uncertain" are counted
    beside them. AUROC, AP, ACC and EER weigh real and generated images equally. Exit code 3 if some images were
    unreadable.

    Example: mdmf evaluate data/ --split dinov2s --condition "as is" --condition jpeg:75
    """
    from mdmf_deploy.bundle.anonymous import cannot_be_told
    from mdmf_deploy.bundle.bundle import suggestion
    from mdmf_deploy.bundle.recipe import load_recipe
    from mdmf_deploy.detection.detector import Detector
    from mdmf_deploy.detection.outputs import WRITERS, check_ending, open_output
    from mdmf_deploy.errors import GateFailed, UsageError
    from mdmf_deploy.tasks.evaluate.audit import audit, refuse_overlap
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
    tables: list[Table] = []
    rows = 0
    with ExitStack() as stack:
        writer = None if output is None else stack.enter_context(open_output(output, _LABELS))
        folder = None if plots is None else _plot_folder(plots)
        detector = stack.enter_context(Detector(bundle, runtime=runtime, frames=frames))
        samples, audited = audit(find_images(dataset, yes, log), detector.bundle, fractions, part.value)
        if not allow_overlap:
            refuse_overlap(audited)
        trained_by = detector.bundle.manifest.provenance.recipe
        if recipe is not None and recipe.name != trained_by:
            log(
                f"warning: --split {split} is recipe {recipe.name!r}, but this bundle was trained by {trained_by!r}; "
                "images that it was trained on may be judged"
            )
        log_audit(audited)
        if unrecognised := cannot_be_told(detector.bundle, calibration=True):
            log(unrecognised)
        if detector.caveat:
            log(detector.caveat)
        threshold = None if tune_on is None else _tuned(detector, tune_on, samples, yes)
        for chosen in conditions:
            changed = _changeable(samples, chosen)
            rows += len(changed)
            judged = list(_written(judge(detector, changed, chosen), len(changed), chosen.name, writer))
            tables.append(tabulate(chosen.name, judged, threshold=threshold))
            _warn_of_few(tables[-1])
            if folder is not None and len(tables) == 1:
                _draw(folder, judged, tables[0])
        ids = {"bundle_id": detector.bundle.bundle_id, "calibration_id": detector.bundle.calibration_id}
    if as_json:
        print_json({**ids, "audit": audited, "tables": tables})
    else:
        for n, table in enumerate(tables):
            print_lines([""] * (n > 0) + table_lines(table))
    if output is not None:
        log_written(f"{rows} rows", output, suggestion("detect", detector.bundle.path))
    worst = min(table.worst_auroc for table in tables)
    if min_auroc is not None and worst < min_auroc:
        raise GateFailed(f"the worst AUROC is {worst:.4f}, below --min-auroc {min_auroc:g}")
    unjudged = [*audited.left_out, *unscored(samples, tables)]
    if min_auroc is not None and unjudged:
        raise GateFailed(f"--min-auroc cannot be judged, for no image is left of: {', '.join(unjudged)}")
    if any(table.unreadable for table in tables):
        raise typer.Exit(3)


def _tuned(detector: Detector, dataset: Path, samples: Iterable[KnownImage], yes: bool) -> float:
    """Return the best threshold of another data set. Raises UsageError if it shares images with this one."""
    from mdmf_deploy.errors import UsageError
    from mdmf_deploy.images.inputs import uri
    from mdmf_deploy.tasks.evaluate.audit import audit
    from mdmf_deploy.tasks.evaluate.conditions import AS_IS, Condition
    from mdmf_deploy.tasks.evaluate.datasets import find_images
    from mdmf_deploy.tasks.evaluate.evaluate import judge, threshold_of

    others, audited = audit(find_images(dataset, yes, log), detector.bundle)
    own = {image.sha256 for image in samples if image.sha256 is not None}
    shared = [image for image in others if image.sha256 in own]
    if shared:
        raise UsageError(
            f"--tune-on {uri(dataset)}: {len(shared)} of its images are judged too, such as {uri(shared[0].path)}; "
            "give images of their own"
        )
    log_audit(audited)
    return threshold_of(_written(judge(detector, others, Condition.parse(AS_IS)), len(others), "tuning", None))


def _changeable(samples: list[KnownImage], condition: Condition) -> list[KnownImage]:
    """Return the images that a condition can change. Videos are judged as they are, or not at all."""
    if not condition.steps:
        return samples
    images = [sample for sample in samples if not sample.video]
    if len(images) < len(samples):
        videos = len(samples) - len(images)
        log(f"left out of {condition.name!r}, because conditions change images alone: {videos} videos")
    return images


def _warn_of_few(table: Table) -> None:
    from mdmf_deploy.tasks.evaluate.evaluate import FEW

    if table.few:
        log(f"warning: fewer than {FEW} images, so figures say little: {', '.join(table.few)}")


def _plot_folder(folder: Path) -> Path:
    """Make the folder of --plots now, so that it fails before anything is scored."""
    from mdmf_deploy.errors import UsageError
    from mdmf_deploy.files import failure
    from mdmf_deploy.scratch import scratch_file
    from mdmf_deploy.tasks.plots import new_figure

    new_figure(1, 1)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with scratch_file(folder / "plot"):
            return folder
    except OSError as error:
        raise UsageError(failure(f"--plots {folder}", error, "choose a folder you can write to")) from error


def _draw(folder: Path, judged: list[Judged], table: Table) -> None:
    from mdmf_deploy.files import atomic_file
    from mdmf_deploy.tasks.evaluate.pictures import pictures
    from mdmf_deploy.tasks.plots import encoded

    for picture in pictures(judged, table):
        with atomic_file(folder / f"{picture.name}.svg", durable=False) as scratch:
            scratch.write_bytes(encoded(picture.figure, "svg"))
    log_written("plots", folder)


def _written(
    judged: Iterable[tuple[KnownImage, Row]], total: int, condition: str, writer: Writer | None
) -> Iterator[Judged]:
    """Pass the pairs on, write each one's row to the file, and show a bar."""
    from mdmf_deploy.tasks.evaluate.comparison import Judged

    with progress(judged, condition, total) as pairs:
        for sample, row in pairs:
            if writer is not None:
                writer.write(row, condition, sample.generator, sample.kind, sample.compared_with)
            yield Judged(sample, row)


def log_audit(audit: Audit) -> None:
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
