"""`mdmf build`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from mdmf_deploy.runtime.building.plans import Plan


def build(
    bundle: Annotated[str, typer.Argument(help="A .mdmf folder, or 'starter'.")],
    flavour: Annotated[
        str, typer.Option(help="tensorrt, for the GPU at hand, or rtx, for GeForce and RTX cards.")
    ] = "tensorrt",
    profile: Annotated[
        str, typer.Option(help="Which batches to build for: default, latency, throughput, or a .toml file.")
    ] = "default",
    compute_capability: Annotated[
        list[str] | None,
        typer.Option(help="rtx: build for GPUs of this one, as 8.9, with no need of one here; may be repeated."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Build again, whatever is there.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Compile a bundle's model into an engine for a GPU, once; `--runtime tensorrt` and `rtx` then take it.

    They build it themselves at first use; this does so beforehand. An engine is kept with everything it depends on: the
    model, the library's version, the GPU, the profile, and how it was built. Where one of these has changed, or the
    file is damaged, it is built again. Precision is the bundle's: export it in another one to change that.

    Use it with another profile than the default as `--runtime tensorrt:throughput`.

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
    plans = []
    if compute_capability:
        from mdmf_deploy.runtime.needs import require_library

        require_library(made_by)
        targets = dict.fromkeys(parse_capability(text) for text in compute_capability)
        requests = [BuildRequest(opened, made_by, made_by.load(), chosen, target) for target in targets]
        plans = [obtain(request, _log, again=force) for request in requests]
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
            obtain(request, _log, again=True)
        plans = [load_plan(request, _log)[0]]
    if as_json:
        _print_json(plans)
    else:
        typer.echo("\n".join(line for plan in plans for line in _lines(plan)))


def _log(text: str) -> None:
    print(f"mdmf: {text}", file=sys.stderr)


def _print_json(plans: list[Plan]) -> None:
    import msgspec

    told = [{"path": str(plan.path), **msgspec.to_builtins(plan.card)} for plan in plans]
    typer.echo(msgspec.json.format(msgspec.json.encode({"engines": told}), indent=2).decode())


def _lines(plan: Plan) -> list[str]:
    card, key = plan.card, plan.card.key
    batch = key.profile["batch"]
    told = {
        "for": f"{key.gpu or 'any GPU'}, compute capability {key.compute_capability}, {key.library} {key.version}",
        "batches": f"{batch['min']} to {batch['max']}, fastest at {batch['opt']} (profile {card.profile})",
        "inputs": "; ".join(f"{one.name} {one.type} {list(one.shape)}" for one in card.inputs),
        "outputs": "; ".join(f"{one.name} {one.type} {list(one.shape)}" for one in card.outputs),
        "layers": f"{card.layers}, of them fused attention: {card.fused_attention}" if card.layers else "not told",
        "built in": f"{card.build_seconds:.1f} s",
        "size": f"{card.size:,} bytes, sha256 {card.sha256}",
    }
    return [str(plan.path), *(f"  {name:<9} {text}" for name, text in told.items())]
