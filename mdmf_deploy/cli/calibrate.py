"""`mdmf calibrate`: thresholds from real images."""

from __future__ import annotations

from typing import Annotated

import typer

from mdmf_deploy.cli.console import log_duplicates, log_list, log_unreadable, print_json, progress
from mdmf_deploy.cli.options import AsJson, BundleArgument, OutputBundle, destination


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
    runtime: Annotated[str, typer.Option(help="Runtime that scores the images; it must have been verified.")] = "auto",
    output: OutputBundle = None,
    as_json: AsJson = False,
) -> None:
    """Set thresholds from held-out real images alone.

    Verdicts then get p-values.

    Images whose bytes are in the bank are left out. A threshold of null (infinity) means that there are too few images
    for the requested rate. The interval contains the true false positive rate with 95% confidence.
    Exit code 3 if some images were unreadable.

    Example: mdmf calibrate mine.mdmf ~/more-photos --fpr 0.01 --fpr 0.05
    """
    from mdmf_deploy.bundle.bundle import Bundle
    from mdmf_deploy.bundle.calibration import fpr_interval
    from mdmf_deploy.images.inputs import expand
    from mdmf_deploy.runtime import open_engine
    from mdmf_deploy.tasks.calibrate import calibrate as run_calibration
    from mdmf_deploy.tasks.calibrate import write_calibration

    opened = Bundle.open(bundle)
    target = destination(opened, output)
    inputs = expand(reals)
    engine = open_engine(runtime, opened)
    try:
        with progress(inputs.paths, "scoring", len(inputs.paths)) as paths:
            report = run_calibration(opened, engine, paths, fpr or [0.01], review)
    finally:
        engine.close()
    calibration = report.calibration
    new = write_calibration(opened, calibration, target)
    log_unreadable(report.errors)
    log_list("in the bank, left out", report.in_bank)
    log_duplicates(report.duplicates)
    log_list("warning", report.warnings)
    n = len(calibration.scores)
    intervals = [fpr_interval(n, entry.fpr) for entry in calibration.thresholds]
    if as_json:
        print_json(
            {
                "bundle": str(new.path),
                "bundle_id": new.bundle_id,
                "images": n,
                "review": calibration.review,
                "thresholds": [
                    {"fpr": entry.fpr, "threshold": entry.score, "interval": interval}
                    for entry, interval in zip(calibration.thresholds, intervals, strict=True)
                ],
                "holds_for": calibration.holds_for,
                "skipped": inputs.skipped,
                "in_bank": report.in_bank,
                "duplicates": report.duplicates,
                "errors": report.errors,
                "warnings": report.warnings,
            }
        )
    else:
        print(
            f"{n} images; left out: {len(report.in_bank)} in the bank, {len(report.duplicates)} duplicates, "
            f"{len(report.errors)} unreadable, {inputs.skipped} other files"
        )
        print(f"\n{'fpr':>8}  {'threshold':>10}  95% interval of the false positive rate")
        for entry, (low, high) in zip(calibration.thresholds, intervals, strict=True):
            threshold = "infinity" if entry.score is None else f"{entry.score:.6f}"
            print(f"{entry.fpr:>8g}  {threshold:>10}  {low:.5f} to {high:.5f}")
        held = ", ".join(f"{pair.runtime} {pair.precision}" for pair in calibration.holds_for)
        print(f"\nuncertain up to p = {calibration.review:g}; holds for {held}")
    if report.errors:
        raise typer.Exit(3)
