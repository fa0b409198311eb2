"""Engines loaded and looked into.  It takes a driver: without one TensorRT crashes where it could raise."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec

from mdmf_deploy.building import obtain
from mdmf_deploy.building.flavours import Flavour
from mdmf_deploy.building.plans import Plan, Tensor, amend, layers_path
from mdmf_deploy.building.profiles import Profile
from mdmf_deploy.building.watching import fused, new_log
from mdmf_deploy.bundle.bundle import Bundle
from mdmf_deploy.errors import EngineError
from mdmf_deploy.files import write_to_cache
from mdmf_deploy.hardware.gpu import probe

if TYPE_CHECKING:
    import tensorrt as trt


def load_plan(
    bundle: Bundle,
    flavour: Flavour,
    library: Any,
    profile: Profile,
    capability: tuple[int, int],
    gpu: str,
    say: Callable[[str], None],
) -> tuple[Plan, Any]:
    """The plan of this key, and its engine; built if need be, and once more if it is whole but refused.

    Raises as mdmf_deploy.building.obtain; RuntimeUnavailable without a GPU, EngineError if what was just built is
    refused.
    """
    order = bundle, flavour, library, profile, capability, gpu, say
    plan = obtain(*order)
    engine = deserialise(library, plan.data)
    if engine is None:
        say(f"{flavour.runtime}: {plan.path} is whole, but {flavour.module} does not load it")
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
