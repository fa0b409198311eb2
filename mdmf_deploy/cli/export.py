"""`mdmf export`: a checkpoint to a bundle, a bundle to a Triton repository."""

from __future__ import annotations

from enum import StrEnum
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mdmf_deploy.cli.console import log, log_unreadable, log_written, print_facts, print_json
from mdmf_deploy.cli.kept import watch
from mdmf_deploy.cli.options import Anonymous, AsJson, Yes, complete_recipe
from mdmf_deploy.errors import UsageError, install

if TYPE_CHECKING:
    from mdmf_deploy.bundle.bundle import Bundle
    from mdmf_deploy.bundle.manifest import Verification
    from mdmf_deploy.tasks.export.export import Exported
    from mdmf_deploy.tasks.triton import Serving, Written


class ExportPrecision(StrEnum):
    auto = "auto"
    fp32 = "fp32"
    fp16 = "fp16"
    int8 = "int8"


class TritonDevice(StrEnum):
    cpu = "cpu"
    gpu = "gpu"


# Parameter -> option: those that turn a checkpoint into a bundle, and those that serve a bundle.
_MAKING = {
    "reals": "--reals",
    "output": "-o",
    "recipe": "--recipe",
    "precision": "--precision",
    "backbone_weights": "--backbone-weights",
    "golden": "--golden",
    "anonymous": "--anonymous",
}
_SERVING = {"triton_device": "--triton-device", "triton_batch": "--triton-batch", "triton_plan": "--triton-plan"}


