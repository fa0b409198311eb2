"""Engines: a bundle's graph compiled for one GPU, kept with everything it depends on, and rebuilt when that changes."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec

from mdmf_deploy.bundle.bundle import Bundle
from mdmf_deploy.errors import EngineError
from mdmf_deploy.files import write_to_cache
from mdmf_deploy.hardware.gpu import probe
from mdmf_deploy.runtime.building.compile import compile_graph, fused, new_log
from mdmf_deploy.runtime.building.flavours import Flavour, dotted, flags
from mdmf_deploy.runtime.building.plans import (
    EngineKey,
    Plan,
    PlanCard,
    Tensor,
    amend,
    find,
    keep,
    layers_path,
    profile_key,
    this_platform,
    timing_path,
)
from mdmf_deploy.runtime.building.profiles import Profile

if TYPE_CHECKING:
    import tensorrt as trt


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
    log: Callable[[str], None],
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
    log(f"{flavour.runtime}: {found}; building for {where}, profile {profile.name}")
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


def load_plan(
    bundle: Bundle,
    flavour: Flavour,
    library: Any,
    profile: Profile,
    capability: tuple[int, int],
    gpu: str,
    log: Callable[[str], None],
) -> tuple[Plan, Any]:
    """The plan of this key, and its engine; built if need be, and once more if it is whole but refused.

    Raises as obtain does; RuntimeUnavailable without a GPU, EngineError if what was just built is
    refused.
    """
    order = bundle, flavour, library, profile, capability, gpu, log
    plan = obtain(*order)
    engine = deserialise(library, plan.data)
    if engine is None:
        log(f"{flavour.runtime}: {plan.path} is whole, but {flavour.module} does not load it")
        plan = obtain(*order, again=True)
        engine = deserialise(library, plan.data)
    if engine is None:
        raise EngineError(
            f"{plan.path}: {flavour.module} {library.__version__} does not load what it has just built; update the "
            "driver, or reinstall the library"
        )
    return _look_inside(library, engine, plan), engine


def deserialise(library: Any, data: bytes) -> Any:
    """The engine of a plan, or None if the library refuses it.  Raises RuntimeUnavailable without a GPU."""
    probe()
    runtime: trt.Runtime = _runtime(library)[0]
    return runtime.deserialize_cuda_engine(data)


def _look_inside(library: Any, engine: trt.ICudaEngine, plan: Plan) -> Plan:
    """Once for each plan: what its engine says of its layers, kept beside it, and of its types, noted on its card."""
    path = layers_path(plan.path)
    if path.exists():
        return plan
    inspector: trt.EngineInspector = engine.create_engine_inspector()
    told = str(inspector.get_engine_information(library.LayerInformationFormat.JSON))
    tensors: dict[Any, list[Tensor]] = {library.TensorIOMode.INPUT: [], library.TensorIOMode.OUTPUT: []}
    for place in range(engine.num_io_tensors):
        name = engine.get_tensor_name(place)
        kind = str(engine.get_tensor_dtype(name)).rpartition(".")[2]
        tensors[engine.get_tensor_mode(name)].append(
            Tensor(name=name, shape=tuple(engine.get_tensor_shape(name)), type=kind)
        )
    layers = names(told)
    card = msgspec.structs.replace(
        plan.card,
        inputs=tuple(tensors[library.TensorIOMode.INPUT]),
        outputs=tuple(tensors[library.TensorIOMode.OUTPUT]),
        layers=len(layers),
        fused_attention=fused(layers),
    )
    plan = amend(plan, card)
    write_to_cache(path, told.encode())
    return plan


def names(told: str) -> list[str]:
    """The layers' names in the inspector's JSON: of objects with a Name, or strings where the engine tells no more."""
    layers = json.loads(told).get("Layers", [])
    return [str(layer.get("Name", "")) if isinstance(layer, dict) else str(layer) for layer in layers]


@functools.cache
def _runtime(library: Any) -> tuple[Any, Any]:
    """One for the process, and its log: each must outlive what is made with it."""
    log = new_log(library)
    return library.Runtime(log), log
