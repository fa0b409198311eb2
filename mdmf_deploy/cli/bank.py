"""`mdmf bank`: the reference bank of a bundle."""

from __future__ import annotations

from typing import Annotated

import typer

from mdmf_deploy.bundle import DEFAULT_BUNDLE
from mdmf_deploy.cli.console import (
    log,
    log_duplicates,
    log_list,
    log_unreadable,
    log_written,
    print_facts,
    print_json,
    print_lines,
    print_text,
    progress,
)
from mdmf_deploy.cli.options import (
    Anonymous,
    AsJson,
    BundleArgument,
    BundleOrDefault,
    Force,
    OutputBundle,
    Yes,
    destination,
    runtime_option,
)

app = typer.Typer(no_args_is_help=True, help="Build, compress or inspect a reference bank.")


@app.command()
def build(
    bundle: BundleArgument,
    reals: Annotated[list[str], typer.Argument(help="Real images: folders, files, globs, @LIST, or - for stdin.")],
    output: OutputBundle = None,
    force: Force = False,
    yes: Yes = False,
    max_signatures: Annotated[
        int | None,
        typer.Option(
            min=0, show_default="8192", help="Thin the bank to this many, evenly over its images. 0 keeps all."
        ),
    ] = None,
    points: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Instead, represent all signatures, however many, by this many points with optimal weights. The bank "
            "is compressed while it is gathered, in the memory of a few blocks, and keeps a bound on the error.",
        ),
    ] = None,
    crops: Annotated[
        int, typer.Option(min=1, help="Most crops taken of an image, whatever the bundle's plan. 1 is the centre.")
    ] = 1,
    runtime: Annotated[str, runtime_option("Runtime that computes the signatures.")] = "auto",
    anonymous: Anonymous = False,
    as_json: AsJson = False,
) -> None:
    """Build a bank from real images.

    It replaces the bundle's bank. The model stays the same.

    The bundle gets a new id, so its calibration and verification no longer hold and are dropped. Run `mdmf calibrate`
    afterwards. It verifies the bundle as well. Exit code 3 if some images were unreadable.

    Example: mdmf bank build starter ~/photos -o mine.mdmf
    """
    from mdmf_deploy.bundle.anonymous import anonymous_bank
    from mdmf_deploy.bundle.bundle import Bundle, suggestion
    from mdmf_deploy.errors import UsageError
    from mdmf_deploy.images.inputs import expand
    from mdmf_deploy.runtime import open_engine
    from mdmf_deploy.tasks.bank.build import build_bank, swap_bank

    if points is not None and max_signatures is not None:
        raise UsageError("bank build: give either --points or --max-signatures")
    if max_signatures is None:
        max_signatures = 8192 if points is None else 0
    old = Bundle.open(bundle)
    target = destination(old, output, force)
    inputs = expand(reals, yes, log)
    engine = open_engine(runtime, old)
    try:
        with progress(inputs.paths, "extracting", len(inputs.paths)) as paths:
            report = build_bank(old.manifest, engine, paths, max_signatures, points=points, crops=crops)
    finally:
        engine.close()
    new = swap_bank(old, anonymous_bank(report.bank) if anonymous else report.bank, target)
    dropped = [
        name
        for name, there in (
            ("calibration", "calibration.json" in old.manifest.files),
            ("verification", bool(old.manifest.verification)),
        )
        if there
    ]
    log_unreadable(report.errors)
    log_duplicates(report.duplicates)
    if dropped:
        log(f"dropped, because they held for the old bank: {', '.join(dropped)}")
    facts = {
        "bundle": str(new.path),
        "bundle_id": new.bundle_id,
        "images": len(report.bank.sources),
        "signatures": len(report.bank.signatures),
        "of_images": report.images,
        "of_signatures": report.signatures,
        "max_mmd_change": report.bank.compression.get("max_mmd_change"),
        "self_term": report.bank.self_term,
        "skipped": inputs.skipped,
    }
    if as_json:
        print_json({**facts, "duplicates": report.duplicates, "errors": report.errors, "dropped": dropped})
    else:
        print_facts({**facts, "duplicates": len(report.duplicates), "unreadable": len(report.errors)})
    log_written(f"a bank of {facts['images']} images", target, suggestion("calibrate", target, "REAL_PHOTOS"))
    if report.errors:
        raise typer.Exit(3)


