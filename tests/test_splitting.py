"""A file's part is its bytes' alone, in the proportions asked for."""

from __future__ import annotations

from collections import Counter

import pytest
from handmade import sha
from hypothesis import given
from hypothesis import strategies as st

from mdmf_deploy.recipe import Split
from mdmf_deploy.splitting import part_of

SPLIT = Split(train=0.65, validation=0.15, held_out=("LDM",))


def test_parts_have_the_asked_sizes() -> None:
    counts = Counter(part_of(sha(str(i)), SPLIT, "GLIDE") for i in range(20_000))
    assert counts["train"] / 20_000 == pytest.approx(0.65, abs=0.02)
    assert counts["validation"] / 20_000 == pytest.approx(0.15, abs=0.02)


@pytest.mark.parametrize(
    ("position", "part"),
    [(0.0, "train"), (0.6499, "train"), (0.6501, "validation"), (0.7999, "validation"), (0.8001, "test")],
)
def test_the_hash_is_read_as_a_position(position: float, part: str) -> None:
    assert part_of(f"{int(position * 16**13):013x}" + "f" * 51, SPLIT) == part


def test_the_last_hash_is_still_a_position() -> None:
    assert part_of("f" * 64, SPLIT) == "test"


@given(content=st.text())
def test_a_held_out_generator_is_only_ever_tested(content: str) -> None:
    assert part_of(sha(content), SPLIT, "LDM") == "test"
    assert part_of(sha(content), SPLIT) == part_of(sha(content), SPLIT, "GLIDE")


@given(content=st.text(), more=st.floats(0, 0.1))
def test_more_training_data_takes_none_away(content: str, more: float) -> None:
    larger = Split(train=0.65 + more, validation=0.15)
    if part_of(sha(content), SPLIT) == "train":
        assert part_of(sha(content), larger) == "train"
