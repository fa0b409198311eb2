"""`mdmf export`."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mdmf_deploy.cli._reals import print_facts, print_json, tell

if TYPE_CHECKING:
    from mdmf_deploy.bundle import Verification


class Precision(StrEnum):
    auto = "auto"
    fp32 = "fp32"
    fp16 = "fp16"
    int8 = "int8"


def export(
    checkpoint: Annotated[Path, typer.Argument(help="A checkpoint that `mdmf train` wrote.")],
    reals: Annotated[
        list[str],
        typer.Option("--reals", help="Real photographs: a folder, file, glob, @LIST, or - for stdin; may be repeated."),
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="Bundle to write, a .mdmf folder.")],
    recipe: Annotated[str, typer.Option(help="A recipe's name, or a .toml file.")] = "starter",
    precision: Annotated[
        Precision,
        typer.Option(help="auto: the recipe's, falling back to fp32 where it changes decisions. Else that or nothing."),
    ] = Precision.auto,
    backbone_weights: Annotated[
        Path | None, typer.Option(help="The backbone's own file, if the checkpoint is a PFS head trained elsewhere.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a bundle that is already there.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Turn a checkpoint into a bundle: ONNX graph, reference bank, and proof that decisions stay the same.

    A fifth of the real photographs (8 to 128) is held back from the bank; PyTorch and the exported model sign and
    score those, and the recipe's limits say how much may change. int8 is made for CPUs, fp16 for GPUs; where int8
    changes decisions, the layers that do it stay in fp32. Every installed runtime is verified on the result.
    The bundle has no thresholds until `mdmf calibrate`. Exit code 1 if the limits are missed; nothing is written then.

    Example: mdmf export run/checkpoint.safetensors --recipe starter --reals ~/photos -o starter.mdmf
    """
    from mdmf_deploy.errors import UsageError
    from mdmf_deploy.inputs import expand
    from mdmf_deploy.recipe import load_recipe

    if output.exists() and not force:
        raise UsageError(f"{output} exists; give --force to replace it, or another -o")
    loaded = load_recipe(recipe)
    inputs = expand(reals)

    from mdmf_deploy.exporting import export as run

    def say(text: str) -> None:
        print(f"mdmf: {text}", file=sys.stderr)

    done = run(checkpoint, loaded, inputs.paths, output, precision.value, say, backbone_weights)
    manifest, gates = done.bundle.manifest, done.verification
    tell([f"{error.uri} ({error.code}): {error.text}" for error in done.bank.errors], "unreadable")
    size = sum(entry.size for entry in manifest.files.values())
    if as_json:
        print_json(
            {
                "bundle": str(output),
                "bundle_id": manifest.bundle_id,
                "precision": manifest.model.precision,
                "bytes": size,
                "bank": {"images": done.bank.images, "signatures": len(done.bank.bank.signatures)},
                "refused": done.refused,
                "kept": manifest.model.kept,
                "verification": gates,
                "unreadable": done.bank.errors,
            }
        )
    else:
        refused = "; ".join(f"{refusal.precision} ({refusal.reason})" for refusal in done.refused)
        print_facts(
            {
                "bundle": f"{output}, {size / 1e6:.1f} MB, id {manifest.bundle_id[:12]}",
                "precision": manifest.model.precision,
                "refused": refused or "none",
                "bank": f"{len(done.bank.bank.signatures)} signatures of {done.bank.images} images",
                "kept in fp32": ", ".join(manifest.model.kept) or "-",
                "verified on": f"{gates[0].images} images",
                **{gate.runtime: _told(gate) for gate in gates},
                "next": f"mdmf calibrate {output} REAL_IMAGES",
            }
        )
    if done.bank.errors:
        raise typer.Exit(3)


def _told(gate: Verification) -> str:
    state = "passed" if gate.passed else f"failed: {'; '.join(gate.reasons)}"
    return (
        f"{state}; {gate.images_per_second or 0:.3g} images/s, score change at most {gate.max_score_change:.3g} of the "
        f"spread of real scores, signature error {gate.max_signature_error:.3g} at most"
    )
