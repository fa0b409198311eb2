"""What a run has to do, and how it is divided. No Ray is needed."""

from __future__ import annotations

import numpy as np
import pyarrow
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mdmf_deploy.bundle.recipe import Preprocessing
from mdmf_deploy.detection.outputs.done import Done, Held, InputKey
from mdmf_deploy.images.limits import ReadLimits
from mdmf_deploy.tasks.scale.blocks import BLOCK, BLOCK_BYTES, blocks_of, missing
from mdmf_deploy.tasks.scale.listing import LOCAL, SCHEMA
from mdmf_deploy.tasks.scale.stages import Reading
from mdmf_deploy.tasks.scale.tables import unpacked


def listing(names: list[str]) -> pyarrow.Table:
    count = len(names)
    columns = [names, [0] * count, range(count), [7] * count, [LOCAL] * count, [name.encode() for name in names]]
    return pyarrow.table([list(column) for column in columns], schema=SCHEMA)


@settings(deadline=None)
@given(st.lists(st.lists(st.sampled_from(["done", "changed", "new"]), min_size=1, max_size=6), min_size=1, max_size=3))
def test_an_input_is_done_once_all_outputs_hold_it(given: list[list[str]]) -> None:
    count = min(map(len, given))
    states = [list(output[:count]) for output in given]
    table = listing([f"{n}.jpg" for n in range(count)])
    outputs = [
        Done(
            Held(InputKey(f"{n}.jpg", 0, n, 7 if state == "done" else 8))
            for n, state in enumerate(output)
            if state != "new"
        )
        for output in states
    ]
    todo, again = missing(outputs, table)
    each = [{output[n] for output in states} for n in range(count)]
    assert todo["uri"].to_pylist() == [f"{n}.jpg" for n, found in enumerate(each) if found != {"done"}]
    # What none of them holds is new. All else that is to do has to be removed before.
    assert again == [(f"{n}.jpg", 0) for n, found in enumerate(each) if found not in ({"done"}, {"new"})]


@pytest.mark.parametrize("count", [1, 70, 3000])
@pytest.mark.parametrize("videos", [False, True])
def test_blocks_hold_all_inputs_in_order_and_few_bytes(count: int, videos: bool) -> None:
    reading = Reading((), Preprocessing(crop=112), 4, ReadLimits(), 200, None, "1")
    todo = listing([f"{n}.{'mp4' if videos and n % 3 == 0 else 'jpg'}" for n in range(count)])
    groups = blocks_of(todo, reading)
    sizes = np.concatenate([group["inputs"].to_numpy() for group in groups])
    assert sizes.max() <= min(BLOCK, max(1, count // 64))
    assert pyarrow.concat_tables(map(unpacked, groups)).equals(todo)
    image = 3 * 112**2 * 4
    starts = np.cumsum([0, *sizes])
    for start, size in zip(starts, sizes, strict=False):
        names = todo["uri"].to_pylist()[start : start + size]
        held = sum(image * (200 if name.endswith("mp4") else 1) for name in names)
        assert size == 1 or held <= BLOCK_BYTES
