"""The inputs that a run has to do, and the blocks in which they travel."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow
import pyarrow.compute

from mdmf_deploy.detection.outputs.done import Done, InputKey
from mdmf_deploy.images.listing import VIDEO_SUFFIXES
from mdmf_deploy.tasks.scale.stages import Reading
from mdmf_deploy.tasks.scale.tables import KEYS, packed

BLOCK, BLOCK_BYTES = 128, 32 * 2**20
"""Inputs in a block, and bytes of their crops, at most. A block travels whole, and is done again if its worker dies.

Ray Data keeps about 20 kB in the driver for each block, so small crops travel in larger ones.
"""

GROUP = 64
"""Blocks that are handed to Ray Data as one."""


def missing(outputs: Sequence[Done], table: pyarrow.Table) -> tuple[pyarrow.Table, list[tuple[str, int]]]:
    """Return the inputs of a listing that are to do, and the (uri, copy) of those that some output holds otherwise.

    outputs: what each output of the run holds. An input is done if all of them hold it.
    """
    todo = np.zeros(len(table), bool)
    again: list[tuple[str, int]] = []
    at = 0
    for batch in table.select(list(KEYS)).to_batches(max_chunksize=10_000):
        for values in zip(*(column.to_pylist() for column in batch.columns), strict=True):
            key = InputKey(*values)
            states = {done.state(key) for done in outputs}
            todo[at] = states != {"done"}
            if states - {"new"} and todo[at]:
                again.append((key.uri, key.copy))
            at += 1
    return table if todo.all() else table.filter(pyarrow.array(todo)), again


def blocks_of(todo: pyarrow.Table, reading: Reading) -> list[pyarrow.Table]:
    """Divide inputs into blocks, whose crops take about BLOCK_BYTES at most, and pack them, GROUP to a table."""
    image = 3 * reading.preprocessing.crop**2 * reading.crops
    suffixes = "|".join(suffix.removeprefix(".") for suffix in sorted(VIDEO_SUFFIXES))
    videos = pyarrow.compute.match_substring_regex(todo["uri"], rf"\.({suffixes})$", ignore_case=True)
    sizes = np.where(videos.to_numpy(), image * (reading.frames or 1), image)
    most = most_inputs(todo)
    blocks, first, held = [], 0, 0
    for n, size in enumerate(sizes.tolist()):
        if n > first and (n - first == most or held + size > BLOCK_BYTES):
            blocks.append(todo.slice(first, n - first))
            first, held = n, 0
        held += size
    blocks.append(todo.slice(first))
    groups = [blocks[n : n + GROUP] for n in range(0, len(blocks), GROUP)]
    return [packed(group, [*map(len, group)]) for group in groups]


def most_inputs(todo: pyarrow.Table) -> int:
    """Return the most inputs in a block: fewer for few, so that one that kills its worker is soon left alone."""
    return max(1, min(BLOCK, len(todo) // 64))
