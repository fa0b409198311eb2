"""`mdmf build`: engines for GPUs."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Annotated

import typer

from mdmf_deploy.cli.console import log, log_written, print_json, print_lines
from mdmf_deploy.cli.options import AsJson, BundleArgument

if TYPE_CHECKING:
    from mdmf_deploy.runtime.building.plans import Plan


def build(
    bundle: BundleArgument,
    flavour: Annotated[
        str, typer.Option(help="tensorrt for the GPU in this machine, or rtx for GeForce and RTX cards.")
    ] = "tensorrt",
    profile: Annotated[
        str, typer.Option(help="Batch sizes to build for: default, latency, throughput, or a .toml file.")
    ] = "default",
    compute_capability: Annotated[
        list[str] | None,
        typer.Option(
            help="rtx: build for GPUs of this compute capability, such as 8.9, with no GPU here; may be repeated."
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Build again, even if an engine exists.")] = False,
    as_json: AsJson = False,
) -> None:
    """Compile a bundle's model into an engine for a GPU.

    The engine is for `--runtime tensorrt` and `--runtime rtx`.

    These runtimes build it themselves at first use. This command does it beforehand. An engine is stored with
    everything it depends on: the model, the library's version, the GPU, the profile, and how it was built. If one of
    these has changed, or the file is damaged, it is built again. The precision is the bundle's. Export the bundle in
    another precision to change it.

    To use an engine built with another profile, name the profile: `--runtime tensorrt:throughput`.

    Example: mdmf build mine.mdmf --flavour rtx --compute-capability 8.9 --compute-capability 12.0
    """
    from mdmf_deploy.bundle.bundle import Bundle
    from mdmf_deploy.errors import RuntimeUnavailable, UsageError
    from mdmf_deploy.runtime.building.flavours import FLAVOURS, parse_capability
    from mdmf_deploy.runtime.building.obtain import obtain
    from mdmf_deploy.runtime.building.plans import BuildRequest
    from mdmf_deploy.runtime.building.profiles import load_profile

    if flavour not in FLAVOURS:
        raise UsageError(f"--flavour {flavour!r} is not known; choose one of {', '.join(FLAVOURS)}")
    made_by = FLAVOURS[flavour]
    if compute_capability and not made_by.portable:
        raise UsageError("--compute-capability: tensorrt builds for the GPU at hand alone; leave it out, or use rtx")
    chosen = load_profile(profile)
    opened = Bundle.open(bundle)
    plans, built = [], list[str]()

    def building(reason: str) -> None:
        log(reason)
        built.append(reason)

    if compute_capability:
        from mdmf_deploy.runtime.needs import require_library

        require_library(made_by)
        targets = dict.fromkeys(parse_capability(text) for text in compute_capability)
        requests = [BuildRequest(opened, made_by, made_by.load(), chosen, target) for target in targets]
        plans = [obtain(request, building, again=force) for request in requests]
    else:
        from mdmf_deploy.hardware.gpu import probe
        from mdmf_deploy.runtime.building.obtain import load_plan
        from mdmf_deploy.runtime.needs import require

        try:
            require(flavour)
        except RuntimeUnavailable as error:
            if not made_by.portable:
                raise
            raise RuntimeUnavailable(f"{error}; or give --compute-capability, which needs no GPU") from error
        gpu = probe()
        request = BuildRequest(opened, made_by, made_by.load(), chosen, gpu.compute_capability, gpu.name)
        if force:
            obtain(request, building, again=True)
        plans = [load_plan(request, building)[0]]
    if as_json:
        from msgspec import to_builtins

        print_json({"engines": [{"path": str(plan.path), **to_builtins(plan.card)} for plan in plans]})
    else:
        print_lines(line for plan in plans for line in _lines(plan))
    if built:
        runtime = flavour if profile == "default" else f"{flavour}:{profile}"
        what, where = ("the engine", plans[0].path) if len(plans) == 1 else ("the engines", plans[0].path.parent)
        log_written(what, where, shlex.join(["mdmf", "detect", "photos/", "--bundle", bundle, "--runtime", runtime]))


def _lines(plan: Plan) -> list[str]:
    card, key = plan.card, plan.card.key
    batch = key.profile["batch"]
    facts = {
        "for": f"{key.gpu or 'any GPU'}, compute capability {key.compute_capability}, {key.library} {key.version}",
        "batches": f"{batch['min']} to {batch['max']}, fastest at {batch['opt']} (profile {card.profile})",
        "inputs": "; ".join(f"{one.name} {one.type} {list(one.shape)}" for one in card.inputs),
        "outputs": "; ".join(f"{one.name} {one.type} {list(one.shape)}" for one in card.outputs),
        "layers": f"{card.layers}, of them fused attention: {card.fused_attention}" if card.layers else "unknown",
        "built in": f"{card.build_seconds:.1f} s",
        "size": f"{card.size:,} bytes, sha256 {card.sha256}",
    }
    return [str(plan.path), *(f"  {name:<9} {text}" for name, text in facts.items())]
