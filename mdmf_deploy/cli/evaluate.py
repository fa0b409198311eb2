"""`mdmf evaluate`: figures on images of known class."""

from __future__ import annotations

from contextlib import ExitStack
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mdmf_deploy.bundle import DEFAULT_BUNDLE
from mdmf_deploy.cli.console import log, log_written, print_json, print_lines, progress
from mdmf_deploy.cli.evaluate_outputs import OutputPaths, evaluation_outputs
from mdmf_deploy.cli.evaluate_tables import evaluation_lines
from mdmf_deploy.cli.options import AsJson, BundleOption, Yes, complete_recipe, runtime_option
from mdmf_deploy.images.limits import FRAMES, MOST_FRAMES

if TYPE_CHECKING:
    from collections.abc import Iterable

    from mdmf_deploy.bundle.recipe import Recipe
    from mdmf_deploy.detection.detector import Detector
    from mdmf_deploy.tasks.evaluate.audit import Audit
    from mdmf_deploy.tasks.evaluate.conditions import Change, Condition
    from mdmf_deploy.tasks.evaluate.datasets import KnownImage
    from mdmf_deploy.tasks.evaluate.evaluate import Table
    from mdmf_deploy.tasks.evaluate.leaks import LeakAudit
    from mdmf_deploy.tasks.evaluate.robustness import SweepResult

_SHOWN = 3


class SplitPart(StrEnum):
    """The parts of a recipe's split, as choices."""

    test = "test"
    validation = "validation"
    train = "train"


