"""A bank on disk is read in blocks, with the same result as in memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from helpers import handmade

from mdmf_deploy.bundle.bank import Bank
from mdmf_deploy.errors import BankError
from mdmf_deploy.mmd.compress import bank_rows
from mdmf_deploy.mmd.compress.bank_rows import BankFile, MemoryRows
from mdmf_deploy.mmd.compress.fit import compress


def large(tmp_path: Path, count: int = 250) -> tuple[Bank, BankFile]:
    bank = handmade.bank(count)
    path = tmp_path / "bank.safetensors"
    path.write_bytes(bank.to_bytes())
    return bank, BankFile(path)


def test_a_file_holds_what_was_written(tmp_path: Path) -> None:
    bank, file = large(tmp_path, 6)
    assert (file.rows, file.width) == bank.signatures.shape
    assert (file.sigma, file.self_term, file.model_sha256) == (bank.sigma, bank.self_term, bank.model_sha256)
    assert (file.sources, file.compression) == (bank.sources, bank.compression)
    np.testing.assert_array_equal(file.signatures(3, 17), bank.signatures[3:17])
    np.testing.assert_array_equal(file.weights(3, 17), bank.weights[3:17])
    np.testing.assert_array_equal(file.source(3, 17), bank.source[3:17])


class Counting:
    """Rows that record how many were read, in all and at once."""

    def __init__(self, inner: MemoryRows | BankFile) -> None:
        self.inner, self.rows, self.width, self.largest, self.read = inner, inner.rows, inner.width, 0, 0

    def signatures(self, start: int, stop: int) -> np.ndarray:
        self.largest, self.read = max(self.largest, stop - start), self.read + stop - start
        return self.inner.signatures(start, stop)

    def weights(self, start: int, stop: int) -> np.ndarray:
        return self.inner.weights(start, stop)


def test_reading_from_disk_gives_the_same_bits_and_holds_one_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bank, file = large(tmp_path)
    monkeypatch.setattr(bank_rows, "BLOCK", 128)
    monkeypatch.setattr("mdmf_deploy.mmd.compress.fit.SAMPLE", 300)
    source = Counting(file)
    streamed = compress(source, bank.sigma, bank.self_term, points=30)
    whole = compress(MemoryRows(bank.signatures, bank.weights), bank.sigma, bank.self_term, points=30)
    for name in ("places", "signatures", "weights"):
        np.testing.assert_array_equal(getattr(streamed, name), getattr(whole, name))
    assert (streamed.self_term, streamed.mmd) == (whole.self_term, whole.mmd)
    assert source.largest == 128
    assert source.read == 2 * source.rows  # once for candidates, once for the mean embedding


def test_an_error_names_a_file_that_is_not_a_bank(tmp_path: Path) -> None:
    path = tmp_path / "bank.safetensors"
    for content in (b"", b"not a bank at all", (9).to_bytes(8, "little") + b'{"a": 1} '):
        path.write_bytes(content)
        with pytest.raises(BankError, match=r"bank\.safetensors is not a reference bank"):
            BankFile(path)
    with pytest.raises(BankError, match="missing"):
        BankFile(tmp_path / "missing")


def test_an_error_names_a_file_that_ends_early(tmp_path: Path) -> None:
    _, file = large(tmp_path, 6)
    with pytest.raises(BankError, match="ends before row 25"):
        file.signatures(20, 25)
