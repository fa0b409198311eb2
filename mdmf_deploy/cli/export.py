"""`mdmf export`."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mdmf_deploy.cli._reals import print_facts, print_json, tell
from mdmf_deploy.errors import UsageError

if TYPE_CHECKING:
    from mdmf_deploy.bundle.bundle import Bundle
    from mdmf_deploy.bundle.manifest import Verification
    from mdmf_deploy.tasks.export.export import Exported
    from mdmf_deploy.tasks.triton import Serving, Written


class Precision(StrEnum):
    auto = "auto"
    fp32 = "fp32"
    fp16 = "fp16"
    int8 = "int8"


class Device(StrEnum):
    cpu = "cpu"
    gpu = "gpu"


# What says how a checkpoint becomes a bundle, and what says how a bundle is served: parameter -> option.
_MAKING = {
    "reals": "--reals",
    "output": "-o",
    "recipe": "--recipe",
    "precision": "--precision",
    "backbone_weights": "--backbone-weights",
}
_SERVING = {"triton_device": "--triton-device", "triton_batch": "--triton-batch", "triton_plan": "--triton-plan"}


def export(
    context: typer.Context,
    source: Annotated[
        str,
        typer.Argument(
            metavar="CHECKPOINT|BUNDLE",
            help="A checkpoint that `mdmf train` wrote; with --triton also a .mdmf folder, or 'starter'.",
        ),
    ],
    reals: Annotated[
        list[str] | None,
        typer.Option("--reals", help="Real photographs: a folder, file, glob, @LIST, or - for stdin; may be repeated."),
    ] = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Bundle to write, a .mdmf folder.")] = None,
    recipe: Annotated[str, typer.Option(help="A recipe's name, or a .toml file.")] = "starter",
    precision: Annotated[
        Precision,
        typer.Option(help="auto: the recipe's, falling back to fp32 where it changes decisions. Else that or nothing."),
    ] = Precision.auto,
    backbone_weights: Annotated[
        Path | None, typer.Option(help="The backbone's own file, if the checkpoint is a PFS head trained elsewhere.")
    ] = None,
    triton: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Model repository for Triton Inference Server to write.")
    ] = None,
    triton_device: Annotated[
        Device | None, typer.Option(help="Where Triton runs the models; by default the CPU, with a plan the GPU.")
    ] = None,
    triton_batch: Annotated[int, typer.Option(min=1, help="Most crops that Triton takes at once.")] = 32,
    triton_plan: Annotated[
        Path | None, typer.Option(metavar="FILE", help="TensorRT engine of the bundle's graph, to run instead of it.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a bundle or repository that is there.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Turn a checkpoint into a bundle: ONNX graph, reference bank, and proof that decisions stay the same.

    A fifth of the real photographs (8 to 128) is held back from the bank; PyTorch and the exported model sign and
    score those, and the recipe's limits say how much may change. int8 is made for CPUs, fp16 for GPUs; where int8
    changes decisions, the layers that do it stay in fp32. Every installed runtime is verified on the result.
    The bundle has no thresholds until `mdmf calibrate`. Exit code 1 if the limits are missed; nothing is written then.

    With --triton, also write a model repository that a stock Triton serves without this package: crops in, scores out,
    and p-values where the bundle is calibrated and verified for what runs there. Of a bundle that is there already,
    that is all that is written. DIR/README.md says how to start it and what to send.

    Example: mdmf export run/checkpoint.safetensors --recipe starter --reals ~/photos -o starter.mdmf

    Example: mdmf export mine.mdmf --triton models/
    """
    serving = _serving(context, triton, triton_device, triton_batch, triton_plan)
    if _is_bundle(source):
        if given := _given(context, _MAKING):
            raise UsageError(f"{source} is a bundle already; {given} would make one of a checkpoint: leave that out")
        if triton is None:
            raise UsageError(f"{source} is a bundle already; give --triton DIR, or a checkpoint to export")

        from mdmf_deploy.bundle.bundle import Bundle

        bundle, done = Bundle.open(source), None
    else:
        if output is None or not reals:
            raise UsageError(f"{source}: exporting a checkpoint needs --reals PHOTOS and -o BUNDLE; give both")
        if triton_plan is not None:
            raise UsageError(
                f"{triton_plan}: no plan is of a bundle that is still to be made; export it, then --triton"
            )
        done = _export(source, reals, output, recipe, precision, backbone_weights, triton, force)
        bundle = done.bundle
        tell([f"{error.uri} ({error.code}): {error.text}" for error in done.bank.errors], "unreadable")
    written = None if triton is None else _write(bundle, triton, serving, force)
    place = source if output is None else str(output)
    if as_json:
        print_json(_facts_of(bundle, place, done) | ({"triton": _facts_of_repository(written)} if written else {}))
    else:
        print_facts(_lines_of(bundle, place, done) | (_lines_of_repository(written, bundle) if written else {}))
    if done and done.bank.errors:
        raise typer.Exit(3)