@app.command()
def compress(
    bundle: BundleArgument,
    points: Annotated[int | None, typer.Option(min=1, help="Signatures to keep.")] = None,
    max_error: Annotated[
        float | None,
        typer.Option(
            help="Keep as few signatures as this error bound allows: the most that the MMD of any image may change, in "
            "standard deviations of MMD over the calibration images. 0.005 is little."
        ),
    ] = None,
    candidates: Annotated[
        int, typer.Option(min=1, help="Choose among at most this many of the bank's signatures. Memory grows with it.")
    ] = 32_768,
    output: OutputBundle = None,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Replace the bank with a few of its signatures.

    Their weights are optimal. The MMD of no image, seen or unseen, changes by more than the error bound, which is kept
    in the bundle. Thresholds are raised to match, so no false positive rate rises. `mdmf calibrate` makes them exact
    again. Verification is kept as far as the error bound allows. Runtimes on the CPU that lose it are verified again.

    Example: mdmf bank compress mine.mdmf --max-error 0.005 -o small.mdmf
    """
    from mdmf_deploy.bundle.bundle import Bundle, suggestion
    from mdmf_deploy.tasks.bank.compress import compress_bundle
    from mdmf_deploy.tasks.coverage import verify_again

    old = Bundle.open(bundle)
    target = destination(old, output, force)
    report = compress_bundle(old, target, points=points, max_error=max_error, candidates=candidates)
    log_list("warning", report.warnings)
    log_list("note", report.notes)
    new = verify_again(old, report.bundle, log)
    if as_json:
        print_json({**report.facts, "warnings": report.warnings, "notes": report.notes})
    else:
        print_facts(report.facts)
    following = suggestion("calibrate", target, "REAL_PHOTOS")
    if new.calibration is not None:
        following = suggestion("detect", target)
    log_written(f"a bank of {report.points} signatures", target, following)


@app.command()
def inspect(
    bundle: BundleOrDefault = DEFAULT_BUNDLE,
    as_json: AsJson = False,
) -> None:
    """Show a bank's size, sources and fit.

    Says whether its bandwidth fits, and which of its images look generated.

    Every image is scored against the rest of the bank. Images that score far above the others are listed as outliers.

    Example: mdmf bank inspect starter --json
    """
    from mdmf_deploy.bundle.bundle import Bundle
    from mdmf_deploy.bundle.manifest import BANK
    from mdmf_deploy.mmd.reference import check_self_term
    from mdmf_deploy.tasks.bank.inspect import audit_bank

    opened = Bundle.open(bundle)
    check_self_term(opened.bank, str(opened.path / BANK))
    audit = audit_bank(opened.bank)
    size = opened.manifest.files[BANK].size
    log_list("warning", audit.warnings)
    if as_json:
        import msgspec

        print_json({"bytes": size, **msgspec.to_builtins(audit)})
        return
    print_facts(
        {
            "signatures": f"{audit.signatures} of width {audit.width}, {size / 1e6:.2f} MB",
            "images": audit.images,
            "bandwidth": f"{audit.sigma:g}",
            "mean kernel value": None if audit.mean_kernel is None else f"{audit.mean_kernel:.4f}",
            "self term": f"{audit.self_term:.6f}",
            "compression": _compression(audit.compression, audit.signatures),
        }
    )
    print_lines(["", "images  folder", *(f"{count:>6}  {folder}" for folder, count in audit.folders.items())])
    if audit.quantiles:
        print_text("\nleave-one-image-out scores")
        print_text("  ".join(f"{100 * float(q):>8g}%" for q in audit.quantiles))
        print_text("  ".join(f"{value:>9.6f}" for value in audit.quantiles.values()))
        print_text(f"\noutliers that look generated: {len(audit.outliers)}")
        print_lines(f"{outlier.score:>9.6f}  z {outlier.z:5.1f}  {outlier.uri}" for outlier in audit.outliers)


def _compression(compression: dict[str, object], m: int) -> str:
    if compression.get("method") == "none":
        return "none"
    return (
        f"{compression['method']}, {m} of {compression['of']} signatures, "
        f"no MMD changed by more than {compression['max_mmd_change']:.3g}"
    )
