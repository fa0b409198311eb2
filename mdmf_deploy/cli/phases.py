"""The phases of a long run on stderr: bars on a terminal, a line for each elsewhere, and the time that is left."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mdmf_deploy.cli.console import draws_bars, log, stderr_console

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import TaskID

    from mdmf_deploy.tasks.train.phases import Phase

# An estimate is made once this many seconds and units are measured. The first unit warms up and does not count.
_SECONDS, _UNITS = 5.0, 2
# Less time than this is not worth a line.
_WORTH_SAYING = 15.0


@dataclass(slots=True)
class _Running:
    """A phase in progress.

    begun, start: when it began, and what was done by then.
    first, first_done: when its first unit was done here, and what was done by then.
    said: whether its time left was said, or was not worth it.
    """

    bar: TaskID
    begun: float
    start: int
    first: float | None = None
    first_done: int = 0
    said: bool = False


class PhaseDisplay:
    """Show the phases of a run while it is open.

    say: prints a line, above the bars if there are any.
    console: where to draw bars if it is a terminal. None means stderr, where `draws_bars` allows it.
    clock: seconds that only grow.
    """

    def __init__(
        self,
        say: Callable[[str], None] = log,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self.log = say
        self._clock = clock
        drawn = draws_bars() if console is None else console.is_terminal
        self._bars = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=console or stderr_console(),
            transient=True,
            disable=not drawn,
        )
        self._running: dict[str, _Running] = {}

    def __enter__(self) -> PhaseDisplay:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def follow(self, phase: Phase) -> None:
        """Show how far a phase has come. A phase that is done may come again, as validation does."""
        now = self._clock()
        running = self._running.get(phase.name)
        if running is None:
            running = _Running(self._bars.add_task(phase.name, total=phase.total), now, phase.done)
            self._running[phase.name] = running
        self._bars.update(running.bar, completed=phase.done)
        if phase.done == phase.total:
            del self._running[phase.name]
            self._finish(phase, running, now)
        elif running.first is None and phase.done > running.start:
            running.first, running.first_done = now, phase.done
        elif running.first is not None and not running.said:
            self._estimate(phase, running, now - running.first)

    def _finish(self, phase: Phase, running: _Running, now: float) -> None:
        # Bars of finished phases would pile up: validation comes every few hundred steps.
        self._bars.update(running.bar, visible=False)
        count = f"{phase.total - running.start:,} of {phase.total:,}" if running.start else f"{phase.total:,}"
        self.log(f"{phase.name}: {count} {phase.unit} in {now - running.begun:.1f} s")

    def _estimate(self, phase: Phase, running: _Running, seconds: float) -> None:
        measured = phase.done - running.first_done
        if seconds < _SECONDS or measured < _UNITS:
            return
        running.said = True
        left = seconds / measured * (phase.total - phase.done)
        if left >= _WORTH_SAYING:
            self.log(f"{phase.name}: about {duration(left)} left, after {phase.done:,} of {phase.total:,} {phase.unit}")


def duration(seconds: float) -> str:
    """Return a duration in one or two units, such as "40 s", "12 min" or "3 h 20 min"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60} min"