def _is_bundle(source: str) -> bool:
    from mdmf_deploy.bundle.bundle import shipped

    path = Path(source)
    return path.is_dir() or (not path.exists() and shipped(source).is_dir())


def _given(context: typer.Context, options: dict[str, str]) -> str:
    """Those of these options that were given, in words; "" if none was."""
    origins = {option: context.get_parameter_source(name) for name, option in options.items()}
    return " and ".join(option for option, origin in origins.items() if origin and origin.name == "COMMANDLINE")


def _serving(
    context: typer.Context, triton: Path | None, device: Device | None, batch: int, plan: Path | None
) -> Serving | None:
    if triton is None:
        if given := _given(context, _SERVING):
            raise UsageError(f"{given}: for Triton only; give --triton DIR, too")
        return None
    from mdmf_deploy.tasks.triton import Serving

    return Serving(device.value if device else "cpu" if plan is None else "gpu", batch, plan)


def _export(
    checkpoint: str,
    reals: list[str],
    output: Path,
    recipe: str,
    precision: Precision,
    backbone_weights: Path | None,
    triton: Path | None,
    force: bool,
) -> Exported:
    from mdmf_deploy.bundle.recipe import load_recipe
    from mdmf_deploy.images.inputs import expand

    if output.exists() and not force:
        raise UsageError(f"{output} exists; give --force to replace it, or another -o")
    loaded = load_recipe(recipe)
    inputs = expand(reals)
    if triton is not None:
        from mdmf_deploy.tasks.triton import check_repository, model_name

        # Before what may take hours.
        check_repository(triton, output, force)
        model_name(loaded.name)

    from mdmf_deploy.tasks.export.export import export as run

    def log(text: str) -> None:
        print(f"mdmf: {text}", file=sys.stderr)

    return run(Path(checkpoint), loaded, inputs.paths, output, precision.value, log, backbone_weights)


def _write(bundle: Bundle, triton: Path, serving: Serving | None, force: bool) -> Written:
    from mdmf_deploy.tasks.triton import write_repository

    return write_repository(bundle, triton, serving, force)


def _facts_of(bundle: Bundle, place: str, done: Exported | None) -> dict[str, object]:
    manifest = bundle.manifest
    facts: dict[str, object] = {
        "bundle": place,
        "bundle_id": manifest.bundle_id,
        "precision": manifest.model.precision,
        "bytes": sum(entry.size for entry in manifest.files.values()),
    }
    if done is None:
        return facts
    return facts | {
        "bank": {"images": done.bank.images, "signatures": len(done.bank.bank.signatures)},
        "refused": done.refused,
        "kept": manifest.model.kept,
        "verification": done.verification,
        "unreadable": done.bank.errors,
    }


def _lines_of(bundle: Bundle, place: str, done: Exported | None) -> dict[str, object]:
    manifest = bundle.manifest
    size = sum(entry.size for entry in manifest.files.values())
    lines: dict[str, object] = {
        "bundle": f"{place}, {size / 1e6:.1f} MB, id {manifest.bundle_id[:12]}",
        "precision": manifest.model.precision,
    }
    if done is None:
        return lines
    refused = "; ".join(f"{refusal.precision} ({refusal.reason})" for refusal in done.refused)
    gates = done.verification
    return lines | {
        "refused": refused or "none",
        "bank": f"{len(done.bank.bank.signatures)} signatures of {done.bank.images} images",
        "kept in fp32": ", ".join(manifest.model.kept) or "-",
        "verified on": f"{gates[0].images} images",
        **{gate.runtime: _told(gate) for gate in gates},
        "next": f"mdmf calibrate {place} REAL_IMAGES",
    }


def _facts_of_repository(written: Written) -> dict[str, object]:
    return {
        "repository": str(written.path),
        "name": written.name,
        "models": written.models,
        "runtime": written.runtime,
        "p_values": written.caveat is None,
        "caveat": written.caveat,
        "rounding": written.rounding,
    }


def _lines_of_repository(written: Written, bundle: Bundle) -> dict[str, object]:
    return {
        "triton": f"{written.path}, {written.name} = {', '.join(written.models)}",
        "signed by": f"{written.runtime} {bundle.manifest.model.precision}",
        "checked": f"shares of scores differ by at most {written.rounding:.2g} from ours in ONNX Runtime",
        "p-values": f"none: {written.caveat}" if written.caveat else "yes, from the bundle's calibration",
        "see": written.path / "README.md",
    }


def _told(gate: Verification) -> str:
    state = "passed" if gate.passed else f"failed: {'; '.join(gate.reasons)}"
    return (
        f"{state}; {gate.images_per_second or 0:.3g} images/s, score change at most {gate.max_score_change:.3g} of the "
        f"spread of real scores, signature error {gate.max_signature_error:.3g} at most"
    )
