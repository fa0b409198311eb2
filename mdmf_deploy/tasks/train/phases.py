"""The phases of a training run, and how it reports them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Phase:
    """One part of a run, such as "features", and how far it has come.

    unit: what is counted, in the plural.
    done: how many of the total are done. At the start it is not 0 if a run resumes.
    """

    name: str
    unit: str
    total: int
    done: int = 0


# Called at the start of a phase, and whenever more of it is done.
Follow = Callable[[Phase], None]
# Receives one line of progress at a time.
Log = Callable[[str], None]


def ignore(_: object) -> None:
    """Report nothing."""


@dataclass(frozen=True, slots=True)
class Reports:
    """The receivers of a run's reports.

    log: of lines of text.
    watch: of the record of every logged step.
    follow: of phases.
    """

    log: Log = ignore
    watch: Callable[[dict[str, float]], None] = ignore
    follow: Follow = ignore


SILENT = Reports()


class Count:
    """Count what is done of a phase. A phase with nothing to do is not reported."""

    def __init__(self, name: str, unit: str, total: int, follow: Follow = ignore, done: int = 0) -> None:
        self._name, self._unit, self._total, self._done, self._follow = name, unit, total, done, follow
        self._report()

    def advance(self, units: int = 1) -> None:
        """Report that so many more units are done."""
        self._done += units
        self._report()

    def finish(self) -> None:
        """Report the rest as done, if there is any."""
        if self._done < self._total:
            self.advance(self._total - self._done)

    def over(self, items: Iterable[T]) -> Iterator[T]:
        """Yield items, and count each when the next is asked for."""
        for item in items:
            yield item
            self.advance()

    def _report(self) -> None:
        if self._total:
            self._follow(Phase(self._name, self._unit, self._total, self._done))
