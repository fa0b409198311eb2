"""Work out what many images cost: images a second of a machine, what limits it, and the price of a billion images.

    python benchmarks/scale_cost.py [--assumptions FILE.toml]
    python benchmarks/scale_cost.py --check [DATA] [--measured IMAGES_PER_SECOND --processes N]

The speed of a machine is that of the tightest of these limits. Each is the rate at which one thing is used up:

    cores    cores / (decode + engine + reduction + rows + overhead), without the engine if a GPU runs it
    network  bits a second / bits of an image
    threads  threads / (wait + transfer + decode): a thread that waits for an object store does not decode
    lock     1 / (locked + rows) if one process does all: one thread of a process at a time runs Python.
             Else processes / locked, and 1 / rows
    GPU      GPUs / its time for an image

The first part compares this with a simulated queue (scale_queue.py), in which times vary, buffers are finite and images
keep their order. The formula claims to hold within 5% where four times as many images are read ahead as there are
threads, which `mdmf detect` does if --batch-size is twice --threads. (Twice as many are enough where images need no
order.) A second table shows by how much it is off as two limits come close to each other, and where fewer images are
read ahead: they wait for a late one before them, and threads for room.

--check measures the stages on this machine, alone, and compares both with the speed of a real run. It takes less than a
minute. DATA: a folder of photographs, of which JPEGs are made. Noise is drawn without one.
--measured: the speed of another run on this machine with the same bundle and images, such as that of a local Ray
cluster with --processes actors, to be compared, too.
"""

from __future__ import annotations

import argparse
import math
import random
import tempfile
import time
import tomllib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from common import header, number, table
from scale_queue import Shape, Uses, Work, simulate
from synthetic_jpegs import write_jpegs

ASSUMPTIONS = Path(__file__).with_suffix(".toml")
SPREAD = 0.5
"""Standard deviation of fetching and decoding an image next to their mean, where it was not measured."""
_CROWD = 8  # images that are measured at a time


@dataclass(frozen=True, slots=True)
class Kind:
    """A bundle and a size of images.  bytes: of a file. All others: seconds of one core an image, or of a GPU."""

    name: str
    bytes: float
    decode: float
    locked: float
    engine: float
    gpu_engine: float
    reduction: float
    rows: float


@dataclass(frozen=True, slots=True)
class Machine:
    """See scale_cost.toml.  overhead: seconds of one core an image."""

    name: str
    cores: int
    gpus: int
    gbits: float
    threads: int
    processes: int
    batch: int
    overhead: float
    dollars: float


@dataclass(frozen=True, slots=True)
class Store:
    """Where images are read from.  latency: seconds.  gbits: to all machines.  dollars: for a read."""

    latency: float
    stream_gbits: float
    gbits: float
    dollars: float

    def transfer(self, kind: Kind) -> float:
        """Return the seconds that an image's bytes take on an idle network."""
        return kind.bytes * 8e-9 / self.stream_gbits


LOCAL = Store(0.0, 1e6, 1e6, 0.0)
"""Files on a local disk, whose reading is a part of `decode`."""


def limits(kind: Kind, machine: Machine, store: Store) -> dict[str, float]:
    """Return images a second by what would limit them, the tightest first."""
    on_cpu = 0.0 if machine.gpus else kind.engine
    found = {
        "cores": machine.cores / (kind.decode + on_cpu + kind.reduction + kind.rows + machine.overhead),
        "network": machine.gbits * 1e9 / 8 / kind.bytes,
        "threads": machine.threads / (store.latency + store.transfer(kind) + kind.decode + machine.overhead),
    }
    if machine.processes == 1:
        found["lock"] = 1 / (kind.locked + kind.rows)
    else:
        found |= {"lock": machine.processes / kind.locked, "rows": 1 / kind.rows}
    if machine.gpus:
        found["GPU"] = machine.gpus / kind.gpu_engine
    return dict(sorted(found.items(), key=lambda item: item[1]))


