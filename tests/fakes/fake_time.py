"""A clock that moves only when it is set, and a detector that moves it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from mdmf_deploy.tasks.benchmark.results import Configuration
from mdmf_deploy.tasks.benchmark.subjects import Subject


class FakeClock:
    """A Clock whose CPU time is its wall-clock time."""

    def __init__(self) -> None:
        self.time = 0.0

    def now(self) -> float:
        return self.time

    def cpu(self) -> float:
        return self.time

    def sleep_until(self, moment: float) -> None:
        self.time = max(self.time, moment)


class FakeDetector:
    """A detector that takes `a_batch` seconds per call and `an_image` seconds per image.

    log: (name, images) of every call.
    """

    bundle: Any = None

    def __init__(
        self, clock: FakeClock, an_image: float, a_batch: float = 0.0, name: str = "", log: list[Any] | None = None
    ) -> None:
        self.clock, self.an_image, self.a_batch, self.name = clock, an_image, a_batch, name
        self.log = [] if log is None else log

    def detect(self, sources: Any) -> list[Any]:
        return list(self.stream([sources] if isinstance(sources, Path) else sources))

    def stream(self, sources: Iterable[Path]) -> Iterator[Any]:
        count = len(list(sources))
        self.log.append((self.name, count))
        self.clock.time += self.a_batch + count * self.an_image
        return iter([None] * count)


def subject(detector: Any, name: str = "fake fp32", bundle: str = "a.mdmf") -> Subject:
    """Return a subject of a fake detector, named "RUNTIME PRECISION"."""
    runtime, _, precision = name.partition(" ")
    about = Configuration(name=name, bundle=bundle, bundle_id="0" * 64, runtime=runtime, precision=precision)
    return Subject(about, detector)
