"""Aligned pairs by autoencoders of TAESD's form: sizes, files that are kept, and files that do not fit."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.synthetic_photos import synthetic_photo
from safetensors.torch import load_file, save_file

from mdmf_deploy.bundle.recipe import Pairs
from mdmf_deploy.errors import UsageError
from mdmf_deploy.tasks.train.autoencoders import load_autoencoder, reconstruct
from mdmf_deploy.tasks.train.pairs import PairMaker, large_enough

CPU = torch.device("cpu")
SHA = "3f" * 32


@pytest.mark.parametrize(("name", "grouped"), [("plain", False), ("grouped", True)])
def test_a_reconstruction_has_its_images_size(name: str, grouped: bool, autoencoders: Path) -> None:
    net = load_autoencoder(autoencoders, name)
    assert any("pool" in key for key in net.state_dict()) == grouped
    image = synthetic_photo(1, 48, 32)
    rebuilt = reconstruct(net, image)
    assert rebuilt.shape == image.shape
    assert rebuilt.dtype == np.uint8
    with torch.inference_mode():
        whole = net(torch.from_numpy(image.copy()).permute(2, 0, 1)[None] / 255)[0].permute(1, 2, 0)
    assert np.abs(rebuilt - 255 * whole.numpy()).max() <= 0.501


def test_noise_in_the_latent_follows_from_the_seed(autoencoders: Path) -> None:
    net, image = load_autoencoder(autoencoders, "plain"), synthetic_photo(1, 32, 32)
    plain = reconstruct(net, image)
    noisy = [seed for seed in range(12) if (reconstruct(net, image, seed) != plain).any()]
    assert 0 < len(noisy) < 12
    assert (reconstruct(net, image, noisy[0]) == reconstruct(net, image, noisy[0])).all()


def test_a_pair_is_the_middle_of_a_photograph_and_is_made_once(
    autoencoders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    maker = PairMaker.load(Pairs(autoencoders=("plain",), held_out="grouped"), autoencoders, tmp_path, CPU, 48)
    assert set(maker.nets) == {"plain", "grouped"}
    photograph = synthetic_photo(2, 61, 37)
    part, rebuilt = maker(photograph, SHA, "plain")
    assert part.shape == rebuilt.shape == (32, 48, 3)
    assert (part == photograph[2:34, 6:54]).all()
    assert (maker(photograph, SHA, "grouped")[1] != rebuilt).any()
    monkeypatch.setattr("mdmf_deploy.tasks.train.pairs.reconstruct", None)
    assert (maker(photograph, SHA, "plain")[1] == rebuilt).all()


def test_a_file_that_was_cut_short_is_made_again(autoencoders: Path, tmp_path: Path) -> None:
    maker = PairMaker.load(Pairs(autoencoders=("plain",)), autoencoders, tmp_path, CPU, 48)
    photograph = synthetic_photo(2, 61, 37)
    _, rebuilt = maker(photograph, SHA, "plain")
    [path] = tmp_path.rglob("*.png")
    whole = path.read_bytes()
    for broken in (b"", whole[: len(whole) // 2], whole[:-200], bytes(len(whole))):
        path.write_bytes(broken)
        assert (maker(photograph, SHA, "plain")[1] == rebuilt).all()
        assert path.read_bytes() == whole


def test_a_small_photograph_gives_no_pair() -> None:
    assert large_enough(synthetic_photo(1, 40, 32))
    assert not large_enough(synthetic_photo(1, 200, 31))


def test_autoencoders_without_their_folder_or_files_are_refused(autoencoders: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--autoencoders DIR"):
        PairMaker.load(Pairs(autoencoders=("plain",)), None, tmp_path, CPU, 48)
    with pytest.raises(UsageError, match=r"no other_encoder\.safetensors"):
        PairMaker.load(Pairs(autoencoders=("other",)), autoencoders, tmp_path, CPU, 48)
    assert PairMaker.load(Pairs(), None, tmp_path, CPU, 48).nets == {}
    for path in autoencoders.glob("plain*"):
        shutil.copy(path, tmp_path)
    decoder = tmp_path / "plain_decoder.safetensors"
    tensors = load_file(decoder)
    del tensors["1.bias"]
    save_file(tensors, decoder)
    with pytest.raises(UsageError, match=r"decoder of plain .* missing: 1\.bias"):
        load_autoencoder(tmp_path, "plain")
