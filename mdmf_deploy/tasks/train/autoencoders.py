"""TAESD, tiny autoencoders distilled from those of real generators (Bohan, madebyollin/taesd, MIT).

A photograph that has passed through one keeps its content and gains the decoder's traces. Their files are read into the
plain modules below, whose keys are those of the release. `diffusers.AutoencoderTiny` holds the same networks, except
those with group norms (taef2), but it takes seconds to import, and its files name the keys differently.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mdmf_deploy.errors import UsageError
from mdmf_deploy.files import file_sha256
from mdmf_deploy.model.tensors import problems, read_tensors

_WIDTH = 64
FACTOR = 8
"""Images' sides are multiples of it: the encoder halves them three times."""


class _Clamp(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x / 3) * 3


class _Block(nn.Module):
    def __init__(self, grouped: bool = False) -> None:
        super().__init__()
        self.conv = nn.Sequential(_conv(), nn.ReLU(), _conv(), nn.ReLU(), _conv())
        if grouped:
            wide = 4 * _WIDTH
            self.pool = nn.Sequential(
                nn.Conv2d(_WIDTH, wide, 1, bias=False),
                nn.GroupNorm(4, wide),
                nn.ReLU(),
                nn.Conv2d(wide, _WIDTH, 1, bias=False),
            )
        self._grouped = grouped

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.conv(x) + x
        return torch.relu(result + self.pool(x) if self._grouped else result)


def _conv(inputs: int = _WIDTH, outputs: int = _WIDTH, bias: bool = True, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=bias)


class AutoencoderNet(nn.Module):
    """Images (B, 3, H, W) in [0, 1] to latents (B, channels, H / 8, W / 8) and back.

    grouped: the blocks at the smallest scale have a second branch with a group norm.
    """

    def __init__(self, channels: int, grouped: bool = False) -> None:
        super().__init__()
        encoder: list[nn.Module] = [_conv(3), _Block()]
        for scale in range(3):
            encoder += [_conv(bias=False, stride=2), *(_Block(grouped and scale == 2) for _ in range(3))]
        decoder: list[nn.Module] = [_Clamp(), _conv(channels), nn.ReLU()]
        for scale in range(3):
            decoder += [_Block(grouped and scale == 0) for _ in range(3)]
            decoder += [nn.Upsample(scale_factor=2), _conv(bias=False)]
        self.encoder = nn.Sequential(*encoder, _conv(_WIDTH, channels))
        self.decoder = nn.Sequential(*decoder, _Block(), _conv(_WIDTH, 3))

    def forward(self, images: Tensor) -> Tensor:
        decoded: Tensor = self.decoder(self.encoder(images))
        return decoded.clamp(0, 1)


def autoencoder_files(folder: Path, name: str) -> tuple[Path, Path]:
    """Return the files of an autoencoder's encoder and decoder, NAME_encoder.* and NAME_decoder.*.

    Raises UsageError if they are not in the folder.
    """
    found = []
    for part in ("encoder", "decoder"):
        stem = f"{name}_{part}"
        paths = [path for ending in (".safetensors", ".pth") if (path := folder / (stem + ending)).is_file()]
        if not paths:
            raise UsageError(f"{folder} has no {stem}.safetensors or .pth; get it from madebyollin/taesd on GitHub")
        found.append(paths[0])
    return found[0], found[1]


def load_autoencoder(folder: Path, name: str) -> AutoencoderNet:
    """Read an autoencoder. Its number of latent channels and its kind of block follow from its tensors.

    Raises UsageError if its files are missing or fit no such network, and CheckpointError if one is unreadable.
    """
    encoder, decoder = (read_tensors(path) for path in autoencoder_files(folder, name))
    net = AutoencoderNet(_latent_channels(decoder), any(".pool." in key for key in decoder))
    for part, module, tensors in (("encoder", net.encoder, encoder), ("decoder", net.decoder, decoder)):
        if found := problems(module, tensors):
            raise UsageError(f"the {part} of {name} in {folder} is not one of TAESD's: {found}")
        module.load_state_dict(tensors)
    return net.float().eval().requires_grad_(False)


def _latent_channels(decoder: Mapping[str, Tensor]) -> int:
    first = decoder.get("1.weight")
    return first.shape[1] if first is not None and first.dim() == 4 else 4


def autoencoder_hashes(folder: Path, name: str) -> list[str]:
    """Return the SHA-256 of the encoder's and the decoder's file."""
    return [file_sha256(path) for path in autoencoder_files(folder, name)]


@torch.inference_mode()
def reconstruct(net: AutoencoderNet, pixels: NDArray[np.uint8], seed: int | None = None) -> NDArray[np.uint8]:
    """Pass an image (H, W, 3) through an autoencoder. Its sides are multiples of 8.

    seed: add noise to the latent of every other image, up to 0.15 of the latent's spread. None adds none.
    """
    device = next(net.parameters()).device
    images = torch.from_numpy(pixels.copy()).to(device).permute(2, 0, 1)[None].float() / 255
    latent = net.encoder(images)
    if seed is not None:
        rng = torch.Generator().manual_seed(seed)
        noisy, spread = torch.rand(2, generator=rng).tolist()
        noise = torch.randn(latent.shape, generator=rng).to(device)
        latent = latent + (0.15 * spread if noisy < 0.5 else 0.0) * latent.std() * noise
    out = (net.decoder(latent)[0].clamp(0, 1) * 255).round().byte().permute(1, 2, 0)
    rebuilt: NDArray[np.uint8] = out.cpu().numpy()
    return rebuilt
