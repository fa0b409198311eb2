"""The kernels' 2^x by polynomial, their rounding to operand types, and their places in shared memory."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from fakes.host_kernels import Builder
from helpers.kernel_inputs import bank_of

from mdmf_deploy.mmd.cuda.kernels import round_bank, rounded, widened


@pytest.mark.parametrize(("degree", "allowed"), [(4, 3e-6), (6, 2.0**-22)])
def test_exp2_is_as_accurate_as_documented(host: Builder, degree: int, allowed: float) -> None:
    kernel = host("plain", "fp32", 64)
    x = -np.concatenate([np.linspace(0, 126, 1 << 18), np.arange(127), np.arange(127) + 0.5]).astype(np.float32)
    x = x[x >= -126]
    exact = np.exp2(x.astype(np.float64))
    assert np.abs(kernel.exp2(x, degree) / exact - 1).max() <= allowed
    # Not better than its degree either, so the one asked for is the one that runs.
    assert (np.abs(kernel.exp2(x, degree) / exact - 1).max() > 1e-6) == (degree == 4)


@pytest.mark.parametrize("degree", [4, 6])
def test_exp2_at_its_ends(host: Builder, degree: int) -> None:
    kernel = host("plain", "fp32", 64)
    exact = kernel.exp2(-np.arange(127, dtype=np.float32), degree)
    assert np.array_equal(exact, 2.0 ** -np.arange(127.0))
    far = kernel.exp2(np.array([-127, -127.5, -1e9, -3e38, -np.inf], np.float32), degree)
    assert np.array_equal(far, np.zeros(5))
    between = kernel.exp2(np.linspace(-127, -126, 1001, dtype=np.float32), degree)
    assert (between >= 0).all()
    assert (between <= 2.0**-125).all()


@pytest.mark.parametrize("operand", ["fp16", "fp16x2", "bf16"])
def test_device_and_host_round_alike(host: Builder, operand: str) -> None:
    """A number has the same bits whichever side prepares it: ties, subnormal numbers, overflow."""
    ties = [1 + 2.0**-11, 1 + 3 * 2.0**-11, 1 + 2.0**-8, 1 + 3 * 2.0**-8]
    values = np.array([*ties, 1 + 2.0**-9, 3e-8, 6e-8, 65504, 65519, 65520, -7e4, 0.1, -0.0])
    values = np.concatenate([values, np.random.default_rng(0).normal(0, 1, 64 * 64 - len(values))]).astype(np.float32)
    kernel = host("tensor", operand, 64)
    # A bank that neither moves nor scales the signatures.
    prepared = dataclasses.replace(round_bank(bank_of(np.zeros((1, 64)), 1.0), kernel.kernel), scale=1.0)
    operands, *_ = kernel.prepare(values.reshape(1, 64, 64), prepared)
    limit = 2.0**56 if operand == "bf16" else 65504.0
    expected = rounded(np.clip(values, -limit, limit).reshape(64, 64), operand)
    # A tie may make other two numbers of fp16x2, but not another sum.
    assert np.array_equal(widened(operands, operand), widened(expected, operand))


@pytest.mark.parametrize(("operand", "width"), [("fp16", 64), ("fp16", 128), ("fp16", 256), ("fp16x2", 256)])
def test_threads_that_read_together_use_different_banks(host: Builder, operand: str, width: int) -> None:
    """Eight threads read 16 bytes each, of two points. Shared memory has 32 banks of 4 bytes."""
    kernel = host("tensor", operand, width)
    place_of, words = kernel.library.host_place_of, kernel.kernel.row_bytes // 16
    places = np.array([[place_of(point, word) for word in range(words)] for point in range(32)])
    assert np.array_equal(np.sort(places, axis=None), np.arange(places.size))
    for first in range(0, 32, 2):
        for word in range(0, words, 4):
            read = places[first : first + 2, word : word + 4].ravel()
            banks = (read[:, None] * 4 + np.arange(4)) % 32
            assert len(set(banks.ravel())) == 32
