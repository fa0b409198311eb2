"""`mdmf benchmark`: where every millisecond of a detection goes, and what a configuration's speed costs in verdicts.

Importing it imports nothing heavy; `run` does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mdmf_deploy.tasks.benchmark.results import Benchmark, Settings
    from mdmf_deploy.tasks.benchmark.rounds import Clock

__all__ = ["BATCH_SIZE", "SCENARIOS", "run"]

SCENARIOS = ("single-stream", "offline", "server")
BATCH_SIZE = 8  # what Detector and `mdmf detect` take when not told; a test holds them together


def run(
    bundles: Sequence[str],
    settings: Settings | None = None,
    *,
    runtimes: Sequence[str] = ("auto",),
    precisions: Sequence[str] = (),
    images: Sequence[Path] | None = None,
    clock: Clock | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> Benchmark:
    """Benchmark every bundle on every runtime in every precision.

    precisions: none means each bundle's own.  images: None means generated ones.
    say: told what is going on, a line at a time.
    Raises UsageError for settings that make no sense, images none of which can be read, or a precision that cannot be
    had; BundleError, RuntimeUnavailable.
    """
    from mdmf_deploy.tasks.benchmark.run import run as run_all

    return run_all(bundles, settings, runtimes, precisions, images, clock, say)
