"""Random weights in each layout give the outputs of transformers, which is the oracle."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.backbones import TINY, assert_same_tokens, randomised, reference, to_timm
from safetensors.torch import save_file

from mdmf_deploy.errors import CheckpointError
from mdmf_deploy.model.architectures import ARCHITECTURES, architecture
from mdmf_deploy.model.checkpoints import load_backbone
from mdmf_deploy.model.dinov2 import DinoV2
from mdmf_deploy.model.layouts import official

IMAGES = torch.randn(2, 3, 56, 56, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("layout", ["hub", "memory", "prefixed", "official", "timm"])
def test_every_layout_gives_the_outputs_of_transformers(name: str, layout: str, tmp_path: Path) -> None:
    a = TINY[name]
    theirs = randomised(reference(a))
    path = tmp_path / "model.safetensors"
    if layout == "hub":
        theirs.save_pretrained(tmp_path)
    else:
        tensors = theirs.state_dict()
        if layout == "prefixed":
            prefix = "dinov2_with_registers" if a.registers else "dinov2"
            tensors = {f"{prefix}.{key}": value for key, value in tensors.items()}
        if layout in ("official", "timm"):
            tensors = official(tensors, a)[1]
        if layout == "timm":
            tensors = to_timm(tensors, a)
        save_file({key: value.contiguous() for key, value in tensors.items()}, path)
    ours = DinoV2(a)
    load_backbone(ours, path)
    assert_same_tokens(ours, theirs, a, IMAGES)


@pytest.mark.parametrize("name", TINY)
def test_resampling_as_transformers_gives_its_outputs_at_other_sizes_too(name: str) -> None:
    """See test_dinov2.py for the official code's resampling, which differs without registers."""
    a = replace(TINY[name], offset=architecture("dinov2_vits14", "transformers").offset)
    theirs = randomised(reference(a))
    ours = DinoV2(a)
    ours.load_state_dict(official(theirs.state_dict(), a)[1])
    assert_same_tokens(ours, theirs, a, torch.randn(1, 3, 42, 84, generator=torch.Generator().manual_seed(4)))


def test_the_real_vits_with_registers_agrees_with_transformers(tmp_path: Path) -> None:
    """Two of its twelve blocks are enough: they are all alike."""
    a = replace(ARCHITECTURES["dinov2_vits14_reg"], depth=2)
    theirs = reference(a)
    torch.nn.init.trunc_normal_(theirs.embeddings.position_embeddings, std=0.02)
    theirs.eval().save_pretrained(tmp_path)
    ours = DinoV2(a)
    load_backbone(ours, tmp_path / "model.safetensors")
    assert_same_tokens(ours, theirs, a, torch.randn(1, 3, 112, 112, generator=torch.Generator().manual_seed(5)))


@pytest.mark.parametrize("layout", ["official", "timm"])
def test_every_layout_is_recognised(layout: str) -> None:
    for a in TINY.values():
        tensors = dict(DinoV2(a).state_dict())
        assert official(tensors if layout == "official" else to_timm(tensors, a), a)[0] == layout


def test_a_missing_mask_token_is_no_error(tmp_path: Path) -> None:
    a = TINY["registers"]
    tensors = dict(randomised(DinoV2(a)).state_dict())
    del tensors["mask_token"]
    assert official(tensors, a)[0] == "official"
    save_file(tensors, tmp_path / "w.safetensors")
    ours = DinoV2(a)
    load_backbone(ours, tmp_path / "w.safetensors")
    assert torch.equal(ours.register_tokens, tensors["register_tokens"])


@pytest.mark.parametrize("layout", ["Hugging Face", "timm", "official"])
def test_missing_extra_and_misshapen_keys_are_listed(layout: str, tmp_path: Path) -> None:
    a = TINY["swiglu_registers"]
    tensors = dict(DinoV2(a).state_dict())
    if layout == "timm":
        tensors = to_timm(tensors, a)
    if layout == "Hugging Face":
        tensors = dict(reference(a).state_dict())
        del tensors["encoder.layer.0.attention.v_proj.bias"]
        tensors["layernorm.weight"] = torch.zeros(7)
    else:
        del tensors["blocks.0.attn.qkv.bias"]
        tensors["norm.weight"] = torch.zeros(7)
    tensors["surprise"] = torch.zeros(1)
    path = tmp_path / "w.safetensors"
    save_file({key: value.contiguous() for key, value in tensors.items()}, path)
    with pytest.raises(CheckpointError) as caught:
        load_backbone(DinoV2(a), path)
    text = str(caught.value)
    assert str(path) in text
    assert f"{layout} layout" in text
    assert "missing: blocks.0.attn.qkv.bias;" in text
    assert "surprise" in text
    assert "misshapen: norm.weight is (7,), not (40,)" in text
    assert "\n" not in text


def test_a_model_of_another_size_is_refused_with_a_short_list(tmp_path: Path) -> None:
    save_file(DinoV2(TINY["plain"]).state_dict(), tmp_path / "w.safetensors")
    with pytest.raises(
        CheckpointError, match=r"missing: .*extra: .* and \d+ more; misshapen: .* and \d+ more$"
    ) as caught:
        load_backbone(DinoV2(TINY["swiglu_registers"]), tmp_path / "w.safetensors")
    assert len(str(caught.value)) < 2000
