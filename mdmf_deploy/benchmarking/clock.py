"""Time as the benchmark sees it, so that a test can bring a time of its own."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """now, cpu: seconds from any origin; cpu: of all threads of this process."""

    def now(self) -> float: ...

    def cpu(self) -> float: ...

    def sleep_until(self, moment: float) -> None:
        """Return at once where the moment has passed."""
        ...


class RealClock:
    def now(self) -> float:
        return time.perf_counter()

    def cpu(self) -> float:
        return time.process_time()

    def sleep_until(self, moment: float) -> None:
        left = moment - self.now()
        if left > 0:
            time.sleep(left)
