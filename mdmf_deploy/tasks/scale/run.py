"""A run over a cluster: list what is missing in the output, start the stages, and add up what each part tells."""

from __future__ import annotations

import inspect
import logging
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow
import pyarrow.compute
import pyarrow.fs

from mdmf_deploy import __version__
from mdmf_deploy.bundle.bundle import Bundle
from mdmf_deploy.detection.detector import Detector
from mdmf_deploy.detection.outputs.done import Done, InputKey
from mdmf_deploy.detection.outputs.parquet import schema
from mdmf_deploy.detection.outputs.parts import PartFolder
from mdmf_deploy.errors import EngineError, MdmfError, RuntimeUnavailable, UsageError
from mdmf_deploy.images.limits import DEFAULT_LIMITS, FRAMES, ReadLimits
from mdmf_deploy.images.listing import VIDEO_SUFFIXES
from mdmf_deploy.tasks.scale.cluster import Complaints, connected, error_in, gist, load_ray
from mdmf_deploy.tasks.scale.listing import LOCAL, Listing
from mdmf_deploy.tasks.scale.locations import Location, is_url
from mdmf_deploy.tasks.scale.shipment import Shipment
from mdmf_deploy.tasks.scale.stages import (
    Opened,
    Reading,
    Scorer,
    Scoring,
    on_gpu,
    opened_remotely,
    read_block,
    write_part,
)
from mdmf_deploy.tasks.scale.tables import KEYS, packed
from mdmf_deploy.tasks.scale.tally import COUNTED, Tally

_LOG = logging.getLogger(__name__)

BLOCK, BLOCK_BYTES = 32, 64 * 2**20
"""Inputs in a block, and bytes of their crops, at most. A block travels whole, and is done again if its worker dies."""

GROUP = 64
"""Blocks that are handed to Ray Data as one."""

PART = 1000
"""Rows in a part, about. A run of fewer than 50,000 inputs gets parts of a fiftieth, so that a kill costs little."""

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

    def __init__(self, opened: Opened, folder: PartFolder, listing: Listing, reread: Callable[[], Done]) -> None:
        self.opened, self._folder, self._reread = opened, folder, reread
        self.tally = Tally()
        self.before = Tally()
        self.todo, self._again = _missing(folder.done, listing.table)
        self.total, self.already = len(self.todo), len(listing.table) - len(self.todo)
        self.again = len(self._again)
        self._known: set[str] = set()

    def begin(self) -> None:
        """Remove the rows that are superseded, and count the others.

        They go before they are done again, so a run that is killed in between leaves them out and never has them twice.
        """
        self._folder.drop(self._again)
        self._known = self._folder.names()
        for table in self._folder.tables(list(COUNTED)):
            self.before.add(Tally.of(table))

    def follow(self, summaries: Iterator[pyarrow.Table], complaints: Complaints) -> Iterator[Tally]:
        """Yield the tally of each part once it is written, and add it to `tally`.

        Raises OSError for a part that cannot be written, and EngineError if inputs are left without a row.
        """
        for table in summaries:
            for part, counts, error in zip(*(table[name].to_pylist() for name in table.column_names), strict=True):
                if error is not None:
                    raise OSError(error)
                tally = msgspec.json.decode(counts, type=Tally)
                self._known.add(part)
                self.tally.add(tally)
                yield tally
        if not self._folder.names() <= self._known:
            _LOG.warning("warning: a run that was killed has written parts meanwhile; inputs are looked up again")
            self._reread()
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
        with _without_secrets(request.output):
            settings = opened.settings
            folder = stack.enter_context(PartFolder.open(request.output, settings, "rows", schema(), resume=True))
            # Reading the folder removes what a process that outlived a killed run has written twice.
            run = ScaleRun(opened, folder, listing, lambda: PartFolder(request.output, settings, "rows", schema()).done)
        if complaints is None and run.total:
            complaints = stack.enter_context(connected(None))
        with _without_secrets(request.output):
            run.begin()
        if complaints is None or not run.total:
            yield run, iter(())
            return
        runtime = opened.settings.runtime if request.runtime == "auto" else request.runtime
        scoring = _scoring(request, bundle, runtime, shared=request.address is None)
        reading = Reading(
            listing.places,
            bundle.manifest.preprocessing,
            opened.settings.crops,
            request.limits,
            request.frames,
            _home(run.todo),
            __version__,
        )
        summaries = _summaries(run.todo, reading, scoring, opened, folder, request)
        yield run, _explained(run.follow(summaries, complaints))


