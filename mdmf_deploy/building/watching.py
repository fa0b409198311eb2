"""What the builder says while it builds: its log, kept, and its progress, shown on a terminal."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

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