def speed(kind: Kind, machine: Machine, store: Store) -> float:
    """Return images a second of one machine."""
    return min(limits(kind, machine, store).values())


def holds(machine: Machine) -> bool:
    """Return whether the formula claims to hold. Twice a batch is read ahead."""
    return machine.batch >= machine.threads * (2 if machine.processes == 1 else 1)


def simulated(
    kind: Kind, machine: Machine, store: Store, *, work: Iterator[Work] | None = None, images: int = 2000
) -> float:
    """Return images a second of the simulated queue.  work: of measured images. Without it, times are drawn."""
    cores: Uses = {"cores": float(machine.cores)}
    engine: Uses = {"gpu": 1.0} if machine.gpus else cores
    ordered, ahead = machine.processes == 1, max(machine.threads, 2 * machine.batch)
    shape = Shape(machine.threads, ahead, machine.batch, ordered, machine.processes, store.stream_gbits, engine, cores)
    capacity = {**cores, "network": machine.gbits, "gpu": float(machine.gpus)}
    return simulate(shape, capacity, work or drawn(mean_work(kind, machine, store), 0), images)


def mean_work(kind: Kind, machine: Machine, store: Store) -> Work:
    """Return the times of a mean image. The reduction takes all cores, and so does an engine on a CPU."""
    engine = kind.gpu_engine if machine.gpus else kind.engine / machine.cores
    decode = kind.decode + machine.overhead
    reduction = kind.reduction / machine.cores
    locked = min(kind.locked, decode)
    return Work(store.latency, store.transfer(kind), decode, locked, engine, reduction, kind.rows)


def drawn(mean: Work, seed: int) -> Iterator[Work]:
    """Yield work whose fetching and decoding vary by SPREAD, each time log-normally."""
    generator = random.Random(seed)
    sigma = math.sqrt(math.log(1 + SPREAD**2))
    while True:
        wait, transfer, decode = (generator.lognormvariate(-sigma * sigma / 2, sigma) for _ in range(3))
        yield replace(
            mean,
            wait=mean.wait * wait,
            transfer=mean.transfer * transfer,
            decode=mean.decode * decode,
            locked=mean.locked * decode,
        )


def read(path: Path) -> tuple[dict[str, Any], list[Kind], list[Machine], Store]:
    """Read the assumptions. Raises KeyError or TypeError that names a key which is missing or too many."""
    given = tomllib.loads(path.read_text(encoding="utf-8"))
    kinds = [
        Kind(**{key: value if key in ("name", "bytes") else value / 1e3 for key, value in work.items()})
        for work in given.pop("work")
    ]
    machines = [Machine(**{**one, "overhead": one["overhead"] / 1e3}) for one in given.pop("machine")]
    store = Store(
        given["latency_ms"] / 1e3, given["stream_gbits"], given["store_gbits"], given["request_dollars"] / 1e6
    )
    return given, kinds, machines, store


def speeds(given: dict[str, Any], kinds: Sequence[Kind], machines: Sequence[Machine], store: Store) -> str:
    rows = []
    for kind in kinds:
        for machine in machines:
            found = limits(kind, machine, store)
            (limit, rate), (second, next_rate), *_ = found.items()
            queue = simulated(kind, machine, store)
            rows.append(
                (
                    kind.name,
                    machine.name,
                    number(rate),
                    number(queue),
                    f"{100 * (queue / rate - 1):+.1f}%" + ("" if holds(machine) else ", no claim"),
                    limit,
                    f"{second}, {number(next_rate / rate)} times",
                )
            )
    return table(rows, ("images", "machine", "images/s", "simulated", "difference", "limit", "next limit"))


