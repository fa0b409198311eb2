"""A run over a cluster: list what is missing in the output, start the stages, and add up what each part tells."""

from __future__ import annotations

import inspect
import logging
import math
import os
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pyarrow
import pyarrow.compute
import pyarrow.fs

from mdmf_deploy import __version__
from mdmf_deploy.bundle.bundle import Bundle
from mdmf_deploy.detection.detector import Detector
from mdmf_deploy.detection.outputs.signatures import SignatureType
from mdmf_deploy.errors import EngineError, MdmfError, RuntimeUnavailable, UsageError
from mdmf_deploy.images.limits import DEFAULT_LIMITS, FRAMES, ReadLimits
from mdmf_deploy.tasks.scale.blocks import BLOCK, blocks_of, missing, most_inputs
from mdmf_deploy.tasks.scale.cluster import Complaints, connected, error_in, gist, load_ray
from mdmf_deploy.tasks.scale.listing import LOCAL, Listing
from mdmf_deploy.tasks.scale.locations import without_secrets
from mdmf_deploy.tasks.scale.outputs import Outputs
from mdmf_deploy.tasks.scale.shipment import Shipment
from mdmf_deploy.tasks.scale.stages import (
    Opened,
    Reading,
    Scorer,
    Scoring,
    on_gpu,
    opened_by,
    opened_remotely,
    read_block,
    write_part,
)
from mdmf_deploy.tasks.scale.tally import COUNTED, Tally

_LOG = logging.getLogger(__name__)

PART = 1000
"""Rows in a part, about. A run of fewer than 50,000 inputs gets parts of a fiftieth, so that a kill costs little."""

PART_BYTES = 64 * 2**20
"""Bytes of kept signatures in a part, in fp32, about."""

READ_CPUS, SCORE_CPUS, WRITE_CPUS = 0.2, 0.75, 0.05
"""Processors of a task or actor, in Ray's count. Each uses one thread, and decoding waits for what is scored."""

TRIES = 3
"""How often a block is given to another worker after its own has died. Then it is left out and the run goes on."""

BAD_BLOCKS = 16
"""Blocks that may be left out. Beyond that, the run ends."""

_CONTEXT: dict[str, object] = {
    "enable_progress_bars": False,
    "print_on_execution_start": False,
    "target_max_block_size": None,  # one block of output for each of input
    "max_errored_blocks": BAD_BLOCKS,
}


@dataclass(frozen=True, slots=True)
class ScaleRequest:
    """What to run.

    output: a folder, or the URL of one.  bundle, runtime, batch_size, crops, frames: as of Detector.
    threads: of each actor, and processors that Ray grants it. None means one thread.
    signatures: a folder, or the URL of one, in which signatures of signature_type are kept. None keeps none.
    address: of a running cluster, or None to start one.  actors: how many, or None for as many as there is room for.
    """

    output: str
    bundle: str | Path
    runtime: str = "auto"
    batch_size: int = 8
    crops: int | None = None
    frames: int | None = FRAMES
    each_frame: bool = False
    limits: ReadLimits = DEFAULT_LIMITS
    signatures: str | None = None
    signature_type: SignatureType = "fp32"
    threads: int | None = None
    address: str | None = None
    actors: int | None = None


class ScaleRun:
    """A run that is ready to start.

    total: inputs to do.  already: inputs that the output holds.
    again: of `total`, those that the output held, but whose file has changed or could not be read.
    opened: what the workers score with.
    before, tally: of the parts that were there, and of those that are written.
    """

    def __init__(self, opened: Opened, outputs: Outputs, inputs: pyarrow.Table) -> None:
        self.opened, self._outputs = opened, outputs
        self.tally = Tally()
        self.before = Tally()
        self.todo, self._again = missing([folder.done for folder in outputs.folders], inputs)
        self.total, self.already = len(self.todo), len(inputs) - len(self.todo)
        self.again = len(self._again)
        self._known: set[str] = set()

    def take(self) -> pyarrow.Table:
        """Return the inputs to do, and forget them."""
        todo, self.todo = self.todo, self.todo.schema.empty_table()
        return todo

    def begin(self) -> None:
        """Remove the rows that are superseded, and count the others.

        They go before they are done again, so a run that is killed in between leaves them out and never has them twice.
        """
        self._outputs.drop(self._again)
        self._known = self._outputs.names()
        for table in self._outputs.rows.tables(list(COUNTED)):
            self.before.add(Tally.of(table))

    def follow(self, summaries: Iterator[pyarrow.Table], complaints: Complaints) -> Iterator[Tally]:
        """Yield the tally of each part once it is written, and add it to `tally`.

        Raises OSError for a part that cannot be written, and EngineError if inputs are left without a row.
        """
        for table in summaries:
            for parts, counts, error in zip(*(table[name].to_pylist() for name in table.column_names), strict=True):
                if error is not None:
                    raise OSError(error)
                tally = msgspec.json.decode(counts, type=Tally)
                self._known.update(parts)
                self.tally.add(tally)
                yield tally
        if not self._outputs.names() <= self._known:
            _LOG.warning("warning: a run that was killed has written parts meanwhile; inputs are looked up again")
            # Reading a folder removes what a process that outlived the killed run has written twice.
            for folder in self._outputs.folders:
                folder.read_again()
        left = self.total - self.tally.inputs
        if left:
            own = error_in(complaints.last or "")
            if own is not None:
                raise own
            why = f" ({gist(complaints.last)})" if complaints.last else ""
            raise EngineError(
                f"{left} of {self.total} inputs have no row, because the worker died or failed each time they were "
                f"tried{why}; another run tries them in smaller blocks"
            )


