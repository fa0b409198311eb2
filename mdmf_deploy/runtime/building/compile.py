"""From an ONNX graph to a serialised engine."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from mdmf_deploy.errors import EngineError
from mdmf_deploy.files import write_to_cache
from mdmf_deploy.runtime.building.flavours import RTX, Flavour, new_network, set_flags
from mdmf_deploy.runtime.building.plans import Tensor
from mdmf_deploy.runtime.building.profiles import Profile
from mdmf_deploy.runtime.building.rtx import aim_at

if TYPE_CHECKING:
    import tensorrt as trt
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID


_MIB = 2**20


class Compiled(NamedTuple):
    """A serialised engine and what is known of it; the fields are those of PlanCard (plans.py)."""

    data: bytes
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    layers: int | None
    fused_attention: int | None
    seconds: float


def compile_graph(
    flavour: Flavour,
    library: Any,
    graph: Path,
    precision: str,
    profile: Profile,
    capability: tuple[int, int],
    timings: Path,
) -> Compiled:
    """Build for this compute capability, which must be that of the GPU at hand unless the flavour is portable.

    graph: images (B, ...) in, B dynamic; weights may lie in a file beside it.
    precision: of its bundle; all it decides is TF32, types are the graph's.
    timings: the builder's timing cache, read if it is there and written; of no use to RTX, which times nothing.
    Raises EngineError with the builder's own words if it cannot, KeyboardInterrupt if the user ends it.
    """
    start = time.perf_counter()
    log = new_log(library)
    builder: trt.Builder = library.Builder(log)
    network: trt.INetworkDefinition = new_network(flavour, library, builder)
    parser: trt.OnnxParser = library.OnnxParser(network, log)
    if not parser.parse_from_file(str(graph)):
        problems = [str(parser.get_error(number)) for number in range(parser.num_errors)]
        raise _failed(flavour, library, graph, "parse", problems)
    config: trt.IBuilderConfig = builder.create_builder_config()
    set_flags(library, config, precision)
    config.set_memory_pool_limit(library.MemoryPoolType.WORKSPACE, profile.workspace_mib * _MIB)
    config.builder_optimization_level = profile.level
    config.profiling_verbosity = library.ProfilingVerbosity.DETAILED
    config.add_optimization_profile(_shapes(builder, network, profile))
    if flavour is RTX:
        aim_at(library, config, capability)
    else:
        _remember(config, timings)
    with shown_progress(library, f"building {graph.parent.name} for {flavour.runtime}") as monitor:
        if monitor is not None:
            config.progress_monitor = monitor
        serialised = builder.build_serialized_network(network, config)
        config.progress_monitor = None
        if monitor is not None and monitor.interrupted:
            raise KeyboardInterrupt
    if serialised is None:
        raise _failed(flavour, library, graph, "build", log.problems)
    if flavour is not RTX:
        cache: trt.ITimingCache = config.get_timing_cache()
        write_to_cache(timings, bytes(cache.serialize()))
    return Compiled(
        data=bytes(serialised),
        inputs=tuple(_told(network.get_input(place)) for place in range(network.num_inputs)),
        outputs=tuple(_told(network.get_output(place)) for place in range(network.num_outputs)),
        layers=len(log.layers) or None,
        fused_attention=fused(log.layers) if log.layers else None,
        seconds=time.perf_counter() - start,
    )


def _shapes(builder: trt.Builder, network: trt.INetworkDefinition, profile: Profile) -> Any:
    images: trt.ITensor = network.get_input(0)
    image = tuple(images.shape)[1:]
    shapes: trt.IOptimizationProfile = builder.create_optimization_profile()
    batch = profile.batch
    shapes.set_shape(images.name, (batch.min, *image), (batch.opt, *image), (batch.max, *image))
    return shapes


def _remember(config: trt.IBuilderConfig, timings: Path) -> None:
    cache: trt.ITimingCache = config.create_timing_cache(timings.read_bytes() if timings.exists() else b"")
    # One that was made elsewhere is refused here, and the build then starts without.
    if not config.set_timing_cache(cache, False):
        config.set_timing_cache(config.create_timing_cache(b""), False)


def _told(tensor: trt.ITensor) -> Tensor:
    return Tensor(name=tensor.name, shape=tuple(tensor.shape), type=str(tensor.dtype).rpartition(".")[2])


def _failed(flavour: Flavour, library: Any, graph: Path, what: str, problems: list[str]) -> EngineError:
    reason = " ".join((problems[0] if problems else "it does not say why").split())
    return EngineError(
        f"{graph}: {flavour.module} {library.__version__} cannot {what} it ({reason}); free memory on the GPU or lower "
        "the profile's workspace_mib and batch, or export the bundle in another precision"
    )


_LAYER = re.compile(r"^Name: ([^,]+), LayerType: ", re.MULTILINE)


def new_log(library: Any) -> Any:
    """A logger that keeps `problems`, in order, and `layers`, the names of the engine's once it is built.

    The inspector tells the layers better, but only on a GPU; the builder's most verbose message tells them anywhere.
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


def fused(layers: list[str]) -> int:
    """How many layers are attention in one kernel: the compiler names those after multi-head attention."""
    return sum("mha" in name.lower() for name in layers)


@contextmanager
def shown_progress(library: Any, title: str) -> Iterator[Any]:
    """A progress monitor whose phases are bars on stderr, or None where that is no terminal.

    Its `interrupted` says whether the user has pressed Ctrl-C, which ends the build at its next step.
    """
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        progress.add_task(title, total=None)
        yield new_monitor(library, progress)


def new_monitor(library: Any, progress: Progress) -> Any:
    """One bar a phase, gone when the phase is over.  The builder calls it from threads of its own."""

    class Monitor(library.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            library.IProgressMonitor.__init__(self)
            self.interrupted = False
            self._tasks: dict[str, TaskID] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self._tasks[phase_name] = progress.add_task(f"  {phase_name}", total=num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            # An exception may not cross the library, and Ctrl-C can come as one anywhere in here.
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
