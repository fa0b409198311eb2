"""A TensorRT without a GPU: engines run in ONNX Runtime, on the memory and streams of fakes.host_device.

It has only the names that mdmf_deploy uses. It follows the same rules: a batch lies within the profile, and addresses
are aligned. Work given to a stream runs only when something waits for it.
"""

from __future__ import annotations

import enum
import functools
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnxruntime
from fakes.host_device import HostDevice
from helpers.graphs import exact_int8

from mdmf_deploy.hardware.device import host_view

_MAGIC = b"a pretended plan\n"
_FLOAT = 4


class HostTensorRt:
    """The module.

    refusals: the number of plans that it will refuse to load.
    drift: a number added to signatures for each image in their batch.
    full: whether the GPU has no memory left for an engine.
    built: the number of engines built.
    """

    def __init__(self, device: HostDevice, version: str = "11.4.0.106") -> None:
        self.__version__ = version
        self.device = device
        self.refusals, self.drift, self.full, self.built = 0, 0.0, False, 0
        self.network_flags: list[int] = []
        self.flags: set[object] = set()
        self.timing_caches: list[bytes] = []
        self.batches: list[int] = []

    class ILogger:
        INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)

    class BuilderFlag(enum.Enum):
        TF32 = "tf32"
        DISTRIBUTIVE_INDEPENDENCE = "alike"

    class NetworkDefinitionCreationFlag(enum.IntEnum):
        STRONGLY_TYPED = 1

    class MemoryPoolType(enum.Enum):
        WORKSPACE = 0

    class ProfilingVerbosity(enum.Enum):
        DETAILED = 0

    class LayerInformationFormat(enum.Enum):
        JSON = 0

    class TensorIOMode(enum.Enum):
        INPUT = 1
        OUTPUT = 2

    class DataType(enum.Enum):
        FLOAT = 0

        def __str__(self) -> str:
            return f"DataType.{self.name}"

    def Builder(self, log: object) -> _Builder:  # noqa: N802
        return _Builder(self)

    def OnnxParser(self, network: _Network, log: object) -> _Parser:  # noqa: N802
        return _Parser(network)

    def Runtime(self, log: object) -> SimpleNamespace:  # noqa: N802
        return SimpleNamespace(deserialize_cuda_engine=self._load)

    def _load(self, data: bytes) -> _Engine | None:
        if self.refusals:
            self.refusals -= 1
            return None
        assert data.startswith(_MAGIC), "TensorRT would crash here"
        head, _, graph = data.removeprefix(_MAGIC).partition(b"\n")
        return _Engine(self, tuple(json.loads(head)), graph)


class _Network:
    def __init__(self, library: HostTensorRt) -> None:
        self.library = library
        self.graph = b""
        self.num_inputs = self.num_outputs = 1

    def get_input(self, place: int) -> SimpleNamespace:
        return _tensor(self.graph, "get_inputs")

    def get_output(self, place: int) -> SimpleNamespace:
        return _tensor(self.graph, "get_outputs")


class _Parser:
    num_errors = 1

    def __init__(self, network: _Network) -> None:
        self._network = network

    def parse_from_file(self, path: str) -> bool:
        self._network.graph = Path(path).read_bytes()
        return not self._network.graph.startswith(b"not a graph")

    def get_error(self, place: int) -> str:
        return "it is\nno graph"


class _Builder:
    def __init__(self, library: HostTensorRt) -> None:
        self._library = library

    def create_network(self, flags: int) -> _Network:
        self._library.network_flags.append(flags)
        return _Network(self._library)

    def create_builder_config(self) -> _Config:
        return _Config(self._library)

    def create_optimization_profile(self) -> _Profile:
        return _Profile()

    def build_serialized_network(self, network: _Network, config: _Config) -> bytes | None:
        self._library.built += 1
        self._library.flags = config.on
        least, _, most = config.batches
        return _MAGIC + json.dumps([least, most]).encode() + b"\n" + network.graph