def _summaries(
    todo: pyarrow.Table,
    reading: Reading,
    scoring: Scoring,
    opened: Opened,
    folder: PartFolder,
    request: ScaleRequest,
) -> Iterator[pyarrow.Table]:
    """Yield the summaries of the parts: the four stages, as Ray Data runs them."""
    ray = load_ray()
    part = max(1, min(PART, max(BLOCK, len(todo) // 50)) // _rows(todo))
    common: dict[str, Any] = {"batch_format": "pyarrow", "zero_copy_batch": True}
    with _set(ray.data.DataContext.get_current(), **_CONTEXT), warnings.catch_warnings():
        warnings.simplefilter("ignore", ray.util.annotations.RayDeprecationWarning)  # of the options of _tries
        rows = (
            ray.data.from_arrow(_blocks(todo, reading))
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
                fn_constructor_args=(scoring, opened.settings),
                compute=_pool(request, scoring),
                batch_size=BLOCK if scoring.on_gpu else None,
                num_cpus=None if scoring.on_gpu and request.threads is None else _actor_cpus(request),
                num_gpus=1 if scoring.on_gpu else None,
                **_tries(ray, max_restarts=-1, max_task_retries=TRIES),
                **common,
            )
            .map_batches(
                write_part,
                fn_kwargs={"folder": folder},
                batch_size=part,
                num_cpus=WRITE_CPUS,
                **_tries(ray, max_retries=TRIES),
                **common,
            )
        )
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


def _missing(done: Done, table: pyarrow.Table) -> tuple[pyarrow.Table, list[tuple[str, int]]]:
    """Return the inputs that are not done, and the (uri, copy) of those that have to be done again."""
    todo = np.zeros(len(table), bool)
    again: list[tuple[str, int]] = []
    at = 0
    for batch in table.select(list(KEYS)).to_batches(max_chunksize=10_000):
        for values in zip(*(column.to_pylist() for column in batch.columns), strict=True):
            key = InputKey(*values)
            state = done.state(key)
            todo[at] = state != "done"
            if state == "changed":
                again.append((key.uri, key.copy))
            at += 1
    return table.filter(pyarrow.array(todo)), again


def _blocks(todo: pyarrow.Table, reading: Reading) -> list[pyarrow.Table]:
    """Divide inputs into blocks, whose crops take about BLOCK_BYTES at most, and pack them, GROUP to a table."""
    image = 3 * reading.preprocessing.crop**2 * reading.crops
    suffixes = "|".join(suffix.removeprefix(".") for suffix in sorted(VIDEO_SUFFIXES))
    videos = pyarrow.compute.match_substring_regex(todo["uri"], rf"\.({suffixes})$", ignore_case=True)
    sizes = np.where(videos.to_numpy(), image * (reading.frames or 1), image)
    most = _rows(todo)
    blocks, first, held = [], 0, 0
    for n, size in enumerate(sizes.tolist()):
        if n > first and (n - first == most or held + size > BLOCK_BYTES):
            blocks.append(todo.slice(first, n - first))
            first, held = n, 0
        held += size
    blocks.append(todo.slice(first))
    groups = [blocks[n : n + GROUP] for n in range(0, len(blocks), GROUP)]
    return [packed(group, [*map(len, group)]) for group in groups]


def _rows(todo: pyarrow.Table) -> int:
    """Return the most inputs in a block: fewer for few, so that one that kills its worker is soon left alone."""
    return max(1, min(BLOCK, len(todo) // 64))


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
        return Opened(detector.settings(request.each_frame), detector.caveat)


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
        shipment, runtime, request.batch_size, request.crops, request.limits, request.frames, request.each_frame
    )


def _home(todo: pyarrow.Table) -> tuple[str, str] | None:
    """Return the working folder and the folder of a local input that exists, for workers to look at."""
    local = todo.filter(pyarrow.compute.equal(todo["place"], LOCAL))
    if not len(local):
        return None
    found = local.filter(pyarrow.compute.is_valid(local["size"]))
    folder = os.path.dirname(os.fsdecode(found["path"][0].as_py())) if len(found) else ""  # noqa: PTH120
    return os.getcwd(), folder or "."  # noqa: PTH109


@contextmanager
def _without_secrets(output: str) -> Iterator[None]:
    """Name an output in errors as rows would, without its options and credentials."""
    try:
        yield
    except (MdmfError, OSError) as error:
        if not is_url(output):
            raise
        location = Location.of(output)
        kind = type(error) if isinstance(error, MdmfError) else UsageError
        raise kind(location.reason(error).replace(output, str(location))) from error


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
