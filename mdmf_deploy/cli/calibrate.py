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
from mdmf_deploy.cli.options import AsJson, BundleArgument, OutputBundle, Yes, destination, runtime_option

if TYPE_CHECKING:
    from mdmf_deploy.bundle.calibration import Calibration


def calibrate(
    bundle: BundleArgument,
    reals: Annotated[
        list[str], typer.Argument(help="Real images not in the bank: folders, files, globs, @LIST, or - for stdin.")
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
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Set thresholds from held-out real images alone.

    Verdicts then get p-values.

    Images of different sizes get different scores, so every group of sizes has thresholds of its own. Images of a group
    with too few calibration images are "uncertain". If every group has too few, nothing is written and the exit code is
    2. The rate asked for holds on average over draws of the images. The interval contains the true rate of this draw
    with 95% confidence. Images in the bank and images without texture are left out.

    Thresholds hold for verified runtimes. If none that works here is verified, as after `mdmf bank build`, those on the
    CPU are verified on the bundle's probe images and recorded. If none passes, nothing is written and the exit code is
    1. A runtime given by --runtime is verified alone.
    Exit code 3 if some images were unreadable.

    Example: mdmf calibrate dinov2s ~/more-photos --fpr 0.01 --fpr 0.05 -o mine.mdmf
    """
    from mdmf_deploy.bundle.bundle import Bundle, suggestion
    from mdmf_deploy.bundle.calibration import SIZE_BOUNDS
    from mdmf_deploy.cli.size_groups import group_facts, group_table
    from mdmf_deploy.images.inputs import expand
    from mdmf_deploy.tasks.calibrate import Rates, write_calibration
    from mdmf_deploy.tasks.calibrate import calibrate as run_calibration
    from mdmf_deploy.tasks.coverage import open_verified

    opened = Bundle.open(bundle)
    target = destination(opened, output, force)
    inputs = expand(reals, yes, log)
    bounds = SIZE_BOUNDS if size_bound is None else [bound for bound in size_bound if bound != float("inf")]
    engine, opened = open_verified(runtime, opened, log)
    try:
        with progress(inputs.paths, "scoring", len(inputs.paths)) as paths:
            report = run_calibration(opened, engine, paths, Rates(fpr or [0.01], review, bounds))
    finally:
        engine.close()
    calibration = report.calibration
    log_unreadable(report.errors)
    log_list("in the bank, left out", report.in_bank)
    log_list("no texture, left out", report.featureless)
    log_duplicates(report.duplicates)
    _check_enough(calibration, target, force)
    new = write_calibration(opened, calibration, target)
    log_list("warning", report.warnings)
    n = len(calibration.scores)
    groups = group_facts(calibration)
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
                "holds_for": calibration.holds_for,
                "skipped": inputs.skipped,
                "in_bank": report.in_bank,
                "featureless": report.featureless,
                "duplicates": report.duplicates,
                "errors": report.errors,
                "warnings": report.warnings,
            }
        )
    else:
        print_text(
            f"{n} images; left out: {len(report.in_bank)} in the bank, {len(report.featureless)} without texture, "
            f"{len(report.duplicates)} duplicates, {len(report.errors)} unreadable, {inputs.skipped} other files\n"
        )
        print_lines(group_table(groups))
        held = ", ".join(f"{pair.runtime} {pair.precision}" for pair in calibration.holds_for)
        print_text(
            f"\nuncertain up to p = {calibration.review:g}, or with texture in fewer than "
            f"{calibration.least_evidence:.0%} of the patches; holds for {held}\ncalibration id {new.calibration_id}"
        )
    log_written(f"the calibration of {n} images", target, suggestion("detect", target))
    if report.errors:
        raise typer.Exit(3)


def _check_enough(calibration: Calibration, target: Path, force: bool) -> None:
    """Raise CalibrationError if no image could get a verdict, unless --force asks for that and no threshold is lost."""
    from mdmf_deploy.bundle.bundle import Bundle
    from mdmf_deploy.bundle.conformal import images_needed
    from mdmf_deploy.errors import CalibrationError, MdmfError

    if calibration.shortage is None:
        return
    one_group = len(calibration.scores) >= images_needed(calibration.fpr)
    advice = "give more images or a larger --fpr" + (", or --size-bound inf for one group of all sizes" * one_group)
    if not force:
        raise CalibrationError(f"{calibration.shortage}; {advice}, or --force to write it all the same")
    try:
        before = Bundle.open(target).calibration if target.exists() else None
    except MdmfError:
        # A damaged bundle has no thresholds to lose.
        before = None
    if before is not None and before.shortage is None:
        raise CalibrationError(f"{calibration.shortage}, and {target} has thresholds that decide; {advice}, or -o")
