"""A bank checks itself at birth, and its file reads back to the last bit."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from helpers.handmade import bank

from mdmf_deploy.bundle.bank import Bank, BankSource
from mdmf_deploy.errors import BankError
from mdmf_deploy.mmd.reference import bank_self_term, gaussian_kernel, uniform_bank


def test_reads_back_to_the_last_bit() -> None:
    before = bank()
    after = Bank.from_bytes(before.to_bytes())
    for field in dataclasses.fields(Bank):
        assert np.array_equal(getattr(after, field.name), getattr(before, field.name)), field.name
    assert after.signatures.dtype == np.float32
    assert after.weights.dtype == np.float64
    assert after.to_bytes() == before.to_bytes()


def test_negative_weights_and_the_compression_are_kept() -> None:
    weights = np.linspace(-0.02, 0.1, 24)
    method = {"method": "nystrom", "of": 99, "max_mmd_change": 1e-3, "later": {"x": None}}
    own = bank_self_term(bank().signatures, weights, bank().sigma)
    written = dataclasses.replace(bank(), weights=weights, self_term=own, compression=method)
    after = Bank.from_bytes(written.to_bytes())
    assert np.array_equal(after.weights, weights)
    assert after.compression == method


def test_equal_weights_and_the_mean_kernel_value() -> None:
    made = bank()
    assert made.weights == pytest.approx(1 / 24)
    assert made.self_term == pytest.approx(gaussian_kernel(made.signatures, made.signatures, made.sigma).mean())


def test_hashes_are_those_of_its_images() -> None:
    made = bank(3)
    assert made.hashes == {source.sha256 for source in made.sources}
    assert len(made.hashes) == 3


@pytest.mark.parametrize(
    "change",
    [
        {"signatures": np.zeros((0, 4), np.float32)},
        {"signatures": np.zeros(24, np.float32)},
        {"signatures": np.full((24, 4), np.nan, np.float32)},
        {"weights": np.zeros(23)},
        {"weights": np.full(24, np.inf)},
        {"sigma": 0.0},
        {"sigma": float("nan")},
        {"self_term": float("nan")},
        {"source": np.full(24, 6, np.int32)},
        {"source": np.full(24, -1, np.int32)},
        {"source": np.zeros(3, np.int32)},
        {"sources": ()},
    ],
)
def test_invalid_values_make_no_bank(change: dict[str, object]) -> None:
    with pytest.raises(BankError, match="bank: "):
        dataclasses.replace(bank(), **change)


def test_no_signatures_make_no_bank() -> None:
    with pytest.raises(BankError, match="at least one readable real image"):
        uniform_bank(
            np.zeros((0, 4), np.float32),
            1.0,
            source=np.zeros(0, np.int32),
            sources=(BankSource("a", "0"),),
            model_sha256="0",
        )


@pytest.mark.parametrize("keep", [0, 7, 8, 50, 300, -1])
def test_a_file_cut_short_is_refused_by_name(keep: int) -> None:
    with pytest.raises(BankError, match=r"cut\.safetensors is not a reference bank"):
        Bank.from_bytes(bank().to_bytes()[:keep], "cut.safetensors")


def test_another_safetensors_file_is_refused_by_name() -> None:
    from safetensors.numpy import save

    for data in (save({"a": np.zeros(3)}), save({"signatures": np.zeros((2, 2))}, metadata={"mdmf": "[1]"})):
        with pytest.raises(BankError, match="is not a reference bank"):
            Bank.from_bytes(data)
