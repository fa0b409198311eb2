"""The best threshold beats every other on its own images, and halves do not depend on the recipes' split."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import balanced_accuracy_score

from mdmf_deploy.bundle.recipe import Split, part_of
from mdmf_deploy.tasks.evaluate.thresholds import best_threshold, half_of

SCORES = st.lists(st.integers(0, 9).map(float), min_size=1, max_size=15).map(np.array)


def accuracy(thresholds: np.ndarray, pairs: list[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """Return the accuracy at each threshold, balanced over the classes, as the mean over generators."""
    shares = [((real <= thresholds[:, None]).mean(1), (fake > thresholds[:, None]).mean(1)) for real, fake in pairs]
    return np.mean(shares, axis=(0, 1))


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(SCORES, SCORES), min_size=1, max_size=3))
def test_no_other_threshold_is_more_accurate(pairs: list[tuple[np.ndarray, np.ndarray]]) -> None:
    found = best_threshold(pairs)
    assert found is not None
    best, *others = accuracy(np.r_[found, np.arange(-0.5, 10, 0.5)], pairs)
    assert best >= max(others) - 1e-9


def test_the_accuracy_above_is_that_of_scikit_learn() -> None:
    real, generated = np.array([0.0, 1, 2, 2, 5]), np.array([1.0, 3, 4])
    labels = np.repeat([False, True], [5, 3])
    expected = balanced_accuracy_score(labels, np.r_[real, generated] > 2)
    assert accuracy(np.array([2.0]), [(real, generated)]) == pytest.approx([expected])


def test_generators_count_alike_whatever_their_number_of_images() -> None:
    real = np.zeros(10)
    few, many = np.full(2, 5.0), np.full(1000, -5.0)
    # Above 0 all of one generator is found, and below -5 all of both, at the cost of every real image.
    assert best_threshold([(real, few), (real, many)]) == 2.5


def test_equal_scores_cannot_be_parted_and_neighbours_in_floats_can() -> None:
    assert best_threshold([(np.array([1.0, 1.0]), np.array([1.0]))]) is not None
    low, high = 1.0, float(np.nextafter(1.0, 2.0))
    found = best_threshold([(np.array([low]), np.array([high]))])
    assert found is not None
    assert not low > found
    assert high > found


def test_a_missing_class_gives_no_threshold() -> None:
    assert best_threshold([]) is None
    assert best_threshold([(np.array([]), np.array([1.0]))]) is None


def test_halves_are_even_and_independent_of_the_split() -> None:
    hashes = [hashlib.sha256(str(n).encode()).hexdigest() for n in range(4000)]
    halves = np.array([half_of(sha256) for sha256 in hashes])
    trained = np.array([part_of(sha256, Split(train=0.5)) == "train" for sha256 in hashes])
    assert 0.46 < halves.mean() < 0.54
    assert abs(np.corrcoef(halves, trained)[0, 1]) < 0.06
