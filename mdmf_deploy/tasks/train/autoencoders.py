"""Small convolutional autoencoders. Their reconstructions are the generated halves of aligned pairs.

A real image keeps its content when it passes through a generator's decoder, so that only the decoder's traces are left
to learn (Rajan and Lee, ICLR 2025). The latent factor and the up-sampler vary, since they determine these traces.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mdmf_deploy.bundle.recipe import Autoencoder
from mdmf_deploy.errors import UsageError
from mdmf_deploy.files import atomic_file

_CROP = 96
_BATCH = 8
_LEARNING_RATE = 2e-3


class AutoencoderNet(nn.Module):
    """Reconstruct images (B, 3, H, W) in [0, 1]. H and W are multiples of the factor."""

    def __init__(self, autoencoder: Autoencoder) -> None:
        super().__init__()
        halvings = autoencoder.factor.bit_length() - 1
        width = autoencoder.width
        encoder: list[nn.Module] = [nn.Conv2d(3, width, 3, padding=1)]
        for _ in range(halvings):
            encoder += [nn.Conv2d(width, 2 * width, 4, stride=2, padding=1), _Stage(2 * width)]
            width *= 2
        encoder.append(nn.Conv2d(width, autoencoder.channels, 1))
        decoder: list[nn.Module] = [nn.Conv2d(autoencoder.channels, width, 3, padding=1)]
        for _ in range(halvings):
            decoder += [
                _Stage(width),
                _upsampler(autoencoder.upsampler, width),
                nn.Conv2d(width, width // 2, 3, padding=1),
            ]
            width //= 2
        decoder += [nn.SiLU(), nn.Conv2d(width, 3, 3, padding=1)]
        self.encoder = nn.Sequential(*encoder)
        self.decoder = nn.Sequential(*decoder)

    def forward(self, images: Tensor) -> Tensor:
        reconstructed: Tensor = self.decoder(self.encoder(images - 0.5)) + 0.5
        return reconstructed


def autoencoder_name(autoencoder: Autoencoder) -> str:
    """Return a stable name, such as "f4-pixelshuffle-c16"."""
    return f"f{autoencoder.factor}-{autoencoder.upsampler}-c{autoencoder.channels}"


def train_autoencoder(
    autoencoder: Autoencoder, images: Sequence[NDArray[np.uint8]], path: Path, seed: int = 0
) -> tuple[AutoencoderNet, float]:
    """Train on random crops of real photographs, or load the result of the same training from `path`.

    images: (H, W, 3). Images smaller than 96 x 96 pixels are skipped.
    path: a file named after everything the result depends on.

    Returns the net and its PSNR in dB over the last 50 batches. Raises UsageError if no image is large enough.
    """
    torch.manual_seed(seed)
    net = AutoencoderNet(autoencoder)
    if path.is_file():
        state = load_file(path)
        psnr = float(state.pop("psnr"))
        net.load_state_dict(state)
        return net.eval(), psnr
    net = net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimiser = torch.optim.AdamW(net.parameters(), lr=_LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, _LEARNING_RATE, total_steps=autoencoder.steps)
    errors: list[float] = []
    usable = [image for image in images if min(image.shape[:2]) >= _CROP]
    if not usable:
        raise UsageError(f"autoencoders need photographs of at least {_CROP} x {_CROP} pixels; there is none")
    for batch in _batches(usable, autoencoder, seed):
        difference = net(batch.to(memory_format=torch.channels_last)) - batch
        loss = difference.abs().mean() + 4 * difference.square().mean()
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        errors.append(float(difference.detach().square().mean()))
    psnr = -10 * float(np.log10(np.mean(errors[-50:])))
    net = net.to(memory_format=torch.contiguous_format)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as scratch:
        save_file({**net.state_dict(), "psnr": torch.tensor(psnr)}, scratch)
    return net.eval(), psnr


@torch.inference_mode()
def reconstruct(net: AutoencoderNet, image: NDArray[np.uint8], factor: int) -> NDArray[np.uint8]:
    """Reconstruct an image (H, W, 3) in its own size. Its sides are mirrored up to a multiple of the factor."""
    height, width = image.shape[:2]
    pad = ((0, -height % factor), (0, -width % factor), (0, 0))
    tensor = torch.from_numpy(np.pad(image, pad, mode="reflect")).permute(2, 0, 1)[None].float() / 255
    out = net(tensor)[0].permute(1, 2, 0)[:height, :width]
    rounded: NDArray[np.uint8] = (out * 255).round().clamp(0, 255).byte().numpy()
    return rounded


def _batches(images: Sequence[NDArray[np.uint8]], autoencoder: Autoencoder, seed: int) -> Iterator[Tensor]:
    for step in range(autoencoder.steps):
        rng = np.random.default_rng([seed, step])
        crops = []
        for index in rng.integers(len(images), size=_BATCH):
            image = images[index]
            top = rng.integers(image.shape[0] - _CROP + 1)
            left = rng.integers(image.shape[1] - _CROP + 1)
            crops.append(image[top : top + _CROP, left : left + _CROP])
        yield torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2).float() / 255


def _upsampler(kind: str, channels: int) -> nn.Module:
    if kind == "transposed":
        return nn.ConvTranspose2d(channels, channels, kernel_size=4, stride=2, padding=1)
    if kind == "pixelshuffle":
        return nn.Sequential(nn.Conv2d(channels, 4 * channels, kernel_size=1), nn.PixelShuffle(2))
    return nn.Upsample(scale_factor=2, mode=kind, align_corners=False if kind == "bilinear" else None)


class _Stage(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(4, channels)
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        refined: Tensor = self.second(F.silu(self.first(F.silu(self.norm(x)))))
        return x + refined
