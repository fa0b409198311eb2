from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from mdmf_deploy.tasks.export.ladder import fewest, most_worth_keeping, rank

LAYERS = [f"layer{i}" for i in range(30)]


@given(st.integers(1, 30), st.integers(0, 30))
def test_it_finds_the_fewest_that_pass_in_few_trials(needed: int, most: int) -> None:
    tried: list[int] = []

    def passes(kept: Sequence[str]) -> bool:
        assert list(kept) == LAYERS[: len(kept)]
        tried.append(len(kept))
        return len(kept) >= needed

    found = fewest(LAYERS, passes, most)
    assert found == (LAYERS[:needed] if needed <= most else None)
    assert len(tried) == len(set(tried)) <= 11
    assert all(1 <= size <= most for size in tried)


@given(st.sets(st.integers(1, 30)), st.integers(0, 30))
def test_whatever_it_finds_has_passed(good: set[int], most: int) -> None:
    found = fewest(LAYERS, lambda kept: len(kept) in good, most)
    assert found is None or (len(found) in good and len(found) <= most)


def test_the_worst_come_first_and_equals_stay_in_order() -> None:
    errors = dict.fromkeys(LAYERS, 1.0) | {"layer7": 3.0, "layer3": 2.0, "layer9": np.nan}
    assert rank(LAYERS, errors.__getitem__)[:4] == ["layer9", "layer7", "layer3", "layer0"]


def test_half_of_the_layers_may_stay() -> None:
    assert [most_worth_keeping(count) for count in (0, 1, 25)] == [0, 0, 12]
