"""`mdmf calibrate`: thresholds from real images."""

from __future__ import annotations

from typing import Annotated

import typer

from mdmf_deploy.cli.console import log_duplicates, log_list, log_unreadable, print_json, progress
from mdmf_deploy.cli.options import AsJson, BundleArgument, Force, OutputBundle, destination, runtime_option


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
    runtime: Annotated[str, runtime_option("Runtime that scores the images; it must have been verified.")] = "auto",
    output: OutputBundle = None,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Set thresholds from held-out real images alone.

    Verdicts then get p-values.

    Images of different sizes get different scores, so every group of sizes has thresholds of its own. Images of a group
    with too few calibration images are "uncertain". The interval contains the true false positive rate with 95%
    confidence. Images in the bank and images without texture are left out.
    Exit code 3 if some images were unreadable.

    Example: mdmf calibrate mine.mdmf ~/more-photos --fpr 0.01 --fpr 0.05
    """
    from mdmf_deploy.bundle.bundle import Bundle
    from mdmf_deploy.bundle.calibration import SIZE_BOUNDS
    from mdmf_deploy.cli.size_groups import group_facts, group_table
    from mdmf_deploy.images.inputs import expand
    from mdmf_deploy.runtime import open_engine
    from mdmf_deploy.tasks.calibrate import Rates, write_calibration
    from mdmf_deploy.tasks.calibrate import calibrate as run_calibration

    opened = Bundle.open(bundle)
    target = destination(opened, output, force)
    inputs = expand(reals)
    bounds = SIZE_BOUNDS if size_bound is None else [bound for bound in size_bound if bound != float("inf")]
    engine = open_engine(runtime, opened)
    try:
        with progress(inputs.paths, "scoring", len(inputs.paths)) as paths:
            report = run_calibration(opened, engine, paths, Rates(fpr or [0.01], review, bounds))
    finally:
        engine.close()
    calibration = report.calibration
    new = write_calibration(opened, calibration, target)
    log_unreadable(report.errors)
    log_list("in the bank, left out", report.in_bank)
    log_list("no texture, left out", report.featureless)
    log_duplicates(report.duplicates)
    log_list("warning", report.warnings)
    n = len(calibration.scores)
    groups = group_facts(calibration)
    if as_json:
        print_json(
            {
                "bundle": str(new.path),
                "bundle_id": new.bundle_id,
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
        print(
            f"{n} images; left out: {len(report.in_bank)} in the bank, {len(report.featureless)} without texture, "
            f"{len(report.duplicates)} duplicates, {len(report.errors)} unreadable, {inputs.skipped} other files\n"
        )
        print("\n".join(group_table(groups)))
        held = ", ".join(f"{pair.runtime} {pair.precision}" for pair in calibration.holds_for)
        print(
            f"\nuncertain up to p = {calibration.review:g}, or with texture in fewer than "
            f"{calibration.least_evidence:.0%} of the patches; holds for {held}"
        )
    if report.errors:
        raise typer.Exit(3)
