"""`mdmf verify`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mdmf_deploy.cli._reals import destination, print_json

if TYPE_CHECKING:
    from mdmf_deploy.bundle import Bundle, Verification
    from mdmf_deploy.runtime import Engine


def verify(
    bundle: Annotated[str, typer.Argument(help="A .mdmf folder, or 'starter'.")],
    images: Annotated[
        list[str] | None,
        typer.Argument(help="Real images, with --checkpoint: folders, files, globs, @LIST, or - for stdin."),
    ] = None,
    runtime: Annotated[str, typer.Option(help="Runtime to verify on this machine.")] = "auto",
    checkpoint: Annotated[
        Path | None, typer.Option(help="Run PyTorch on this checkpoint as the source, on IMAGES.")
    ] = None,
    backbone_weights: Annotated[
        Path | None, typer.Option(help="The backbone's own file, if the bundle was exported with one.")
    ] = None,
    recipe: Annotated[
        str | None, typer.Option(help="The checkpoint's recipe; by default the one the bundle names.")
    ] = None,
    record: Annotated[
        bool, typer.Option("--record/--no-record", help="Add the result to the bundle's manifest.")
    ] = True,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Record in a copy written here; by default in place.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Check on this machine that a runtime's verdicts are those of the model the bundle was made from.

    With the bundle alone, it compares what the source made of built-in probe images at export with what the runtime
    makes of them here. With --checkpoint and images, PyTorch runs again as the source. Thresholds hold only for
    runtimes that have passed, so the result is recorded in the bundle, or with -o in a copy. Exit code 1 if a limit is
    missed.

    Example: mdmf verify mine.mdmf --runtime onnxruntime
    """
    from mdmf_deploy.bundle import Bundle
    from mdmf_deploy.errors import BundleError, GateFailed, UsageError
    from mdmf_deploy.runtime import open_engine

    if (checkpoint is None) != (not images):
        raise UsageError(
            "verify: --checkpoint and IMAGES go together; give both, or neither to use the built-in probes"
        )
    if output is not None and not record:
        raise UsageError("verify: -o writes a copy with the record; give -o or --no-record")
    opened = Bundle.open(bundle)
    if output is not None:
        destination(opened, output)
    engine = open_engine(runtime, opened)
    try:
        if checkpoint is None:
            from mdmf_deploy.verifying import verify_probes

            result = verify_probes(opened, engine)
        else:
            result = _against_checkpoint(opened, engine, checkpoint, backbone_weights, recipe, images or [])
    finally:
        engine.close()
    if record:
        from mdmf_deploy.verifying import record as write

        try:
            write(opened, result, destination(opened, output))
        except (BundleError, UsageError) as error:
            if output is not None:
                raise
            print(f"mdmf: not recorded: {error}", file=sys.stderr)
    if as_json:
        print_json({"bundle": str(opened.path), "bundle_id": opened.bundle_id, **_fields(result)})
    else:
        _print_table(opened, result)
    if not result.passed:
        raise GateFailed(f"{opened.path} on {result.runtime} {result.precision}: {'; '.join(result.reasons)}")


def _against_checkpoint(
    bundle: Bundle,
    engine: Engine,
    checkpoint: Path,
    backbone_weights: Path | None,
    recipe: str | None,
    images: list[str],
) -> Verification:
    from mdmf_deploy.errors import UsageError
    from mdmf_deploy.inputs import expand
    from mdmf_deploy.model.checkpoints import load_source, source_sha256
    from mdmf_deploy.recipe import load_recipe
    from mdmf_deploy.runtime.torch_reference import TorchEngine
    from mdmf_deploy.verifying import verify_images

    made_of = bundle.manifest.provenance
    if made_of.checkpoint_sha256 not in ("", source_sha256(checkpoint, backbone_weights)):
        raise UsageError(
            f"{checkpoint} is not the checkpoint this bundle was made of ({made_of.checkpoint_sha256[:12]}); "
            "export it, or give that one"
        )
    source = TorchEngine(load_source(checkpoint, load_recipe(recipe or made_of.recipe), backbone_weights))
    result, left_out = verify_images(bundle, engine, source, expand(images).paths)
    if left_out:
        print(f"mdmf: {left_out} inputs unreadable or given twice, left out", file=sys.stderr)
    return result


def _fields(result: Verification) -> dict[str, object]:
    import msgspec

    return msgspec.structs.asdict(result)


def _print_table(bundle: Bundle, result: Verification) -> None:
    from mdmf_deploy.verifying import limits_by_figure

    print(f"{bundle.path} on {result.runtime} {result.precision}, against {result.reference}\n")
    print(f"{'figure':<22}{'value':>12}  limit")
    print(f"{'max signature error':<22}{result.max_signature_error:>12.3g}")
    print(f"{'mean signature error':<22}{result.mean_signature_error:>12.3g}")
    for name, limit in limits_by_figure(bundle.manifest.limits).items():
        sign = ">=" if name == "rank_correlation" else "<="
        print(f"{name.replace('_', ' '):<22}{getattr(result, name):>12.6g}  {sign} {limit:g}")
    print(
        f"\n{'passed' if result.passed else 'failed'}; scores change in units of {result.score_spread:.3g}, "
        f"the spread of real scores; threshold {result.threshold:.6g}"
    )