def evaluate(
    dataset: Annotated[Path, typer.Argument(help="A folder of labelled images, or a .csv or .json list.")],
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
            help="Change every image in the same way first: jpeg:75, webp:80, resize:0.5, blur:1, noise:0.05, several "
            "as resize:0.5,jpeg:75, or 'as is'. May be repeated, each for a table of its own; by default 'as is'."
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o", "--output", metavar="FILE", help="Also write rows: .jsonl, .json, .csv, .parquet, or .html to read."
        ),
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Also write a page for readers: .html, with figures, rows and pictures."),
    ] = None,
    match: Annotated[
        bool,
        typer.Option("--match", help="Also judge all images cut to one size and coded alike, as the table `matched`."),
    ] = False,
    leaks: Annotated[
        bool, typer.Option("--leaks/--no-leaks", help="Look for facts of files that tell the classes apart.")
    ] = True,
    robustness: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Also sweep JPEG, blur, noise, scale and WebP. Rows stay in DIR, where the same command goes on.",
        ),
    ] = None,
    sample_size: Annotated[
        int | None,
        typer.Option(
            "--sample", min=1, metavar="N", help="At most N images of a generator, and N real ones for each of them."
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
            "--allow-overlap", help="Leave out images of the bundle's own bank or calibration, and do not refuse them."
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
    from mdmf_deploy.bundle.bundle import suggestion
    from mdmf_deploy.detection.detector import Detector
    from mdmf_deploy.errors import GateFailed
    from mdmf_deploy.tasks.evaluate.conditions import AS_IS, Condition
    from mdmf_deploy.tasks.evaluate.evaluate import judge, tabulate, unscored

    paths = OutputPaths.of(output, report, plots, robustness)
    conditions = [Condition.parse(text) for text in condition or [AS_IS]]
    chosen = _split_of(split, part)
    tables: list[Table] = []
    rows = 0
    with ExitStack() as stack:
        outputs = stack.enter_context(evaluation_outputs(paths))
        detector = stack.enter_context(Detector(bundle, runtime=runtime, frames=frames))
        if chosen is not None:
            _warn_of_recipe(detector, split, chosen)
        samples, audited = _samples(detector, dataset, chosen, part, yes, allow_overlap=allow_overlap)
        _log_caveats(detector)
        if sample_size is not None:
            samples = _sampled(samples, sample_size)
        audit_of_leaks = _look_for_leaks(samples) if leaks else None
        threshold = None if tune_on is None else _tuned(detector, tune_on, samples, yes)
        changes: list[tuple[Change, list[KnownImage]]] = [(one, _changeable(samples, one)) for one in conditions]
        changes += _matching(detector, samples) if match else []
        outputs.begin(detector, dataset, len(changes[0][1]))
        for change, images in changes:
            judged = list(outputs.written(judge(detector, images, change), len(images), change.name, first=not tables))
            rows += len(images)
            tables.append(tabulate(change.name, judged, threshold=threshold))
            _warn_of_few(tables[-1])
            if len(tables) == 1:
                outputs.draw(judged, tables[0])
        swept = None if robustness is None else _swept(detector, samples, robustness)
        outputs.finish(tables, audited, audit_of_leaks, swept)
        ids = {"bundle_id": detector.bundle.bundle_id, "calibration_id": detector.bundle.calibration_id}
    if as_json:
        print_json({**ids, "audit": audited, "leaks": audit_of_leaks, "tables": tables, "robustness": swept})
    else:
        print_lines(evaluation_lines(tables, swept))
    if paths.rows is not None:
        log_written(f"{rows} rows", paths.rows, suggestion("detect", detector.bundle.path))
    if paths.report is not None:
        log_written("the report", paths.report)
    worst = min(table.worst_auroc for table in tables)
    if min_auroc is not None and worst < min_auroc:
        raise GateFailed(f"the worst AUROC is {worst:.4f}, below --min-auroc {min_auroc:g}")
    unjudged = [*audited.left_out, *unscored(samples, tables)]
    if min_auroc is not None and unjudged:
        raise GateFailed(f"--min-auroc cannot be judged, for no image is left of: {', '.join(unjudged)}")
    if any(table.unreadable for table in tables):
        raise typer.Exit(3)


def _split_of(split: str | None, part: SplitPart) -> Recipe | None:
    from mdmf_deploy.bundle.recipe import load_recipe
    from mdmf_deploy.errors import UsageError

    if split is None and part is not SplitPart.test:
        raise UsageError(f"--part {part} needs --split, which says what the parts are")
    return None if split is None else load_recipe(split)


def _warn_of_recipe(detector: Detector, split: str | None, recipe: Recipe) -> None:
    trained_by = detector.bundle.manifest.provenance.recipe
    if recipe.name != trained_by:
        log(
            f"warning: --split {split} is recipe {recipe.name!r}, but this bundle was trained by {trained_by!r}; "
            "images that it was trained on may be judged"
        )


def _samples(
    detector: Detector, dataset: Path, recipe: Recipe | None, part: SplitPart, yes: bool, *, allow_overlap: bool
) -> tuple[list[KnownImage], Audit]:
    """Return the images that may be judged, and say which may not."""
    from mdmf_deploy.tasks.evaluate.audit import audit, refuse_overlap
    from mdmf_deploy.tasks.evaluate.datasets import find_images

    fractions = None if recipe is None else recipe.training.split
    samples, audited = audit(find_images(dataset, yes, log), detector.bundle, fractions, part.value)
    if not allow_overlap:
        refuse_overlap(audited)
    _log_audit(audited)
    return samples, audited


def _log_caveats(detector: Detector) -> None:
    from mdmf_deploy.bundle.anonymous import cannot_be_told

    if unrecognised := cannot_be_told(detector.bundle, calibration=True):
        log(unrecognised)
    if detector.caveat:
        log(detector.caveat)


def _sampled(samples: list[KnownImage], number: int) -> list[KnownImage]:
    from mdmf_deploy.tasks.evaluate.sample import sample

    chosen = sample(samples, number)
    log(f"--sample {number}: {len(chosen)} of {len(samples)} images, chosen by their hashes")
    return chosen


def _look_for_leaks(samples: list[KnownImage]) -> LeakAudit:
    from mdmf_deploy.tasks.evaluate.leaks import audit_leaks, lines

    found = audit_leaks(samples)
    for line in lines(found):
        log(line)
    return found


def _matching(detector: Detector, samples: list[KnownImage]) -> list[tuple[Change, list[KnownImage]]]:
    """Return the images of --match, at least as large as the detector's crops."""
    from mdmf_deploy.tasks.evaluate.match import Matching

    matching = Matching.of(samples, least=detector.bundle.manifest.preprocessing.crop)
    log(matching.line())
    return [(matching, list(matching.images))]


def _swept(detector: Detector, samples: list[KnownImage], folder: Path) -> SweepResult:
    """Run the robustness sweep, and draw its picture beside its rows if matplotlib is installed."""
    from mdmf_deploy.errors import RuntimeUnavailable
    from mdmf_deploy.tasks.evaluate.robustness import sweep
    from mdmf_deploy.tasks.evaluate.robustness_plot import write_picture

    images = [sample for sample in samples if not sample.video]
    found = sweep(detector, images, folder, report=log, progress=progress)
    try:
        write_picture(folder / "robustness.svg", found)
    except RuntimeUnavailable as error:
        log(str(error))
    log_written("the rows and the picture of the sweep", folder)
    return found


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
    _log_audit(audited)
    with progress(judge(detector, others, Condition.parse(AS_IS)), "tuning", len(others)) as judged:
        return threshold_of(judged)


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
