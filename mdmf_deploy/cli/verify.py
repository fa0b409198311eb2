"""`mdmf verify`: a gate for each runtime."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mdmf_deploy.cli.console import log, log_written, print_json, print_text
from mdmf_deploy.cli.options import AsJson, BundleArgument, Force, Yes, complete_recipe, destination, runtime_option

if TYPE_CHECKING:
    from mdmf_deploy.bundle.bundle import Bundle
    from mdmf_deploy.bundle.manifest import Verification
    from mdmf_deploy.runtime import Engine


def verify(
    bundle: BundleArgument,
    images: Annotated[
        list[str] | None,
        typer.Argument(help="Real images, with --checkpoint: folders, files, globs, @LIST, or - for stdin."),
    ] = None,
    runtime: Annotated[
        list[str] | None,
        runtime_option(
            "Runtime to verify on this machine; may be repeated. all: every one that can be used here. By default auto."
        ),
    ] = None,
    checkpoint: Annotated[Path | None, typer.Option(help="Compare with PyTorch on this checkpoint and IMAGES.")] = None,
    backbone_weights: Annotated[
        Path | None, typer.Option(help="The backbone's own file, if the bundle was exported with one.")
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            metavar="RECIPE",
            autocompletion=complete_recipe,
            help="The checkpoint's recipe, a name or a .toml file.",
            show_default="the one in the checkpoint",
        ),
    ] = None,
    record: Annotated[
        bool, typer.Option("--record/--no-record", help="Add the result to the bundle's manifest.")
    ] = True,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="BUNDLE", help="Record the result in a copy here; by default in place."),
    ] = None,
    force: Force = False,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Check that a runtime gives the source model's verdicts here.

    The source is the model that the bundle was made from.

    With only a bundle, it compares the runtime's results on built-in probe images with the source's results at export.
    With --checkpoint and images, PyTorch runs again as the source. Thresholds hold only for runtimes that have passed,
    so the result is recorded in the bundle, or in a copy with -o. A record from a GPU holds only for GPUs of the same
    model. Exit code 1 if a limit is missed.

    With `--runtime all`, a runtime that cannot open or run the model is reported on stderr as not verified. The others
    go on, and the exit code is 1.

    The runtimes' speeds are also measured, in turn, and recorded: `--runtime auto` takes the fastest one that has
    passed.

    Example: mdmf verify mine.mdmf --runtime all
    """
    from mdmf_deploy.bundle.bundle import Bundle
    from mdmf_deploy.errors import BundleError, GateFailed, UsageError
    from mdmf_deploy.images.inputs import expand

    if (checkpoint is None) != (not images):
        raise UsageError(
            "verify: --checkpoint and IMAGES go together; give both, or neither to use the built-in probes"
        )
    if output is not None and not record:
        raise UsageError("verify: -o writes a copy with the record; give -o or --no-record")
    opened = Bundle.open(bundle)
    if output is not None:
        destination(opened, output, force)
    photographs = expand(images, yes, log).paths if images else ()
    with contextlib.ExitStack() as stack:
        engines, failed = _engines(opened, runtime or ["auto"], stack)
        if checkpoint is None:
            from mdmf_deploy.tasks.verify import verify_probes

            gates = [verify_probes(opened, engine) for engine in engines]
        else:
            gates = _against_checkpoint(opened, engines, checkpoint, backbone_weights, recipe, photographs)
        results = _with_speeds(opened, engines, gates)
    recorded = None
    if record and results:
        from mdmf_deploy.tasks.verify import record as write

        try:
            recorded = write(opened, *results, destination=destination(opened, output, force or output is None))
        except (BundleError, UsageError) as error:
            if output is not None:
                raise
            log(f"not recorded: {error}")
    if as_json:
        print_json({"bundle": str(opened.path), "bundle_id": opened.bundle_id, "records": results})
    elif results:
        _print_table(opened, results, probes=checkpoint is None)
    if recorded is not None:
        where = output or opened.path
        following = "" if failed or any(result.reasons for result in results) else _following(recorded, where)
        log_written(f"the verification on {', '.join(result.runtime for result in results)}", where, following)
    failed += [
        f"{result.runtime} {result.precision}: {'; '.join(result.reasons)}" for result in results if result.reasons
    ]
    if failed:
        raise GateFailed(f"{opened.path} on {'; on '.join(failed)}")