class _Profile:
    def set_shape(self, name: str, *shapes: tuple[int, ...]) -> None:
        self.batches = [shape[0] for shape in shapes]


class _Config:
    def __init__(self, library: HostTensorRt) -> None:
        self._library = library
        self.on = {HostTensorRt.BuilderFlag.TF32}
        self._cache = b""

    def set_flag(self, flag: object) -> None:
        self.on.add(flag)

    def clear_flag(self, flag: object) -> None:
        self.on.discard(flag)

    def set_memory_pool_limit(self, pool: object, size: int) -> None:
        assert size >= 1 << 20

    def add_optimization_profile(self, profile: _Profile) -> None:
        self.batches = profile.batches

    def create_timing_cache(self, data: bytes) -> bytes:
        self._library.timing_caches.append(data)
        return data

    def set_timing_cache(self, cache: bytes, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch
        self._cache = cache
        return not cache.startswith(b"of another GPU")

    def get_timing_cache(self) -> SimpleNamespace:
        return SimpleNamespace(serialize=lambda: self._cache + b"timed,")


class _Engine:
    """An engine. batches: the smallest and the largest."""

    num_io_tensors = 2
    device_memory_size_v2 = 3 << 20

    def __init__(self, library: HostTensorRt, batches: tuple[int, ...], graph: bytes) -> None:
        self.library, self.batches, self.graph = library, batches, graph

    def create_execution_context(self) -> _Context | None:
        return None if self.library.full else _Context(self)

    def create_engine_inspector(self) -> SimpleNamespace:
        layers = [{"Name": "_gemm_mha_v2_myl0_1"}, {"Name": "__myl_FcAdd"}, "named by a string"]
        return SimpleNamespace(get_engine_information=lambda form: json.dumps({"Layers": layers}))

    def get_tensor_name(self, place: int) -> str:
        return self._tensors()[place].name

    def get_tensor_mode(self, name: str) -> HostTensorRt.TensorIOMode:
        modes = HostTensorRt.TensorIOMode
        return modes.INPUT if name == self._tensors()[0].name else modes.OUTPUT

    def get_tensor_dtype(self, name: str) -> HostTensorRt.DataType:
        return HostTensorRt.DataType.FLOAT

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return next(tensor.shape for tensor in self._tensors() if tensor.name == name)

    def _tensors(self) -> list[SimpleNamespace]:
        return [_tensor(self.graph, "get_inputs"), _tensor(self.graph, "get_outputs")]


class _Context:
    def __init__(self, engine: _Engine) -> None:
        self._engine = engine
        self._session = onnxruntime.InferenceSession(engine.graph, exact_int8(), providers=["CPUExecutionProvider"])
        self._shape: tuple[int, ...] = ()
        self._addresses: dict[str, int] = {}

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        least, most = self._engine.batches
        self._shape = shape
        return least <= shape[0] <= most

    def set_tensor_address(self, name: str, address: int) -> bool:
        self._addresses[name] = address
        return address % 256 == 0

    def execute_async_v3(self, handle: int) -> bool:
        library = self._engine.library
        library.batches.append(self._shape[0])
        library.device.streams[handle].give(self._work(self._shape, dict(self._addresses)))
        return True

    def _work(self, shape: tuple[int, ...], addresses: dict[str, int]) -> Callable[[], None]:
        def run() -> None:
            given = host_view(addresses["images"], int(np.prod(shape)) * _FLOAT).view(np.float32).reshape(shape)
            (signatures,) = self._session.run(None, {"images": given})
            signatures = signatures + np.float32(self._engine.library.drift * shape[0])
            host_view(addresses["signatures"], signatures.nbytes)[:] = signatures.reshape(-1).view(np.uint8)

        return run


@functools.cache
def _tensor(graph: bytes, which: str) -> SimpleNamespace:
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    (found,) = getattr(session, which)()
    shape = tuple(size if isinstance(size, int) else -1 for size in found.shape)
    return SimpleNamespace(name=found.name, shape=shape, dtype=HostTensorRt.DataType.FLOAT)
