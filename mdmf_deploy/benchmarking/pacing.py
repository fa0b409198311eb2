"""How much of a thing fits into a run, when one of them costs so much."""

from __future__ import annotations

# A scenario's time holds eight runs and their warm-up, or about so.
_RUNS = 8
# Filling and draining the pipeline cost a run about the time of one batch: of so many they weigh little.
BATCHES = 16


def fitting(most: int, seconds: float, budget: float, runs: int = _RUNS) -> int:
    """How many items of `seconds` each one run should take, 1 to `most`, so that `runs` runs fit into the budget."""
    return max(1, min(most, int(budget / runs / max(seconds, 1e-9))))


def filling(batch_size: int, seconds: float, longest: float) -> int:
    """How many images of `seconds` each a run of BATCHES batches takes; of slow ones what `longest` seconds hold."""
    return fitting(BATCHES * batch_size, seconds, longest, runs=1)
