"""`mdmf bank`: the reference bank of a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mdmf_deploy.cli._reals import destination, print_facts, print_json, progress, tell

app = typer.Typer(no_args_is_help=True, help="Build or look into a bundle's reference bank of real images.")


@app.command()
def build(
    bundle: Annotated[str, typer.Argument(help="A .mdmf folder, or 'starter'.")],
    reals: Annotated[list[str], typer.Argument(help="Real images: folders, files, globs, @LIST, or - for stdin.")],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Bundle to write; by default the one given, in place.")
    ] = None,
    max_signatures: Annotated[
        int, typer.Option(min=0, help="Thin the bank to this many, evenly over its images; 0 keeps all.")
    ] = 8192,
    runtime: Annotated[str, typer.Option(help="Runtime that computes the signatures.")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Replace the bundle's bank by signatures of these real images; the model stays as it is.

    The bundle gets a new id, so its calibration and verification no longer hold and are dropped:
    run `mdmf verify` and `mdmf calibrate` afterwards. Exit code 3 if some images were unreadable.

    Example: mdmf bank build starter ~/photos -o mine.mdmf
    """
    from mdmf_deploy.banking import build_bank, swap_bank
    from mdmf_deploy.bundle import Bundle
    from mdmf_deploy.inputs import expand
    from mdmf_deploy.runtime import open_engine

    old = Bundle.open(bundle)
    target = destination(old, output)
    inputs = expand(reals)
    engine = open_engine(runtime, old)
    try:
        with progress(inputs.paths, "signing") as paths:
            report = build_bank(old.manifest, engine, paths, max_signatures)
    finally:
        engine.close()
    new = swap_bank(old, report.bank, target)
    dropped = [
        name
        for name, there in (
            ("calibration", "calibration.json" in old.manifest.files),
            ("verification", bool(old.manifest.verification)),
        )
        if there
    ]
    tell([f"{error.uri} ({error.code}): {error.text}" for error in report.errors], "unreadable")
    tell([f"{duplicate.uri} is {duplicate.kept}" for duplicate in report.duplicates], "duplicate, left out")
    if dropped:
        tell([f"{', '.join(dropped)} held for the old bank; run `mdmf verify` and `mdmf calibrate`"], "dropped")
    facts = {
        "bundle": str(new.path),
        "bundle_id": new.bundle_id,
        "images": len(report.bank.sources),
        "signatures": len(report.bank.signatures),
        "of_images": report.images,
        "of_signatures": report.signatures,
        "self_term": report.bank.self_term,
        "skipped": inputs.skipped,
    }
    if as_json:
        print_json({**facts, "duplicates": report.duplicates, "errors": report.errors, "dropped": dropped})
    else:
        print_facts({**facts, "duplicates": len(report.duplicates), "unreadable": len(report.errors)})
    if report.errors:
        raise typer.Exit(3)


@app.command()
def inspect(
    bundle: Annotated[str, typer.Argument(help="A .mdmf folder, or 'starter'.")] = "starter",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show a bank's size and sources, whether its bandwidth fits, and images in it that look generated.

    Every image is scored against the rest of the bank; those far above the others are listed as outliers.

    Example: mdmf bank inspect starter --json
    """
    from mdmf_deploy.bank_audit import audit_bank
    from mdmf_deploy.bundle import BANK, Bundle

    opened = Bundle.open(bundle)
    audit = audit_bank(opened.bank)
    size = opened.manifest.files[BANK].size
    tell(audit.warnings, "warning")
    if as_json:
        import msgspec

        print_json({"bytes": size, **msgspec.to_builtins(audit)})
        return
    print_facts(
        {
            "signatures": f"{audit.signatures} of width {audit.width}, {size / 1e6:.2f} MB",
            "images": audit.images,
            "bandwidth": f"{audit.sigma:g}",
            "mean kernel value": "-" if audit.mean_kernel is None else f"{audit.mean_kernel:.4f}",
            "self term": f"{audit.self_term:.6f}",
            "compression": ", ".join(f"{name} {value}" for name, value in audit.compression.items()),
        }
    )
    print("\nimages  folder")
    for folder, count in audit.folders.items():
        print(f"{count:>6}  {folder}")
    if audit.quantiles:
        print("\nleave-one-image-out scores")
        print("  ".join(f"{100 * float(q):>8g}%" for q in audit.quantiles))
        print("  ".join(f"{value:>9.6f}" for value in audit.quantiles.values()))
        print(f"\noutliers that look generated: {len(audit.outliers)}")
        for outlier in audit.outliers:
            print(f"{outlier.score:>9.6f}  z {outlier.z:5.1f}  {outlier.uri}")
