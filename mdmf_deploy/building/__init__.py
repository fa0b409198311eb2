"""Engines: a bundle's graph compiled for one GPU, kept with everything it depends on, and rebuilt when that changes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

from mdmf_deploy.building.compiling import compile_graph
from mdmf_deploy.building.flavours import Flavour, dotted, flags
from mdmf_deploy.building.keys import EngineKey, profile_key, this_platform
from mdmf_deploy.building.plans import Plan, PlanCard, find, keep, timing_path
from mdmf_deploy.building.profiles import Profile
from mdmf_deploy.bundle.bundle import Bundle


def engine_key(
    bundle: Bundle,
    library: str,
    version: str,
    flags: tuple[str, ...],
    profile: Profile,
    capability: tuple[int, int],
    gpu: str,
) -> EngineKey:
    """gpu: the name of the GPU to build for and on, "" for any of this compute capability; the rest as in EngineKey."""
    return EngineKey(
        model=bundle.manifest.model_sha256,
        library=library,
        version=version,
        compute_capability=dotted(capability),
        gpu=gpu,
        profile=profile_key(profile),
        flags=flags,
        platform=this_platform(),
    )


def key_for(
    bundle: Bundle, flavour: Flavour, library: Any, profile: Profile, capability: tuple[int, int], gpu: str
) -> EngineKey:
    """gpu: the name of the GPU to build for and on; portable plans are for any."""
    version, told = str(library.__version__), flags(flavour, library, bundle.manifest.model.precision)
    gpu = "" if flavour.portable else gpu
    return engine_key(bundle, flavour.module, version, told, profile, capability, gpu)


def obtain(
    bundle: Bundle,
    flavour: Flavour,
    library: Any,
    profile: Profile,
    capability: tuple[int, int],
    gpu: str,
    say: Callable[[str], None],
    *,
    again: bool = False,
) -> Plan:
    """The plan of this key, built if there is none, if it is damaged, or if `again` asks for it; say tells why.

    Raises EngineError if it cannot be built, UsageError for a compute capability that is unknown or a full disk.
    """
    key = key_for(bundle, flavour, library, profile, capability, gpu)
    found = "asked to build again" if again else find(key)
    if isinstance(found, Plan):
        return found
    where = gpu if key.gpu else f"compute capability {key.compute_capability}"
    say(f"{flavour.runtime}: {found}; building for {where}, profile {profile.name}")
    made = compile_graph(
        flavour,
        library,
        bundle.model_path,
        bundle.manifest.model.precision,
        profile,
        capability,
        timing_path(key),
    )
    card = PlanCard(
        key=key,
        profile=profile.name,
        sha256=hashlib.sha256(made.data).hexdigest(),
        size=len(made.data),
        inputs=made.inputs,
        outputs=made.outputs,
        layers=made.layers,
        fused_attention=made.fused_attention,
        build_seconds=round(made.seconds, 3),
    )
    return keep(card, made.data)
