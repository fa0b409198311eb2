"""Compile an ONNX graph into a serialised engine."""

from __future__ import annotations

import logging
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from mdmf_deploy.errors import EngineError
from mdmf_deploy.files import write_to_cache
from mdmf_deploy.runtime.building.flavours import RTX, new_network, set_flags
from mdmf_deploy.runtime.building.plans import BuildRequest, Tensor
from mdmf_deploy.runtime.building.profiles import BatchRange
from mdmf_deploy.runtime.building.rtx import set_capability
from mdmf_deploy.text import one_line

_LOG = logging.getLogger(__name__)

if TYPE_CHECKING:
    import tensorrt as trt
    from rich.progress import Progress, TaskID

_MIB = 2**20
_LAYER = re.compile(r"^Name: ([^,]+), LayerType: ", re.MULTILINE)


class CompiledEngine(NamedTuple):
    """A serialised engine, with the fields of PlanCard that the builder knows (plans.py)."""

    data: bytes
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    layers: int | None
    fused_attention: int | None
    seconds: float


def compile_engine(request: BuildRequest, timings: Path) -> CompiledEngine:
    """Build the engine that a request describes.

    The bundle's graph takes images (B, ...) with a dynamic B. Its weights may lie in a file beside it. Unless the
    flavour is portable, the compute capability must be that of the GPU at hand.
    timings: the builder's timing cache, read if it exists and then written. RTX times nothing and does not use it.
    Raises EngineError with the builder's own words if it fails, KeyboardInterrupt if the user interrupts it.
    """
    start = time.perf_counter()
    flavour, library, bundle = request.flavour, request.library, request.bundle
    log = new_log(library)
    builder: trt.Builder = library.Builder(log)
    network: trt.INetworkDefinition = new_network(flavour, library, builder)
    parser: trt.OnnxParser = library.OnnxParser(network, log)
    with bundle.unchanged_model() as path:
        parsed = parser.parse_from_file(str(path))
    if not parsed:
        problems = [str(parser.get_error(number)) for number in range(parser.num_errors)]
        raise _failure(request, "parse", problems)
    config: trt.IBuilderConfig = builder.create_builder_config()
    set_flags(library, config, request.precision)
    config.set_memory_pool_limit(library.MemoryPoolType.WORKSPACE, request.profile.workspace_mib * _MIB)
    config.builder_optimization_level = request.profile.level
    config.profiling_verbosity = library.ProfilingVerbosity.DETAILED
    config.add_optimization_profile(_input_shapes(builder, network, request.profile.batch))
    if flavour is RTX:
        set_capability(library, config, request.capability)
    else:
        _set_timing_cache(config, timings)
    with shown_progress(library, f"building {bundle.path.name} for {flavour.runtime}") as monitor:
        if monitor is not None:
            config.progress_monitor = monitor
        serialised = builder.build_serialized_network(network, config)
        config.progress_monitor = None
        if monitor is not None and monitor.interrupted:
            raise KeyboardInterrupt
    if serialised is None:
        raise _failure(request, "build", log.problems)
    if flavour is not RTX:
        cache: trt.ITimingCache = config.get_timing_cache()
        write_to_cache(timings, bytes(cache.serialize()))
    return CompiledEngine(
        data=bytes(serialised),
        inputs=tuple(_described(network.get_input(place)) for place in range(network.num_inputs)),
        outputs=tuple(_described(network.get_output(place)) for place in range(network.num_outputs)),
        layers=len(log.layers) or None,
        fused_attention=count_fused_attention(log.layers) if log.layers else None,
        seconds=time.perf_counter() - start,
    )


def count_fused_attention(layers: list[str]) -> int:
    """Count the layers that are attention in one kernel. The compiler puts "mha" into their names."""
    return sum("mha" in name.lower() for name in layers)


def new_log(library: Any) -> Any:
    """Make a logger that collects the errors, as `problems`, and the names of the engine's layers, as `layers`.

    The engine inspector reports layers in more detail, but needs a GPU. The builder's verbose log needs none.
    """

    class Log(library.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            library.ILogger.__init__(self)
            self.problems: list[str] = []
            self.layers: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity <= library.ILogger.ERROR:
                self.problems.append(" ".join(message.split()))
            elif message.startswith("Layers:"):
                self.layers += _LAYER.findall(message)

    return Log()


@contextmanager
def shown_progress(library: Any, title: str) -> Iterator[Any]:
    """Yield a progress monitor that draws bars on stderr, or None if it is no terminal or messages are not wanted.

    Its attribute `interrupted` is true once the user has pressed Ctrl-C. The build then ends at its next step.
    """
    if not sys.stderr.isatty() or not _LOG.isEnabledFor(logging.INFO):
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = TextColumn("{task.description}", markup=False), BarColumn(), TimeElapsedColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        progress.add_task(one_line(title), total=None)
        yield new_monitor(library, progress)


def new_monitor(library: Any, progress: Progress) -> Any:
    """Make a monitor that shows a bar for each phase while it lasts. The builder calls it from its own threads."""

    class Monitor(library.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            library.IProgressMonitor.__init__(self)
            self.interrupted = False
            self._tasks: dict[str, TaskID] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self._tasks[phase_name] = progress.add_task(f"  {phase_name}", total=num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            # Ctrl-C can raise anywhere in here, and no exception may pass through the library.
            try:
                if phase_name in self._tasks:
                    progress.update(self._tasks[phase_name], completed=step + 1)
            except KeyboardInterrupt:
                self.interrupted = True
            return not self.interrupted

        def phase_finish(self, phase_name: str) -> None:
            if phase_name in self._tasks:
                progress.remove_task(self._tasks.pop(phase_name))

    return Monitor()


def _input_shapes(builder: trt.Builder, network: trt.INetworkDefinition, batch: BatchRange) -> Any:
    images: trt.ITensor = network.get_input(0)
    image = tuple(images.shape)[1:]
    shapes: trt.IOptimizationProfile = builder.create_optimization_profile()
    shapes.set_shape(images.name, (batch.min, *image), (batch.opt, *image), (batch.max, *image))
    return shapes


def _set_timing_cache(config: trt.IBuilderConfig, timings: Path) -> None:
    cache: trt.ITimingCache = config.create_timing_cache(timings.read_bytes() if timings.exists() else b"")
    # The library refuses timings made elsewhere. The build then starts without any.
    if not config.set_timing_cache(cache, False):
        config.set_timing_cache(config.create_timing_cache(b""), False)


def _described(tensor: trt.ITensor) -> Tensor:
    return Tensor(name=tensor.name, shape=tuple(tensor.shape), type=str(tensor.dtype).rpartition(".")[2])


def _failure(request: BuildRequest, verb: str, problems: list[str]) -> EngineError:
    reason = " ".join((problems[0] if problems else "it gives no reason").split())
    library = request.library
    return EngineError(
        f"{request.bundle.model_path}: {request.flavour.module} {library.__version__} cannot {verb} it ({reason}); "
        "free memory on the GPU or lower the profile's workspace_mib and batch, or export the bundle in another "
        "precision"
    )