def export(
    context: typer.Context,
    source: Annotated[
        str,
        typer.Argument(
            metavar="CHECKPOINT|BUNDLE",
            help="A checkpoint that `mdmf train` wrote; with --triton also a bundle's folder or name.",
        ),
    ],
    reals: Annotated[
        list[str] | None,
        typer.Option(
            "--reals",
            metavar="PATHS",
            help="Real photographs: a folder, file, glob, @LIST, or - for stdin; may be repeated.",
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="BUNDLE", help="Bundle to write, a .mdmf folder.")
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            metavar="RECIPE",
            autocompletion=complete_recipe,
            help="The recipe that the checkpoint was trained by, a name or a .toml file. Its crop plan and its tables "
            "export, bank and verification may differ.",
            show_default="the one in the checkpoint",
        ),
    ] = None,
    precision: Annotated[
        ExportPrecision,
        typer.Option(help="auto: the recipe's, or fp32 if that changes decisions. Others: this one, or no export."),
    ] = ExportPrecision.auto,
    backbone_weights: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="The backbone's own file (.pth, .safetensors, .onnx, .whl), if the checkpoint lacks it.",
        ),
    ] = None,
    golden: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Scores by the code that trained the head, if that was elsewhere (docs/training.md)."
        ),
    ] = None,
    triton: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Also write a model repository for Triton Inference Server here.")
    ] = None,
    triton_device: Annotated[
        TritonDevice | None,
        typer.Option(help="Where Triton runs the models; by default the CPU, with a plan the GPU."),
    ] = None,
    triton_batch: Annotated[int, typer.Option(min=1, help="Most crops that Triton accepts at once.")] = 32,
    triton_plan: Annotated[
        Path | None, typer.Option(metavar="FILE", help="TensorRT engine of the bundle's graph, to run in its place.")
    ] = None,
    anonymous: Anonymous = False,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing bundle or repository.")] = False,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Turn a checkpoint into a verified bundle.

    It gets an ONNX graph, a reference bank, and a check that decisions stay the same.

    A fifth of the real photographs (8 to 128) is held back from the bank. PyTorch and the exported model both score
    them, and the recipe limits how much may change. int8 is meant for CPUs, fp16 for GPUs. If int8 changes decisions,
    the layers responsible stay in fp32. Every installed runtime is verified on the result. The bundle has no thresholds
    until `mdmf calibrate`. Exit code 1 if the limits are missed: nothing is written then.

    With --triton, also write a model repository that a stock Triton serves without this package: crops in, scores out.
    Given a bundle instead of a checkpoint, only the repository is written. DIR/README.md explains how to start it, what
    to send, and, if the bundle is calibrated and verified for the runtime there, how to reach a verdict.

    Example: mdmf export run/checkpoint.safetensors --reals ~/photos -o starter.mdmf

    Example: mdmf export mine.mdmf --triton models/
    """
    from_bundle = _is_bundle(source)
    if from_bundle and triton is not None:
        _require_triton_extra()
    if triton is not None:
        watch(triton)
    serving = _serving(context, triton, triton_device, triton_batch, triton_plan)
    if from_bundle:
        if given := _given(context, _MAKING):
            raise UsageError(f"{source} is a bundle already; {given}: for a checkpoint only, leave that out")
        if triton is None:
            raise UsageError(f"{source} is a bundle already; give --triton DIR, or a checkpoint to export")

        from mdmf_deploy.bundle.bundle import Bundle

        bundle, done = Bundle.open(source), None
    else:
        if output is None or not reals:
            raise UsageError(f"{source}: exporting a checkpoint needs --reals PHOTOS and -o BUNDLE; give both")
        if triton_plan is not None:
            raise UsageError(f"{triton_plan}: a plan is made of a bundle; export the bundle first, then give --triton")
        watch(output)
        if output.exists() and not force:
            raise UsageError(f"{output} exists; give --force to replace it, or another -o")

        from mdmf_deploy.images.inputs import expand
        from mdmf_deploy.model.recipes import recipe_of

        # Everything is checked before an export, which may take hours.
        if triton is not None:
            from mdmf_deploy.tasks.triton import check_repository, model_name

            check_repository(triton, output, force)
        checkpoint = Path(source)
        loaded = recipe_of(checkpoint, recipe, log)
        if triton is not None:
            model_name(loaded.name)
        photographs = expand(reals, yes, log).paths

        from mdmf_deploy.tasks.export.export import TrainedModel
        from mdmf_deploy.tasks.export.export import export as export_model

        model = TrainedModel(checkpoint, loaded, backbone_weights, golden)
        done = export_model(model, photographs, output, precision.value, log, anonymous=anonymous)
        bundle = done.bundle
        log_unreadable(done.bank.errors)
    from mdmf_deploy.bundle.bundle import suggestion

    written = None
    if triton is not None:
        from mdmf_deploy.tasks.triton import write_repository

        written = write_repository(bundle, triton, serving, force)
    place = source if output is None else str(output)
    if as_json:
        print_json(_facts_of(bundle, place, done) | ({"triton": _facts_of_repository(written)} if written else {}))
    else:
        print_facts(_lines_of(bundle, place, done) | (_lines_of_repository(written, bundle) if written else {}))
    if output is not None:
        log_written("the bundle", output, suggestion("calibrate", output, "REAL_PHOTOS"))
    if triton is not None:
        log_written("the Triton repository", triton, f"see {triton / 'README.md'}")
    if done and done.bank.errors:
        raise typer.Exit(3)


def _is_bundle(source: str) -> bool:
    from mdmf_deploy.bundle.bundle import shipped

    path = Path(source)
    return path.is_dir() or (not path.exists() and shipped(source).is_dir())


def _require_triton_extra() -> None:
    # Without this, the missing package would be named with the extra `export`, which brings torch.
    for package in ("onnx", "onnxruntime"):
        if find_spec(package) is None:
            raise UsageError(f"--triton needs {package}; run: {install('triton')}")


def _given(context: typer.Context, options: dict[str, str]) -> str:
    """Return the options of this table that were given, joined by "and". Return "" if none was."""
    origins = {option: context.get_parameter_source(name) for name, option in options.items()}
    return " and ".join(option for option, origin in origins.items() if origin and origin.name == "COMMANDLINE")


def _serving(
    context: typer.Context, triton: Path | None, device: TritonDevice | None, batch: int, plan: Path | None
) -> Serving | None:
    if triton is None:
        if given := _given(context, _SERVING):
            raise UsageError(f"{given}: for Triton only; give --triton DIR, too")
        return None
    from mdmf_deploy.tasks.triton import Serving

    return Serving(device.value if device else "cpu" if plan is None else "gpu", batch, plan)


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
        **{gate.runtime: _gate_line(gate) for gate in gates},
    }


def _facts_of_repository(written: Written) -> dict[str, object]:
    return {
        "repository": str(written.path),
        "name": written.name,
        "models": written.models,
        "runtime": written.runtime,
        "verdicts": written.caveat is None,
        "caveat": written.caveat,
        "rounding": written.rounding,
    }


def _lines_of_repository(written: Written, bundle: Bundle) -> dict[str, object]:
    return {
        "triton": f"{written.path}, {written.name} = {', '.join(written.models)}",
        "extracted by": f"{written.runtime} {bundle.manifest.model.precision}",
        "checked": f"shares of scores differ by at most {written.rounding:.2g} from ours in ONNX Runtime",
        "verdicts": f"none: {written.caveat}" if written.caveat else "by the thresholds in its README",
        "see": written.path / "README.md",
    }


def _gate_line(gate: Verification) -> str:
    state = "passed" if gate.passed else f"failed: {'; '.join(gate.reasons)}"
    return (
        f"{state}; {gate.images_per_second or 0:.3g} images/s, score change at most {gate.max_score_change:.3g} of the "
        f"spread of real scores, signature error {gate.max_signature_error:.3g} at most"
    )