@contextmanager
def prepared_run(request: ScaleRequest, listing: Listing) -> Iterator[tuple[ScaleRun, Iterator[Tally]]]:
    """Open the output and the bundle, connect to Ray, and yield the run and the tallies of its parts as they come.

    Nothing is started if there is nothing to do.
    Raises UsageError for an output of other settings or in use, the errors of Detector, and those of `connected`.
    """
    with ExitStack() as stack:
        opened = None if on_gpu(request.runtime) else _opened_here(request)
        complaints = None
        if opened is None or request.address is not None:
            complaints = stack.enter_context(connected(request.address))
        bundle = Bundle.open(request.bundle)
        if opened is None:
            opened = _opened_there(_scoring(request, bundle, request.runtime, shared=False))
        urls = [request.output] if request.signatures is None else [request.output, request.signatures]
        with without_secrets(urls):
            folders = Outputs.open(request.output, request.signatures, opened.settings, opened.extractor)
            outputs = stack.enter_context(folders)
            run = ScaleRun(opened, outputs, listing.table)
        places = listing.places
        del listing  # The workers get the inputs in blocks, so they need not stay here.
        if complaints is None and run.total:
            complaints = stack.enter_context(connected(None))
        with without_secrets(urls):
            run.begin()
        if complaints is None or not run.total:
            yield run, iter(())
            return
        runtime = opened.settings.runtime if request.runtime == "auto" else request.runtime
        scoring = _scoring(request, bundle, runtime, shared=request.address is None)
        reading = Reading(
            places,
            bundle.manifest.preprocessing,
            opened.settings.crops,
            request.limits,
            request.frames,
            _home(run.todo),
            __version__,
        )
        summaries = _summaries(run.take(), reading, scoring, opened, outputs, request)
        yield run, _explained(run.follow(summaries, complaints))


