"""The head: every activation and norm, standardisation, folding, and signatures of length one."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from helpers.backbones import randomised

from mdmf_deploy.bundle.recipe import Head
from mdmf_deploy.errors import ShapeMismatch
from mdmf_deploy.model.pfs import PfsHead

WIDTH = 6


def patches(seed: int = 0) -> torch.Tensor:
    """Patches (3, 4, 6) whose channels have means and deviations far from 0 and 1."""
    drawn = torch.randn(3, 4, WIDTH, generator=torch.Generator().manual_seed(seed))
    return drawn * torch.tensor([1, 30, 0.01, 5, 1, 2.0]) + torch.tensor([0, 100, 1, -20, 3, 0.0])


def make(**choices: object) -> PfsHead:
    head = PfsHead(WIDTH, Head(pool=2, hidden=(8, 7), signature=5, **choices))  # type: ignore[arg-type]
    randomised(head)
    for norm in head.norms:
        if isinstance(norm, torch.nn.BatchNorm1d):
            torch.nn.init.uniform_(norm.running_mean, -1, 1)
            torch.nn.init.uniform_(norm.running_var, 0.2, 3)
    return head


@pytest.mark.parametrize("activation", ["gelu", "relu", "softplus"])
@pytest.mark.parametrize("norm", ["none", "layernorm", "batchnorm"])
def test_hidden_layers_are_linear_norm_activation(activation: str, norm: str) -> None:
    head, x = make(activation=activation, norm=norm), patches()
    expected = x
    for place, layer in enumerate(head.layers):
        expected = layer(expected)
        if place < 2:
            if norm == "layernorm":
                one = head.norms[place]
                expected = F.layer_norm(expected, one.weight.shape, one.weight, one.bias)
            if norm == "batchnorm":
                one = head.norms[place]
                deviation = (one.running_var + one.eps).sqrt()
                expected = (expected - one.running_mean) / deviation * one.weight + one.bias
            expected = getattr(F, activation)(expected)
    torch.testing.assert_close(head.signatures(x), expected, rtol=1e-5, atol=1e-5)


def test_standardised_channels_enter_with_mean_0_and_deviation_1() -> None:
    x = patches()
    flat = x.flatten(0, 1)
    head = make()
    plain = head.signatures((x - flat.mean(0)) / flat.std(0))
    head.standardise(flat.mean(0), flat.std(0))
    torch.testing.assert_close(head.signatures(x), plain, rtol=1e-5, atol=1e-5)


def test_a_constant_channel_is_not_blown_up() -> None:
    head, x = make(), patches()
    head.standardise(x[0, 0], torch.zeros(WIDTH))
    assert head.signatures(x[:1, :1]).isfinite().all()


@pytest.mark.parametrize("mean", [torch.zeros(WIDTH + 1), torch.full((WIDTH,), torch.nan)])
def test_statistics_of_other_channels_are_refused(mean: torch.Tensor) -> None:
    with pytest.raises(ShapeMismatch, match="expected mean as 6 finite numbers"):
        make().standardise(mean, torch.ones(WIDTH))


@pytest.mark.parametrize("norm", ["none", "layernorm", "batchnorm"])
def test_a_folded_head_computes_the_same(norm: str) -> None:
    head, x = make(norm=norm, normalise=True), patches()
    head.standardise(x.flatten(0, 1).mean(0), x.flatten(0, 1).std(0))
    before = head.signatures(x)
    head.fold()
    torch.testing.assert_close(head.signatures(x), before, rtol=0, atol=2e-5)
    left = {key for key, _ in head.named_buffers()}
    assert not left, left


def test_normalised_signatures_have_length_one_and_zero_stays_zero() -> None:
    head = make(normalise=True)
    lengths = head.signatures(patches()).norm(dim=-1)
    torch.testing.assert_close(lengths, torch.ones(3, 4))
    torch.nn.init.zeros_(head.layers[-1].weight)
    torch.nn.init.zeros_(head.layers[-1].bias)
    assert not head.signatures(patches()).any()
