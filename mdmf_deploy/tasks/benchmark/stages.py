"""Every stage of a detection measured alone, and all of them together as `mdmf detect` runs them."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import TypeVar

import numpy as np

from mdmf_deploy.detection.feed import Prepared, prepare
from mdmf_deploy.detection.outputs import JsonlWriter
from mdmf_deploy.detection.rows import Row
from mdmf_deploy.hardware.host import cores
from mdmf_deploy.images.decode import ReadLimits
from mdmf_deploy.tasks.benchmark.results import Settings, Stage, StageTable
from mdmf_deploy.tasks.benchmark.rounds import Clock, images_per_run, interleave
from mdmf_deploy.tasks.benchmark.samples import ImageSample
from mdmf_deploy.tasks.benchmark.statistics import spread
from mdmf_deploy.tasks.benchmark.subjects import Subject

T = TypeVar("T")
NAMES = ("read", "decode", "crop", "engine", "reduction", "write")
END_TO_END = "end to end"
_DECODING = NAMES[:3]  # the stages of the decode workers
# Stages that share threads: the decode workers', the engine's, the caller's.
_GROUPS = {"decoding": _DECODING, "engine": ("engine",), "reduction + write": ("reduction", "write")}
_HELD = 4  # batches whose crops are in memory at once while stages are measured alone


@dataclass(frozen=True, slots=True)
class Cost:
    """Wall-clock and CPU time per image."""

    ms: float
    cpu_ms: float


_Costs = dict[str, Cost]


def measure(
    subjects: Sequence[Subject], sample: ImageSample, settings: Settings, clock: Clock, pace: float
) -> list[StageTable]:
    """Return a table for each subject.

    pace: seconds an image takes end to end, roughly, on the slowest subject.
    """
    count = images_per_run(settings.batch_size, pace, settings.seconds)
    paths = list(islice(cycle(sample.paths), count))
    runs = interleave(
        subjects,
        lambda subject: _round(subject, paths, settings.batch_size, clock),
        lambda costs: costs[END_TO_END].ms,
        clock,
        budget=settings.seconds * len(subjects),
        limit=settings.cv_limit,
        warm_up=lambda subject: _round(subject, paths[: 2 * settings.batch_size], settings.batch_size, clock),
    )
    lanes = settings.threads or min(8, cores())
    return [
        table(sample.about.name, count, min(count * subject.crops, settings.batch_size), taken, lanes)
        for subject, taken in zip(subjects, runs, strict=True)
    ]


def table(images: str, count: int, batch: int, rounds: Sequence[_Costs], lanes: int) -> StageTable:
    """Summarise one or more rounds.

    images: name of the image set.
    count: images of a round.
    batch: the most crops of a batch.
    rounds: the costs of every stage and of end to end.
    lanes: number of decode workers.
    """
    stages = {
        name: _stage(name, [costs[name] for costs in rounds], lanes if name in _DECODING else 1)
        for name in (*NAMES, END_TO_END)
    }
    end_to_end = stages.pop(END_TO_END)
    needs = {group: sum(stages[name].ms.median / stages[name].lanes for name in of) for group, of in _GROUPS.items()}
    limit = max(needs, key=needs.__getitem__)
    total = sum(stage.ms.median for stage in stages.values())
    cpu = sum(stage.ms.median * stage.cores for stage in stages.values())
    return StageTable(
        images=images,
        count=count,
        batch=batch,
        stages=tuple(stages.values()),
        end_to_end=end_to_end,
        total=total,
        explained=_over(total, end_to_end.ms.median),
        explained_cpu=_over(cpu, end_to_end.ms.median * end_to_end.cores),
        limit=limit,
        limit_share=_over(needs[limit], end_to_end.ms.median),
    )


def _round(subject: Subject, paths: list[Path], batch_size: int, clock: Clock) -> _Costs:
    costs = dict.fromkeys((*NAMES, END_TO_END), Cost(0.0, 0.0))
    for at in range(0, len(paths), _HELD * batch_size):
        _add_stages(subject, paths[at : at + _HELD * batch_size], batch_size, clock, costs)
    rows = _timed(lambda: _written(subject.detector.stream(paths)), END_TO_END, costs, clock)
    _timed(lambda: _written(rows), "write", costs, clock)
    return {name: Cost(cost.ms / len(paths), cost.cpu_ms / len(paths)) for name, cost in costs.items()}


def _written(rows: Iterable[Row]) -> list[Row]:
    """Write each row as it comes, as `mdmf detect` does, and return them."""
    writer, taken = JsonlWriter(io.BytesIO()), []
    for row in rows:
        writer.write(row)
        taken.append(row)
    return taken


def _add_stages(subject: Subject, paths: list[Path], batch_size: int, clock: Clock, costs: _Costs) -> None:
    """Run the stages one after the other on these images, and add their costs."""
    engine, reduction, bundle = subject.detector.engine, subject.detector.reduction, subject.bundle
    preprocessing, limits, together = bundle.manifest.preprocessing, ReadLimits(), {"": Cost(0.0, 0.0)}

    def prepare_all() -> list[Prepared]:
        return [prepare(n, path, preprocessing, subject.crops, limits) for n, path in enumerate(paths)]

    prepared = _timed(prepare_all, "", together, clock)
    taken = _over(together[""].cpu_ms, together[""].ms)
    for name in _DECODING:
        # One thread ran all three stages, so they share their CPU time in proportion to their wall-clock time.
        ms = sum(getattr(one.extraction, f"ms_{name}") or 0.0 for one in prepared)
        costs[name] = Cost(costs[name].ms + ms, costs[name].cpu_ms + ms * taken)
    crops = np.concatenate([one.tensor for one in prepared if one.tensor is not None])
    batches = [crops[at : at + batch_size] for at in range(0, len(crops), batch_size)]
    extracted = _timed(lambda: [engine(batch) for batch in batches], "engine", costs, clock)
    _timed(lambda: [reduction(batch, bundle.bank) for batch in extracted], "reduction", costs, clock)


def _timed(work: Callable[[], T], name: str, costs: _Costs, clock: Clock) -> T:
    """Return the result of the work, and add its time to the cost of that name."""
    start, cpu = clock.now(), clock.cpu()
    result = work()
    ms, cpu_ms = 1e3 * (clock.now() - start), 1e3 * (clock.cpu() - cpu)
    costs[name] = Cost(costs[name].ms + ms, costs[name].cpu_ms + cpu_ms)
    return result


def _stage(name: str, costs: Sequence[Cost], lanes: int) -> Stage:
    taken = _over(sum(cost.cpu_ms for cost in costs), sum(cost.ms for cost in costs))
    return Stage(name=name, ms=spread([cost.ms for cost in costs]), cores=taken, lanes=lanes)


def _over(above: float, below: float) -> float:
    return above / below if below else 0.0
