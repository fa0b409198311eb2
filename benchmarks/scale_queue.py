"""A simulated `mdmf detect`, event by event: fetch -> decode (several threads) -> engine (batches) -> reduction, rows.

Buffers are finite, images keep their order unless told, and the engine waits for a full batch, as in
mdmf_deploy/detection/pipeline.py. Jobs share what the machine has: cores, its network, a GPU, and Python's lock, of
which each process has one. If jobs want more of something than there is, all of them slow down alike.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

Uses = Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Work:
    """What one image takes, in seconds when it is alone.

    wait: for the first byte, during which nothing is used.  transfer: of the others, over the network.
    locked: the part of `decode` that holds Python's lock.
    reduction, rows: in the main thread, one after the other. Rows hold the lock.
    """

    wait: float
    transfer: float
    decode: float
    locked: float
    engine: float
    reduction: float
    rows: float


@dataclass(frozen=True, slots=True)
class Shape:
    """A machine.  workers: threads that fetch and decode.  ahead: images taken before they are in a batch.

    ordered: whether images reach the engine in the order in which they were taken.
    processes: that the workers are in. If there is one, it makes the rows, too.
    link: how much of the network one fetch can use.
    engine, reduction: what they use while they run, such as {"cores": 2} or {"gpu": 1}.
    """

    workers: int
    ahead: int
    batch: int
    ordered: bool
    processes: int
    link: float
    engine: Uses
    reduction: Uses
    max_wait: float = 0.2


class Clock:
    """Jobs that run at the same time, and what they share.  capacity: by name. What has no capacity is unlimited."""

    def __init__(self, capacity: Uses) -> None:
        self.now = 0.0
        self._capacity = capacity
        self._jobs: list[tuple[list[float], Uses, Callable[[], None]]] = []
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0

    def job(self, seconds: float, uses: Uses, then: Callable[[], None]) -> None:
        """Start work that takes this long if it gets all that it uses."""
        self._jobs.append(([seconds], uses, then))

    def after(self, seconds: float, then: Callable[[], None]) -> None:
        self._count += 1
        heapq.heappush(self._timers, (self.now + seconds, self._count, then))

    def step(self) -> None:
        """Go on to the next end of a job, or to the next timer."""
        load: dict[str, float] = {}
        for _, uses, _ in self._jobs:
            for name, share in uses.items():
                load[name] = load.get(name, 0.0) + share
        slowed = {name: min(1.0, self._capacity.get(name, total) / total) for name, total in load.items() if total}
        speeds = [min((slowed.get(name, 1.0) for name in uses), default=1.0) for _, uses, _ in self._jobs]
        step = min((left[0] / speed for (left, _, _), speed in zip(self._jobs, speeds, strict=True)), default=1e9)
        if self._timers and self._timers[0][0] <= self.now + step:
            due, _, then = heapq.heappop(self._timers)
            step, ended = max(0.0, due - self.now), [then]
        else:
            ended = []
        self.now += step
        running = []
        for job, speed in zip(self._jobs, speeds, strict=True):
            job[0][0] -= step * speed
            if job[0][0] <= 1e-12:
                ended.append(job[2])
            else:
                running.append(job)
        self._jobs = running
        for then in ended:
            then()


class Pipeline:
    """One machine.  work: of its images, one after the other, without end."""

    def __init__(self, clock: Clock, shape: Shape, work: Iterator[Work]) -> None:
        self._clock, self._shape, self._work = clock, shape, work
        self._idle, self._room, self._taken, self._popped = shape.workers, shape.ahead, 0, 0
        self._ready: dict[int, Work] = {}
        self._batch: list[Work] = []
        self._engine_free, self._batches = True, 0
        self._results: list[list[Work]] = []
        self._finishing = self._blocked = False
        self.finished = 0
        self._take()

    def _take(self) -> None:
        while self._idle and self._room:
            n, work = self._taken, next(self._work)
            self._idle, self._room, self._taken = self._idle - 1, self._room - 1, n + 1
            self._clock.job(work.wait, {}, partial(self._transfer, n, work))

    def _transfer(self, n: int, work: Work) -> None:
        self._clock.job(work.transfer, {"network": self._shape.link}, lambda: self._decode(n, work))

    def _decode(self, n: int, work: Work) -> None:
        def free() -> None:
            self._clock.job(work.decode - work.locked, {"cores": 1.0}, lambda: self._decoded(n, work))

        self._clock.job(work.locked, {"cores": 1.0, f"lock{n % self._shape.processes}": 1.0}, free)

    def _decoded(self, n: int, work: Work) -> None:
        self._ready[n] = work
        self._idle += 1
        self._fill()
        self._take()

    def _fill(self) -> None:
        """Take images into the next batch, in order, and start it when it is full."""
        if not self._engine_free:
            return
        while len(self._batch) < self._shape.batch and self._ready:
            n = self._popped if self._shape.ordered else next(iter(self._ready))
            if n not in self._ready:
                break
            self._batch.append(self._ready.pop(n))
            self._popped, self._room = self._popped + 1, self._room + 1
            if len(self._batch) == 1:
                self._clock.after(self._shape.max_wait, partial(self._late, self._batches))
        if len(self._batch) == self._shape.batch:
            self._run()

    def _late(self, batch: int) -> None:
        if self._engine_free and self._batch and self._batches == batch:
            self._run()
            self._take()

    def _run(self) -> None:
        self._engine_free, self._batches = False, self._batches + 1
        batch, self._batch = self._batch, []
        self._clock.job(sum(work.engine for work in batch), self._shape.engine, lambda: self._extracted(batch))

    def _extracted(self, batch: list[Work]) -> None:
        self._results.append(batch)
        self._blocked = True
        self._hand_over()

    def _hand_over(self) -> None:
        """Let the main thread take a batch. One more may wait, and the engine waits with a third."""
        if self._results and not self._finishing:
            batch = self._results.pop(0)
            self._finishing = True

            def rows() -> None:
                uses = {"cores": 1.0, "lock0" if self._shape.processes == 1 else "main": 1.0}
                self._clock.job(sum(work.rows for work in batch), uses, lambda: self._finish(batch))

            self._clock.job(sum(work.reduction for work in batch), self._shape.reduction, rows)
        if len(self._results) < 2 and self._blocked:
            self._blocked, self._engine_free = False, True
            self._fill()
            self._take()

    def _finish(self, batch: list[Work]) -> None:
        self.finished += len(batch)
        self._finishing = False
        self._hand_over()


def simulate(shape: Shape, capacity: Uses, work: Iterator[Work], images: int = 2000) -> float:
    """Return images a second, once the machine is warm.

    capacity: of "cores", "network" and "gpu".  images: that are timed, after a fifth as many to warm up.
    """
    clock = Clock({**capacity, **{f"lock{n}": 1.0 for n in range(shape.processes)}})
    pipeline = Pipeline(clock, shape, work)
    while pipeline.finished < images // 5:
        clock.step()
    start, before = clock.now, pipeline.finished
    while pipeline.finished < before + images:
        clock.step()
    return (pipeline.finished - before) / (clock.now - start)