def _summaries(
    todo: pyarrow.Table,
    reading: Reading,
    scoring: Scoring,
    opened: Opened,
    outputs: Outputs,
    request: ScaleRequest,
) -> Iterator[pyarrow.Table]:
    """Yield the summaries of the parts: the four stages, as Ray Data runs them."""
    ray = load_ray()
    most, blocks = most_inputs(todo), blocks_of(todo, reading)
    part = max(1, min(PART, max(BLOCK, len(todo) // 50)) // most)
    if opened.extractor is not None:
        crop = 4 * math.prod(opened.extractor.shape)
        part = max(1, min(part, PART_BYTES // (most * opened.settings.crops * crop)))
    del todo
    common: dict[str, Any] = {"batch_format": "pyarrow", "zero_copy_batch": True}
    with _set(ray.data.DataContext.get_current(), **_CONTEXT), warnings.catch_warnings():
        warnings.simplefilter("ignore", ray.util.annotations.RayDeprecationWarning)  # of the options of _tries
        rows = (
            ray.data.from_arrow(blocks)
            .repartition(target_num_rows_per_block=1)
            .map_batches(
                read_block,
                fn_kwargs={"reading": reading},
                batch_size=None,
                num_cpus=READ_CPUS,
                **_tries(ray, max_retries=TRIES),
                **common,
            )
            .map_batches(
                Scorer,
                fn_constructor_args=(scoring, opened),
                compute=_pool(request, scoring),
                batch_size=BLOCK if scoring.on_gpu else None,
                num_cpus=None if scoring.on_gpu and request.threads is None else _actor_cpus(request),
                num_gpus=1 if scoring.on_gpu else None,
                **_tries(ray, max_restarts=-1, max_task_retries=TRIES),
                **common,
            )
            .map_batches(
                write_part,
                fn_kwargs={"outputs": outputs},
                batch_size=part,
                num_cpus=WRITE_CPUS,
                **_tries(ray, max_retries=TRIES),
                **common,
            )
        )
    del blocks
    pyarrow.default_memory_pool().release_unused()
    yield from rows.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)


@contextmanager
def _set(context: Any, **values: object) -> Iterator[None]:
    """Set attributes during the block. A data set keeps those of the time at which it is made."""
    before = {name: getattr(context, name) for name in values}
    try:
        for name, value in values.items():
            setattr(context, name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(context, name, value)


def _pool(request: ScaleRequest, scoring: Scoring) -> Any:
    """Return the strategy for the actors. Without a number, Ray starts as many as there is work and room for.

    Raises RuntimeUnavailable if there is no room for one beside the tasks that decode, and UsageError for too many.
    """
    ray = load_ray()
    cpus = _actor_cpus(request)
    total = ray.cluster_resources()
    if scoring.on_gpu:
        room = int(total.get("GPU", 0))
    else:
        nodes = (node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"])
        room = int(min((total.get("CPU", 0) - READ_CPUS - WRITE_CPUS) // cpus, sum(one // cpus for one in nodes)))
    if room < 1:
        what = f"a GPU for {scoring.runtime}" if scoring.on_gpu else f"room for --threads {cpus:g} beside decoding"
        raise RuntimeUnavailable(f"no machine of the Ray cluster has {what}; choose another --runtime or --threads")
    if request.actors is None:
        return ray.data.ActorPoolStrategy(min_size=1, max_size=room)
    if request.actors > room:
        raise UsageError(f"--actors {request.actors}: the Ray cluster has room for {room}; give {room} or fewer")
    return ray.data.ActorPoolStrategy(size=request.actors)


def _tries(ray: Any, **options: int) -> dict[str, int]:
    """Return these options of Ray's tasks if this version of Ray Data still takes them. Otherwise it tries for ever."""
    parameters = inspect.signature(ray.data.Dataset.map_batches).parameters.values()
    return options if any(one.kind is inspect.Parameter.VAR_KEYWORD for one in parameters) else {}


def _actor_cpus(request: ScaleRequest) -> float:
    return SCORE_CPUS if request.threads is None else request.threads


def _opened_here(request: ScaleRequest) -> Opened:
    """Return what this machine opens. "auto" means what is fastest here, and then the same everywhere."""
    with Detector(
        request.bundle,
        request.runtime,
        request.threads,
        batch_size=request.batch_size,
        crops=request.crops,
        limits=request.limits,
        frames=request.frames,
    ) as detector:
        return opened_by(detector, request.each_frame, _signature_type(request), detector.caveat)


def _opened_there(scoring: Scoring) -> Opened:
    """Return what a machine of the cluster with a GPU opens, since this one may have none."""
    ray = load_ray()
    if not ray.cluster_resources().get("GPU"):
        raise RuntimeUnavailable(f"the Ray cluster has no machine with a GPU for {scoring.runtime}")
    answer = ray.get(ray.remote(opened_remotely).options(num_gpus=1, num_cpus=0).remote(scoring))
    if isinstance(answer, MdmfError):
        raise answer
    opened: Opened = answer
    return opened


def _scoring(request: ScaleRequest, bundle: Bundle, runtime: str, *, shared: bool) -> Scoring:
    """shared: whether every worker surely sees this machine's files."""
    shipment = Shipment.of(bundle, as_bytes=not shared)
    return Scoring(
        shipment,
        runtime,
        request.batch_size,
        request.crops,
        request.limits,
        request.frames,
        request.each_frame,
        _signature_type(request),
    )


def _signature_type(request: ScaleRequest) -> SignatureType | None:
    return None if request.signatures is None else request.signature_type


def _home(todo: pyarrow.Table) -> tuple[str, str] | None:
    """Return the working folder and the folder of a local input that exists, for workers to look at."""
    local = pyarrow.compute.equal(todo["place"], LOCAL)
    if not pyarrow.compute.any(local).as_py():
        return None
    at = pyarrow.compute.index(pyarrow.compute.and_(local, pyarrow.compute.is_valid(todo["size"])), True).as_py()
    folder = os.path.dirname(os.fsdecode(todo["path"][at].as_py())) if at >= 0 else ""  # noqa: PTH120
    return os.getcwd(), folder or "."  # noqa: PTH109


def _explained(tallies: Iterator[Tally]) -> Iterator[Tally]:
    """Turn Ray's errors into one line."""
    ray = load_ray()
    try:
        yield from tallies
    except MdmfError:
        raise
    except Exception as error:
        own = error_in(str(error))
        if own is not None:
            raise own from error
        if not isinstance(error, ray.exceptions.RayError):
            raise
        raise EngineError(f"Ray: {gist(str(error))}") from error
