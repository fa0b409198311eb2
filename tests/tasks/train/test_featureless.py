"""Drawn images of every kind carry little texture, and differ."""

from __future__ import annotations

import numpy as np
import pytest

from mdmf_deploy.tasks.train.featureless import KINDS, featureless


@pytest.mark.parametrize("kind", KINDS)
def test_an_image_depends_on_its_generator_alone(kind: str) -> None:
    first, again, other = (featureless(np.random.default_rng(seed), 64, kind) for seed in (1, 1, 2))
    assert first.shape == (64, 64, 3)
    assert first.dtype == np.uint8
    assert (first == again).all()
    assert (first != other).any()


def test_pages_have_ink_on_paper_and_the_others_have_no_edges() -> None:
    for seed in range(6):
        for kind in KINDS:
            steps = np.abs(np.diff(featureless(np.random.default_rng(seed), 96, kind).astype(int), axis=1)).max()
            assert (steps > 60) == ("text" in kind), (kind, seed)


def test_every_kind_is_drawn() -> None:
    rng = np.random.default_rng(0)
    spreads = [float(featureless(rng, 32).std()) for _ in range(30)]
    assert min(spreads) < 60 < max(spreads)
