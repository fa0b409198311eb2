"""`mdmf calibrate`: thresholds from real images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mdmf_deploy.cli.console import (
    log,
    log_duplicates,
    log_list,
    log_unreadable,
    log_written,
    print_json,
    print_lines,
    print_text,
    progress,
)
from mdmf_deploy.cli.options import Anonymous, AsJson, BundleArgument, OutputBundle, Yes, destination, runtime_option
from mdmf_deploy.images.limits import FRAMES, MOST_FRAMES

if TYPE_CHECKING:
    from mdmf_deploy.bundle.calibration import Calibration
    from mdmf_deploy.tasks.calibrate import CalibrationReport


def calibrate(
    bundle: BundleArgument,
    reals: Annotated[
        list[str],
        typer.Argument(help="Real images or videos not in the bank: folders, files, globs, @LIST, or - for stdin."),
    ],
    fpr: Annotated[
        list[float] | None,
        typer.Option(help="False positive rate; may be repeated, the first decides. Default 0.01."),
    ] = None,
    review: Annotated[
        float | None, typer.Option(help='p-values up to this are "uncertain"; by default 5 x fpr, at most 0.5.')
    ] = None,
    size_bound: Annotated[
        list[float] | None,
        typer.Option(
            help="Upper bound of a size group in megapixels; may be repeated, inf for one group of all sizes. "
            "Default 0.5, 2 and 8."
        ),
    ] = None,
    frames: Annotated[
        int, typer.Option(min=1, max=MOST_FRAMES, help="Frames of each video; detect must take as many.")
    ] = FRAMES,
    runtime: Annotated[
        str, runtime_option("Runtime that scores the images. It is verified first if it has not been.")
    ] = "auto",
    output: OutputBundle = None,
    force: Annotated[
        bool,
        typer.Option(
            "--force",
            help="Replace the bundle that is there. Also write thresholds that decide nothing, because there are too "
            "few images, but never over thresholds that decide.",
        ),
    ] = False,
    anonymous: Anonymous = False,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Set thresholds from held-out real images or videos alone.

    Verdicts then get p-values.

    Images of different sizes get different scores, so every group of sizes has thresholds of its own. Images of a group
    with too few calibration images are "uncertain". If every group has too few, nothing is written and the exit code is
    2. The rate asked for holds on average over draws of the images. The interval contains the true rate of this draw
    with 95% confidence. Images in the bank and images without texture are left out. Videos have thresholds of their
    own. Images alone leave those for videos as they are, and videos alone those for images.

    Thresholds hold for verified runtimes. If none that works here is verified, as after `mdmf bank build`, those on the
    CPU are verified on the bundle's probe images and recorded. If none passes, nothing is written and the exit code is
    1. A runtime given by --runtime is verified alone.
    Exit code 3 if some images were unreadable.

    Example: mdmf calibrate dinov2s ~/more-photos --fpr 0.01 --fpr 0.05 -o mine.mdmf
    """
    from mdmf_deploy.bundle.anonymous import anonymous_calibration, cannot_be_told
    from mdmf_deploy.bundle.bundle import Bundle, suggestion
    from mdmf_deploy.bundle.calibration import SIZE_BOUNDS
    from mdmf_deploy.cli.size_groups import group_facts, group_table, video_facts
    from mdmf_deploy.images.inputs import expand
    from mdmf_deploy.tasks.calibrate import Rates, write_calibration
    from mdmf_deploy.tasks.calibrate import calibrate as run_calibration
    from mdmf_deploy.tasks.coverage import open_verified

    opened = Bundle.open(bundle)
    target = destination(opened, output, force)
    if unrecognised := cannot_be_told(opened, calibration=False):
        log(unrecognised)
    inputs = expand(reals, yes, log)
    bounds = SIZE_BOUNDS if size_bound is None else [bound for bound in size_bound if bound != float("inf")]
    engine, opened = open_verified(runtime, opened, log)
    try:
        with progress(inputs.paths, "scoring", len(inputs.paths)) as paths:
            report = run_calibration(opened, engine, paths, Rates(fpr or [0.01], review, bounds, frames))
    finally:
        engine.close()
    calibration = report.calibration
    log_unreadable(report.errors)
    log_list("in the bank, left out", report.in_bank)
    log_list("no texture, left out", report.featureless)
    log_duplicates(report.duplicates)
    log_list(f"fewer than {frames} frames, left out", report.short)
    _check_enough(report, target, force)
    new = write_calibration(opened, anonymous_calibration(calibration) if anonymous else calibration, target)
    log_list("warning", report.warnings)
    n = len(calibration.scores)
    groups, videos = group_facts(calibration), video_facts(calibration)
    scored = f"{report.images} images" if report.images or not report.videos else ""
    if report.videos:
        scored += f"{' and ' * bool(scored)}{report.videos} videos"
    if as_json:
        print_json(
            {
                "bundle": str(new.path),
                "bundle_id": new.bundle_id,
                "calibration_id": new.calibration_id,
                "images": n,
                "review": calibration.review,
                "least_evidence": calibration.least_evidence,
                "groups": groups,
                "videos": videos,
                "holds_for": calibration.holds_for,
                "skipped": inputs.skipped,
                "in_bank": report.in_bank,
                "featureless": report.featureless,
                "duplicates": report.duplicates,
                "short": report.short,
                "errors": report.errors,
                "warnings": report.warnings,
            }
        )
    else:
        print_text(
            f"{scored}; left out: {len(report.in_bank)} in the bank, {len(report.featureless)} without texture, "
            f"{len(report.duplicates)} duplicates, {len(report.errors)} unreadable, {inputs.skipped} other files\n"
        )
        print_lines(group_table([*groups, *([] if videos is None else [videos])]))
        held = ", ".join(f"{pair.runtime} {pair.precision}" for pair in calibration.holds_for)
        print_text(
            f"\nuncertain up to p = {calibration.review:g}, or with texture in fewer than "
            f"{calibration.least_evidence:.0%} of the patches; holds for {held}\ncalibration id {new.calibration_id}"
        )
    log_written(f"the calibration of {scored}", target, suggestion("detect", target))
    if report.errors:
        raise typer.Exit(3)


def _check_enough(report: CalibrationReport, target: Path, force: bool) -> None:
    """Raise CalibrationError if no image, or no video, that is like those scored now could get a verdict.

    Not if --force asks for that and no threshold is lost.
    """
    from mdmf_deploy.bundle.bundle import Bundle
    from mdmf_deploy.bundle.conformal import images_needed
    from mdmf_deploy.errors import CalibrationError, MdmfError

    calibration, shortage = report.calibration, report.shortage
    if shortage is None:
        return
    one_group = bool(report.images) and len(calibration.scores) >= images_needed(calibration.fpr)
    advice = "give more images or a larger --fpr" + (", or --size-bound inf for one group of all sizes" * one_group)
    if not force:
        raise CalibrationError(f"{shortage}; {advice}, or --force to write it all the same")
    try:
        before = Bundle.open(target).calibration if target.exists() else None
    except MdmfError:
        # A damaged bundle has no thresholds to lose.
        before = None
    if before is not None and _loses(before, report):
        raise CalibrationError(f"{shortage}, and {target} has thresholds that decide; {advice}, or -o")


def _loses(before: Calibration, report: CalibrationReport) -> bool:
    """Return whether thresholds that decide would be replaced by some that don't."""
    after = report.calibration
    images = bool(report.images) and before.shortage is None and after.shortage is not None
    videos = before.videos is not None and before.videos.shortage is None
    return images or (videos and after.videos is not None and after.videos.shortage is not None)
