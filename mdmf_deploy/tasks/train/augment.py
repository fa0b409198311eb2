"""Random crops on the training device, with the same scales, blur, noise and JPEG coding for both classes.

Everything here works on batches of tensors, so that a GPU is kept busy. JPEG is simulated: the colour transform,
chroma subsampling, block DCT and quantisation of libjpeg, without entropy coding, which loses nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

MARGIN = 16
"""Pixels around a crop that two JPEG passes with different block grids need."""

# Annex K of the JPEG standard (ITU-T T.81), tables K.1 and K.2: quantisation at quality 50.
_LUMA = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)
_CHROMA = (
    (17, 18, 24, 47, 99, 99, 99, 99),
    (18, 21, 26, 66, 99, 99, 99, 99),
    (24, 26, 56, 99, 99, 99, 99, 99),
    (47, 66, 99, 99, 99, 99, 99, 99),
    *(((99,) * 8,) * 4),
)
_TO_YCC = ((0.299, 0.587, 0.114), (-0.168736, -0.331264, 0.5), (0.5, -0.418688, -0.081312))
_TO_RGB = ((1.0, 0.0, 1.402), (1.0, -0.344136, -0.714136), (1.0, 1.772, 0.0))


@dataclass(frozen=True, slots=True)
class Canvases:
    """Images of different sizes in one tensor.

    pixels: (n, H, W, 3) uint8, each image at the upper left.
    sizes: (n, 2), the height and width of each.
    """

    pixels: Tensor
    sizes: Tensor

    @classmethod
    def of(cls, images: Sequence[Tensor], side: int) -> Canvases:
        """Stack images (h, w, 3) uint8. A larger one is cut to its upper left `side` pixels."""
        pixels = torch.zeros(len(images), side, side, 3, dtype=torch.uint8)
        sizes = torch.zeros(len(images), 2, dtype=torch.long)
        for n, image in enumerate(images):
            height, width = min(side, image.shape[0]), min(side, image.shape[1])
            pixels[n, :height, :width] = image[:height, :width]
            sizes[n, 0], sizes[n, 1] = height, width
        return cls(pixels, sizes)

    def to(self, device: torch.device) -> Canvases:
        return Canvases(self.pixels.to(device), self.sizes.to(device))


@dataclass(frozen=True, slots=True)
class Degradation:
    """What may happen to a crop, with probabilities. Both classes draw from the same one.

    scales: the range of the factor that changes the size; rescaled: how often it is not 1.
    blur: the range of the Gaussian's standard deviation in pixels; noise: the same in levels of 255.
    quality: the range of a codec's quality; jpeg, jpeg_twice: how often a crop is coded once at least, and twice.
    webp: how often an image is coded as WebP before all else. Only batches.py does that, since it needs the CPU.
    """

    rescaled: float = 0.55
    scales: tuple[float, float] = (0.55, 2.0)
    blurred: float = 0.15
    blur: tuple[float, float] = (0.3, 1.8)
    noisy: float = 0.15
    noise: tuple[float, float] = (1.0, 8.0)
    jpeg: float = 0.6
    jpeg_twice: float = 0.25
    quality: tuple[int, int] = (40, 98)
    webp: float = 0.1


@dataclass(frozen=True, slots=True)
class Draws:
    """The random choices for a group of crops that share one scale. A pair gives both halves the same draws.

    where: (b, 2) in [0, 1): the place among the possible ones.  flip: (b,).
    blur, noise: (b,), 0 for none.  qualities: (b, 2), above 100 for none.  shifts: two offsets (row, column) in 0..8.
    """

    scale: float
    where: Tensor
    flip: Tensor
    blur: Tensor
    noise: Tensor
    qualities: Tensor
    shifts: tuple[tuple[int, int], tuple[int, int]]
    subsampled: bool

    def take(self, rows: Tensor) -> Draws:
        """Return the choices for the crops at `rows`, (b,) indices. A pair takes the same row twice."""
        chosen = {name: getattr(self, name)[rows] for name in ("where", "flip", "blur", "noise", "qualities")}
        return replace(self, **chosen)

    @classmethod
    def sample(cls, count: int, degradation: Degradation, rng: torch.Generator) -> Draws:
        """Draw on the CPU, so that every device sees the same batches."""
        d = degradation
        unit = torch.rand(count, 8, generator=rng)
        one = torch.rand(8, generator=rng).tolist()
        low, high = map(math.log, d.scales)
        quality = d.quality[0] + (d.quality[1] - d.quality[0]) * torch.rand(count, 2, generator=rng)
        quality = torch.where(torch.stack([unit[:, 4] < d.jpeg, unit[:, 4] < d.jpeg_twice], 1), quality, 1000.0)
        return cls(
            scale=math.exp(low + (high - low) * one[1]) if one[0] < d.rescaled else 1.0,
            where=unit[:, :2],
            flip=unit[:, 2] < 0.5,
            blur=torch.where(unit[:, 3] < d.blurred, d.blur[0] + (d.blur[1] - d.blur[0]) * unit[:, 5], 0.0),
            noise=torch.where(unit[:, 6] < d.noisy, d.noise[0] + (d.noise[1] - d.noise[0]) * unit[:, 7], 0.0),
            qualities=quality,
            shifts=((int(9 * one[2]), int(9 * one[3])), (int(9 * one[4]), int(9 * one[5]))),
            subsampled=one[6] < 0.75,
        )


def augment(canvases: Canvases, which: Tensor, draws: Draws, crop: int, noise: Tensor | None = None) -> Tensor:
    """Return crops (b, 3, crop, crop) in levels of 0 to 255, whole numbers, as a decoder would give them.

    which: (b,) the images to crop.
    noise: (b, 3, crop + 16, crop + 16), standard normal. Drawn here if it is None.
    """
    device = canvases.pixels.device
    side = crop + MARGIN
    window = max(8, round(side / draws.scale))
    images = _windows(canvases, which, draws.where.to(device), window)
    if window != side:
        images = F.interpolate(images, (side, side), mode="bicubic", antialias=True, align_corners=False)
        images = images.clamp(0, 255)
    blur = draws.blur.to(device)
    if bool((draws.blur > 0).any()):
        images = torch.where((blur > 0)[:, None, None, None], _blurred(images, blur.clamp_min(0.1)), images)
    if bool((draws.noise > 0).any()):
        grain = torch.randn_like(images) if noise is None else noise
        images = (images + draws.noise.to(device)[:, None, None, None] * grain).clamp(0, 255)
    images = images.round()
    for turn, (row, column) in enumerate(draws.shifts):
        quality = draws.qualities[:, turn].to(device)
        if bool((draws.qualities[:, turn] <= 100).any()):
            coded = jpeg(images, quality.clamp_max(100), draws.subsampled)
            images = torch.where((quality <= 100)[:, None, None, None], coded, images)
        side -= MARGIN // 2
        images = images[:, :, row : row + side, column : column + side]
    return torch.where(draws.flip.to(device)[:, None, None, None], images.flip(-1), images)


def jpeg(images: Tensor, quality: Tensor, subsampled: bool) -> Tensor:
    """Code and decode images (b, 3, H, W) of 0 to 255 as baseline JPEG would, each at its own quality (b,).

    subsampled: halve the chroma planes (4:2:0).
    """
    height, width = images.shape[-2:]
    unit = 16 if subsampled else 8
    padded = F.pad(images, (0, -width % unit, 0, -height % unit), mode="replicate")
    ycc = torch.einsum("oc,bchw->bohw", _constant(_TO_YCC, images.device), padded)
    # libjpeg keeps whole levels between its stages.
    luma, chroma = ycc[:, :1].round(), (ycc[:, 1:] + 128).round()
    if subsampled:
        chroma = F.avg_pool2d(chroma, 2).round()
    luma = _quantised(luma, quality, _constant(_LUMA, images.device))
    chroma = _quantised(chroma, quality, _constant(_CHROMA, images.device))
    if subsampled:
        chroma = F.interpolate(chroma, scale_factor=2, mode="bilinear", align_corners=False)
    ycc = torch.cat([luma, chroma - 128], 1)
    rgb = torch.einsum("oc,bchw->bohw", _constant(_TO_RGB, images.device), ycc)
    return rgb.round().clamp(0, 255)[:, :, :height, :width]


def _windows(canvases: Canvases, which: Tensor, where: Tensor, window: int) -> Tensor:
    """Cut (b, 3, window, window), mirrored where the image is smaller."""
    which = which.to(canvases.pixels.device)
    sizes = canvases.sizes[which]
    start = (where * (sizes - window + 1).clamp_min(1)).long()
    steps = torch.arange(window, device=which.device)
    rows, columns = (_folded(start[:, axis, None] + steps, sizes[:, axis, None]) for axis in (0, 1))
    cut = canvases.pixels[which[:, None, None], rows[:, :, None], columns[:, None, :]]
    return cut.permute(0, 3, 1, 2).float()


def _folded(index: Tensor, length: Tensor) -> Tensor:
    period = (2 * (length - 1)).clamp_min(1)
    index = index % period
    return torch.minimum(index, period - index)


def _blurred(images: Tensor, sigma: Tensor) -> Tensor:
    """Blur every image (b, c, H, W) by its own Gaussian."""
    b, c, height, width = images.shape
    reach = 6
    offsets = torch.arange(-reach, reach + 1, device=images.device).float()
    taps = torch.exp(-(offsets**2) / (2 * sigma[:, None] ** 2))
    taps = (taps / taps.sum(1, keepdim=True)).repeat_interleave(c, 0)
    flat = F.pad(images.reshape(1, b * c, height, width), (reach,) * 4, mode="reflect")
    flat = F.conv2d(flat, taps[:, None, :, None], groups=b * c)
    return F.conv2d(flat, taps[:, None, None, :], groups=b * c).reshape(b, c, height, width)


def _quantised(planes: Tensor, quality: Tensor, table: Tensor) -> Tensor:
    b, c, height, width = planes.shape
    scale = torch.where(quality < 50, 5000 / quality, 200 - 2 * quality)
    steps = ((table * scale[:, None, None] + 50) / 100).floor().clamp(1, 255)[:, None, None, None]
    basis = _cosines(planes.device)
    blocks = (planes - 128).reshape(b, c, height // 8, 8, width // 8, 8).transpose(3, 4)
    coefficients = basis @ blocks @ basis.T
    coefficients = (coefficients / steps).round() * steps
    blocks = basis.T @ coefficients @ basis
    return blocks.transpose(3, 4).reshape(b, c, height, width).add(128).round().clamp(0, 255)


@lru_cache(maxsize=16)
def _constant(rows: tuple[tuple[float, ...], ...], device: torch.device) -> Tensor:
    """Keep a small table on the device: copying it there every time would make the host wait."""
    return torch.tensor(rows, dtype=torch.float32, device=device)


@lru_cache(maxsize=4)
def _cosines(device: torch.device) -> Tensor:
    """Return the orthonormal DCT-II matrix of 8 points."""
    n = torch.arange(8, dtype=torch.float64)
    basis = torch.cos(math.pi / 8 * (n + 0.5) * n[:, None]) / 2
    basis[0] /= math.sqrt(2)
    return basis.float().to(device)