def _engines(bundle: Bundle, asked: list[str], stack: contextlib.ExitStack) -> tuple[list[Engine], list[str]]:
    """Return the engines asked for, and a line on each one that `all` includes but that does not work.

    The stack closes the engines. Raises the error of a runtime that was asked for by name.
    """
    import numpy as np

    from mdmf_deploy.errors import RuntimeUnavailable, install
    from mdmf_deploy.runtime import installed, open_engine

    found = installed() if "all" in asked else []
    if "all" in asked and not found:
        raise RuntimeUnavailable(f"no runtime is installed; run: {install('cpu')}")
    engines, failed = [], []
    crop = bundle.manifest.preprocessing.crop
    for name in dict.fromkeys(name for given in asked for name in (found if given == "all" else [given])):
        try:
            engine = open_engine(name, bundle)
            stack.callback(engine.close)
            engine(np.zeros((1, 3, crop, crop), np.float32))
        # The errors of runtimes share no base class.
        except Exception as error:
            if name in asked:
                raise
            failed.append(f"{name}: not verified, {' '.join(str(error).split())}")
            log(failed[-1])
        else:
            engines.append(engine)
    return engines, failed


def _with_speeds(bundle: Bundle, engines: list[Engine], gates: list[Verification]) -> list[Verification]:
    import msgspec

    from mdmf_deploy.runtime import images_per_second

    rates = images_per_second(engines, bundle.manifest.preprocessing.crop)
    return [msgspec.structs.replace(gate, images_per_second=rate) for gate, rate in zip(gates, rates, strict=True)]


def _against_checkpoint(
    bundle: Bundle,
    engines: list[Engine],
    checkpoint: Path,
    backbone_weights: Path | None,
    recipe: str | None,
    images: Sequence[Path],
) -> list[Verification]:
    from mdmf_deploy.errors import UsageError
    from mdmf_deploy.model.checkpoints import checkpoint_sha256, load_model
    from mdmf_deploy.model.onnx_weights import weights_source
    from mdmf_deploy.model.pfs import TorchEngine
    from mdmf_deploy.model.recipes import recipe_of
    from mdmf_deploy.tasks.verify import verify_images

    made_of = bundle.manifest.provenance
    if made_of.checkpoint_sha256 not in ("", checkpoint_sha256(checkpoint)):
        raise UsageError(
            f"{checkpoint} is not the checkpoint this bundle was made of ({made_of.checkpoint_sha256[:12]}); "
            "export it, or give that one"
        )
    if made_of.backbone is not None and backbone_weights is not None:
        found = weights_source(backbone_weights).sha256
        if found != made_of.backbone.sha256:
            raise UsageError(
                f"{backbone_weights} (sha256 {found[:12]}) is not the backbone this bundle was made of, "
                f"{made_of.backbone} (sha256 {made_of.backbone.sha256[:12]}); give that file"
            )
    source = TorchEngine(load_model(checkpoint, recipe_of(checkpoint, recipe), backbone_weights))
    results, left_out = verify_images(bundle, engines, source, images)
    if left_out:
        log(f"{left_out} inputs unreadable or given twice, left out")
    return results


def _following(bundle: Bundle, path: Path) -> str:
    """Return the command to run on a verified bundle."""
    from mdmf_deploy.bundle.bundle import suggestion

    if bundle.calibration is None:
        return suggestion("calibrate", path, "REAL_PHOTOS")
    return suggestion("detect", path)


def _print_table(bundle: Bundle, results: list[Verification], probes: bool) -> None:
    from mdmf_deploy.tasks.verify import NOT_JUDGED_ON_PROBES, limits_by_figure

    def row(name: str, values: list[str], limit: str = "") -> None:
        print_text(f"{name:<22}{''.join(f'{value:>14}' for value in values)}  {limit}".rstrip())

    first = results[0]
    print_text(f"{bundle.path}, {first.precision}, against {first.reference}\n")
    row("figure", [result.runtime for result in results], "limit")
    row("max signature error", [f"{result.max_signature_error:.3g}" for result in results])
    row("mean signature error", [f"{result.mean_signature_error:.3g}" for result in results])
    for name, limit in limits_by_figure(bundle.manifest.limits).items():
        judged = f"{'>=' if name == 'rank_correlation' else '<='} {limit:g}"
        if probes and name in NOT_JUDGED_ON_PROBES:
            judged = "not judged on probes"
        row(name.replace("_", " "), [f"{getattr(result, name):.6g}" for result in results], judged)
    row("images per second", [f"{result.images_per_second or 0:.3g}" for result in results])
    row("", ["passed" if result.passed else "failed" for result in results])
    print_text(
        f"\nscores change in units of {first.score_spread:.3g}, the spread of real scores\n"
        f"threshold {first.threshold:.6g}\n"
        "speed of the runtime alone, one crop an image, batches of 8"
    )
