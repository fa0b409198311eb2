"""The model of cost: its formula is that of a simulated queue, whatever limits, and its prices follow from it."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from dataclasses import replace
from itertools import repeat
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
LIMITS = ("cores", "network", "threads", "lock", "GPU")


@pytest.fixture(scope="module")
def scripts() -> Iterator[SimpleNamespace]:
    names = ("scale_cost", "scale_queue")
    sys.path.insert(0, str(BENCHMARKS))
    try:
        yield SimpleNamespace(**{name: importlib.import_module(name) for name in names})
    finally:
        sys.path.remove(str(BENCHMARKS))
        for name in (*names, "common", "synthetic_jpegs"):
            sys.modules.pop(name, None)


def case(scripts: SimpleNamespace, limit: str) -> tuple[Any, Any, Any]:
    """A kind of image, a machine and a store, of which one thing limits the speed."""
    cost = scripts.scale_cost
    kind = cost.Kind("images", 1e5, 4e-3, 2e-4, 1e-2, 1e-5, 1e-4, 1e-5)
    machine = cost.Machine("machine", 4, 1, 100.0, 16, 1, 32, 0.0, 2.0)
    store = cost.Store(1e-3, 10.0, 400.0, 1e-6)
    tight = {
        "cores": (kind, replace(machine, gpus=0), store),
        "network": (kind, replace(machine, gbits=0.2), store),
        "threads": (kind, replace(machine, cores=16), replace(store, latency=0.05)),
        "lock": (replace(kind, locked=3e-3), machine, store),
        "GPU": (replace(kind, gpu_engine=4e-3), machine, store),
    }
    return tight[limit]


@pytest.mark.parametrize("limit", LIMITS)
def test_the_formula_is_the_simulated_speed(scripts: SimpleNamespace, limit: str) -> None:
    kind, machine, store = case(scripts, limit)
    cost = scripts.scale_cost
    found = cost.limits(kind, machine, store)
    assert next(iter(found)) == limit
    assert list(found.values()) == sorted(found.values())
    assert cost.holds(machine)
    queue = cost.simulated(kind, machine, store, images=800)
    assert queue == pytest.approx(cost.speed(kind, machine, store), rel=0.05)


def test_the_formula_makes_no_claim_without_room_to_read_ahead(scripts: SimpleNamespace) -> None:
    kind, machine, store = case(scripts, "threads")
    machine = replace(machine, batch=4)
    assert not scripts.scale_cost.holds(machine)
    assert scripts.scale_cost.simulated(kind, machine, store, images=400) < 0.8 * scripts.scale_cost.speed(
        kind, machine, store
    )


@pytest.mark.parametrize(
    ("work", "rate"),
    [
        ((0.0, 0.0, 0.4, 0.0, 0.1, 0.0, 0.0), 10),
        ((0.0, 0.0, 0.1, 0.0, 0.1, 0.0, 0.0), 10),
        ((0.0, 0.0, 0.1, 0.1, 0.0, 0.0, 0.1), 5),  # rows wait for the lock, too
        ((0.0, 0.4, 0.1, 0.0, 0.0, 0.0, 0.0), 4 / 1.7),  # four share the network, which rests while they decode
        ((0.3, 0.0, 0.1, 0.0, 0.0, 0.0, 0.0), 10),  # four threads wait at the same time
        ((0.0, 0.0, 0.1, 0.0, 0.0, 0.5, 0.0), 2),
    ],
)
def test_a_queue_of_equal_images_has_the_speed_of_its_slowest_stage(
    scripts: SimpleNamespace, work: tuple[float, ...], rate: float
) -> None:
    queue = scripts.scale_queue
    shape = queue.Shape(4, 16, 4, True, 1, 1.0, {"gpu": 1.0}, {"gpu": 1.0})
    capacity = {"cores": 4.0, "gpu": 1.0, "network": 1.0}
    assert queue.simulate(shape, capacity, repeat(queue.Work(*work)), 200) == pytest.approx(rate, rel=0.02)


def test_jobs_that_want_more_than_there_is_slow_down_alike(scripts: SimpleNamespace) -> None:
    clock = scripts.scale_queue.Clock({"cores": 2.0})
    ended: list[tuple[str, float]] = []
    for name, seconds in (("a", 1.0), ("b", 1.0), ("c", 2.0)):
        clock.job(seconds, {"cores": 1.0}, lambda name=name: ended.append((name, clock.now)))
    clock.after(0.75, lambda: ended.append(("timer", clock.now)))
    for _ in range(4):
        clock.step()
    # Three share two cores until a and b end after 1.5 s. Then c, half done, has a core of its own.
    assert ended == [("timer", 0.75), ("a", pytest.approx(1.5)), ("b", pytest.approx(1.5)), ("c", pytest.approx(2.5))]


def test_more_machines_take_less_time_until_the_store_is_the_limit(scripts: SimpleNamespace) -> None:
    kind, machine, store = case(scripts, "GPU")
    given = {"images": 864_000_000, "machines": [1, 10, 10_000]}
    table = scripts.scale_cost.prices(given, [kind], [machine], store)
    cells = [cell.strip() for cell in table.splitlines()[2].split("|")[3:-1]]
    # 250 images/s are 3,456,000 s. The store gives 400 Gbit/s, 500,000 images/s.
    assert cells == ["40", "4", "0.02", "960", f"{960 * 2 + 864:,}", "86.4"]


def test_the_assumptions_of_the_script_can_be_read(scripts: SimpleNamespace) -> None:
    given, kinds, machines, store = scripts.scale_cost.read(scripts.scale_cost.ASSUMPTIONS)
    assert given["images"] == 10**9
    assert all(scripts.scale_cost.holds(machine) for machine in machines)
    for kind in kinds:
        assert 0 < kind.locked < kind.decode < 1
        assert all(scripts.scale_cost.speed(kind, machine, store) > 1 for machine in machines)
