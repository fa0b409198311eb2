"""Obtain an engine: load its plan from the cache, or build it if there is none, if it is damaged or refused."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec

from mdmf_deploy.errors import EngineError
from mdmf_deploy.files import write_to_cache
from mdmf_deploy.hardware.gpu import probe
from mdmf_deploy.runtime.building.compile import compile_engine, count_fused_attention, new_log
from mdmf_deploy.runtime.building.plans import (
    BuildRequest,
    Plan,
    PlanCard,
    Tensor,
    amend,
    find,
    keep,
    layers_path,
    timing_path,
)

if TYPE_CHECKING:
    import tensorrt as trt


def obtain(request: BuildRequest, log: Callable[[str], None], *, again: bool = False) -> Plan:
    """Return the requested plan. Build it if there is none, if it is damaged, or if `again` is true.

    log: takes one line with the reason for a build.
    Raises EngineError if the build fails, UsageError if the compute capability is unknown or the disk is full.
    """
    key = request.key
    found = "asked to build again" if again else find(key)
    if isinstance(found, Plan):
        return found
    target = key.gpu or f"compute capability {key.compute_capability}"
    log(f"{request.flavour.runtime}: {found}; building for {target}, profile {request.profile.name}")
    made = compile_engine(request, timing_path(key))
    card = PlanCard(
        key=key,
        profile=request.profile.name,
        sha256=hashlib.sha256(made.data).hexdigest(),
        size=len(made.data),
        inputs=made.inputs,
        outputs=made.outputs,
        layers=made.layers,
        fused_attention=made.fused_attention,
        build_seconds=round(made.seconds, 3),
    )
    return keep(card, made.data)


def load_plan(request: BuildRequest, log: Callable[[str], None]) -> tuple[Plan, Any]:
    """Return the requested plan and its engine. If the library refuses an intact plan, build it once more.

    Raises as obtain does, RuntimeUnavailable without a GPU, EngineError if the library refuses a plan it just built.
    """
    flavour, library = request.flavour, request.library
    plan = obtain(request, log)
    engine = deserialise(library, plan.data)
    if engine is None:
        log(f"{flavour.runtime}: {plan.path} is whole, but {flavour.module} does not load it")
        plan = obtain(request, log, again=True)
        engine = deserialise(library, plan.data)
    if engine is None:
        raise EngineError(
            f"{plan.path}: {flavour.module} {library.__version__} does not load what it has just built; update the "
            "driver, or reinstall the library"
        )
    return _inspected(library, engine, plan), engine


def deserialise(library: Any, data: bytes) -> Any:
    """Return the engine of a plan, or None if the library refuses it. Raises RuntimeUnavailable without a GPU."""
    # Without a driver the library crashes instead of raising.
    probe()
    runtime: trt.Runtime = _runtime(library)[0]
    return runtime.deserialize_cuda_engine(data)


def layer_names(report: str) -> list[str]:
    """Return the layers' names from the inspector's JSON. A layer is an object with a Name, or just its name."""
    layers = json.loads(report).get("Layers", [])
    return [str(layer.get("Name", "")) if isinstance(layer, dict) else str(layer) for layer in layers]


def _inspected(library: Any, engine: trt.ICudaEngine, plan: Plan) -> Plan:
    """Inspect an engine once: keep the report on its layers beside its plan, and complete the plan's card."""
    path = layers_path(plan.path)
    if path.exists():
        return plan
    inspector: trt.EngineInspector = engine.create_engine_inspector()
    report = str(inspector.get_engine_information(library.LayerInformationFormat.JSON))
    tensors: dict[Any, list[Tensor]] = {library.TensorIOMode.INPUT: [], library.TensorIOMode.OUTPUT: []}
    for place in range(engine.num_io_tensors):
        name = engine.get_tensor_name(place)
        kind = str(engine.get_tensor_dtype(name)).rpartition(".")[2]
        tensors[engine.get_tensor_mode(name)].append(
            Tensor(name=name, shape=tuple(engine.get_tensor_shape(name)), type=kind)
        )
    layers = layer_names(report)
    card = msgspec.structs.replace(
        plan.card,
        inputs=tuple(tensors[library.TensorIOMode.INPUT]),
        outputs=tuple(tensors[library.TensorIOMode.OUTPUT]),
        layers=len(layers),
        fused_attention=count_fused_attention(layers),
    )
    plan = amend(plan, card)
    write_to_cache(path, report.encode())
    return plan


@functools.cache
def _runtime(library: Any) -> tuple[Any, Any]:
    """Return the process's one runtime, and its log. Each must outlive the engines made with it."""
    log = new_log(library)
    return library.Runtime(log), log