def errors(kinds: Sequence[Kind], machines: Sequence[Machine], store: Store) -> str:
    """Compare the formula with the queue as the second limit comes close to the first."""
    machine = replace(next(one for one in machines if one.gpus), processes=16, overhead=0.0)
    rows = []
    for times in (1.0, 1.1, 1.25, 1.5, 2.0):
        cells = []
        for threads, batch in ((machine.threads, machine.batch), (machine.threads, machine.threads // 4)):
            tried = replace(machine, threads=threads, batch=batch)
            kind = replace(kinds[0], gpu_engine=1e-6, locked=1e-6, rows=1e-6)
            kind = replace(kind, gpu_engine=1 / speed(kind, tried, store) / times)
            ordered = replace(tried, processes=1)
            queue = simulated(kind, ordered, store)
            cells.append(f"{100 * (queue / speed(kind, ordered, store) - 1):+.1f}%")
        rows.append((times, *cells))
    return table(rows, ("second limit, times the first", "read ahead: four for each thread", "one for each thread"))


def prices(given: dict[str, Any], kinds: Sequence[Kind], machines: Sequence[Machine], store: Store) -> str:
    rows = []
    counts = given["machines"]
    for kind in kinds:
        for machine in machines:
            rate = speed(kind, machine, store)
            most = store.gbits * 1e9 / 8 / kind.bytes
            days = [given["images"] / min(count * rate, most) / 86_400 for count in counts]
            hours = given["images"] / rate / 3600
            reads = given["images"] * store.dollars
            rows.append(
                (
                    kind.name,
                    machine.name,
                    *map(number, days),
                    f"{hours:,.0f}",
                    f"{hours * machine.dollars + reads:,.0f}",
                    number(given["images"] * kind.bytes / 1e12),
                )
            )
    headings = (f"days on {count}" for count in counts)
    return table(rows, ("images", "machine", *headings, "machine-hours", "dollars", "TB read"))


@dataclass(frozen=True, slots=True)
class Measured:
    """The stages of one bundle on this machine.

    decodes: seconds of each image, on one thread.
    detect: images a second of a whole run.
    """

    kind: Kind
    decodes: tuple[float, ...]
    detect: float

    def work(self, mean: Work) -> Iterator[Work]:
        """Yield the work of images whose decoding takes as long as that of those that were measured."""
        generator = random.Random(0)
        while True:
            decode = generator.choice(self.decodes) + mean.decode - self.kind.decode
            yield replace(mean, decode=decode, locked=min(mean.locked, decode))


def measure(bundle: str, runtime: str, name: str, paths: Sequence[Path], seconds: float, locked: float) -> Measured:
    """Measure each stage alone, for a fifth of the time, and a run of all of them.  locked: is taken as given."""
    import numpy as np

    from mdmf_deploy.detection.detector import Detector
    from mdmf_deploy.detection.feed import ImageScore, prepare
    from mdmf_deploy.detection.rows import json_line
    from mdmf_deploy.detection.verdicts import Verdicts
    from mdmf_deploy.images.decode import ReadLimits
    from mdmf_deploy.mmd import score_images

    with Detector(bundle, runtime, batch_size=_CROWD) as detector:
        manifest, bank = detector.bundle.manifest, detector.bundle.bank
        plan = manifest.preprocessing.crops
        ready = [prepare(n, path, manifest.preprocessing, plan, ReadLimits()) for n, path in enumerate(paths[:_CROWD])]
        tensors = [one.tensor for one in ready if one.tensor is not None]
        inputs = [np.concatenate(tensors)[at : at + _CROWD] for at in range(0, sum(map(len, tensors)), _CROWD)]
        signatures = [np.concatenate([detector.engine(one) for one in inputs])]
        scored = score_images(detector.reduction, signatures, bank)
        verdicts = Verdicts(detector.bundle, detector.runtime, detector.engine.precision, plan)
        scores = [ImageScore(score, contributions.ravel().tolist(), 1.0, 1.0) for score, contributions in scored]
        decodes = [
            _core_seconds(partial(prepare, n, path, manifest.preprocessing, plan, ReadLimits()), 0.0)
            for n, path in enumerate(list(paths) * 2)
        ][len(paths) :]
        engine = _core_seconds(lambda: [detector.engine(one) for one in inputs], seconds / 5) / len(tensors)
        reduction = _core_seconds(lambda: detector.reduction(signatures[0], bank), seconds / 5) / len(tensors)
        rows = _core_seconds(lambda: [json_line(row) for row in verdicts.rows(ready[0].extraction, scores[0])], 0.2)
        detect = _images_per_second(lambda: sum(1 for _ in detector.stream(paths)), seconds / 2)
    size = sum(path.stat().st_size for path in paths) / len(paths)
    kind = Kind(name, size, sum(decodes) / len(decodes), locked, engine, 0.0, reduction, rows)
    return Measured(kind, tuple(decodes), detect)


def _core_seconds(work: Callable[[], object], at_least: float) -> float:
    """Return the processor's time for one call, over all threads."""
    calls, start, used = 0, time.perf_counter(), time.process_time()
    while not calls or time.perf_counter() - start < at_least:
        work()
        calls += 1
    return (time.process_time() - used) / calls


def _images_per_second(work: Callable[[], int], at_least: float) -> float:
    work()
    done, start = 0, time.perf_counter()
    while time.perf_counter() - start < at_least or not done:
        done += work()
    return done / (time.perf_counter() - start)


def check(arguments: argparse.Namespace) -> str:
    from mdmf_deploy.hardware.host import cores

    rows = []
    with tempfile.TemporaryDirectory() as folder:
        files = write_jpegs(Path(folder), arguments.data, small=32, large=4)
        for size, paths in files.items():
            name = f"{arguments.bundle}, {size}"
            found = measure(arguments.bundle, arguments.runtime, name, paths, arguments.seconds, arguments.locked / 1e3)
            runs = [("one process", 1, found.detect)]
            if arguments.measured is not None and size == "0.5 MP":
                runs.append((f"{arguments.processes} processes", arguments.processes, arguments.measured))
            for what, processes, measured in runs:
                machine = Machine("this", cores(), 0, 1e6, cores(), processes, _CROWD, arguments.overhead / 1e3, 0.0)
                formula = speed(found.kind, machine, LOCAL)
                work = found.work(mean_work(found.kind, machine, LOCAL))
                queue = simulated(found.kind, machine, LOCAL, work=work, images=400)
                kind = found.kind
                stages = (kind.decode, kind.engine, kind.reduction, kind.rows)
                rows.append(
                    (
                        name,
                        what,
                        " + ".join(number(1e3 * stage) for stage in stages),
                        number(measured),
                        f"{number(formula)} ({100 * (formula / measured - 1):+.0f}%)",
                        f"{number(queue)} ({100 * (queue / measured - 1):+.0f}%)",
                    )
                )
    stages_heading = "decode + engine + reduction + rows, core-ms"
    return table(rows, ("images", "run", stages_heading, "measured, images/s", "formula", "simulated"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="?", type=Path)
    parser.add_argument("--assumptions", type=Path, default=ASSUMPTIONS)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--bundle", default="starter")
    parser.add_argument("--runtime", default="onnxruntime")
    parser.add_argument("--seconds", type=float, default=10.0, help="of measuring, for each size of image, about")
    parser.add_argument("--locked", type=float, default=1.4, help="ms of decoding that hold Python's lock")
    parser.add_argument("--measured", type=float, help="images/s of another run, of 0.5 MP")
    parser.add_argument("--processes", type=int, default=1, help="of that run")
    parser.add_argument("--overhead", type=float, default=0.0, help="core-ms an image that they add")
    arguments = parser.parse_args()
    header()
    if arguments.check:
        print(check(arguments))
        return
    given, kinds, machines, store = read(arguments.assumptions)
    print(f"```toml\n{arguments.assumptions.read_text(encoding='utf-8')}```\n")
    print(speeds(given, kinds, machines, store))
    print(errors(kinds, machines, store))
    print(prices(given, kinds, machines, store))


if __name__ == "__main__":
    main()
