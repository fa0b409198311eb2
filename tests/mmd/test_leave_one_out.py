from __future__ import annotations

import numpy as np
import pytest

from mdmf_deploy.bundle.bank import Bank, BankSource
from mdmf_deploy.errors import BankError
from mdmf_deploy.mmd.leave_one_out import leave_one_out
from mdmf_deploy.mmd.reference import ReferenceReduction, uniform_bank


def bank_of(signatures: np.ndarray, source: np.ndarray) -> Bank:
    sources = tuple(BankSource(f"{i}.jpg", f"{i:064}") for i in range(source.max() + 1))
    return uniform_bank(
        signatures.astype(np.float32), 1.3, source=source.astype(np.int32), sources=sources, model_sha256="0" * 64
    )


def test_equals_scoring_each_image_against_a_bank_built_without_it() -> None:
    generator = np.random.default_rng(0)
    source = np.array([0] * 4 + [1] * 2 + [2] * 5 + [3] * 1)
    signatures = generator.standard_normal((len(source), 6)) + source[:, None]
    slow = []
    for image in range(4):
        rest = bank_of(signatures[source != image], np.unique(source[source != image], return_inverse=True)[1])
        slow.append(ReferenceReduction()(signatures[None, source == image].astype(np.float32), rest).mmd2[0])
    np.testing.assert_allclose(leave_one_out(bank_of(signatures, source)), slow, rtol=1e-4, atol=1e-6)


def test_a_sample_is_evenly_spaced_and_scored_alike() -> None:
    generator = np.random.default_rng(1)
    source = np.repeat(np.arange(9), 2)
    bank = bank_of(generator.standard_normal((18, 3)), source)
    assert leave_one_out(bank, at_most=3) == pytest.approx(leave_one_out(bank)[[0, 4, 8]])


def test_one_image_cannot_be_left_out() -> None:
    with pytest.raises(BankError, match="at least two"):
        leave_one_out(bank_of(np.ones((3, 2)), np.zeros(3, int)))
