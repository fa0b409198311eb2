"""Probe images: drawn by arithmetic, so that a bundle can be verified anywhere without images or a checkpoint.

A bundle holds the signatures that its source extracted from them (probes.safetensors). `mdmf verify` compares a
runtime's signatures with these. The arithmetic uses integers only, so every machine draws the same pixels: value noise
(Perlin, SIGGRAPH 1985, on a lattice of hashed values) in octaves whose amplitude grows with their wavelength, as in a
photograph, with a hard edge and a tint.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

from mdmf_deploy.bundle.tensors import TensorHeader
from mdmf_deploy.errors import BundleError

COUNT = 16


def probe_crops(size: int, count: int = COUNT) -> NDArray[np.uint8]:
    """Draw (count, size, size, 3) uint8 RGB, the same on every machine."""
    return np.stack([_probe(index, size) for index in range(count)])


def probes_to_bytes(signatures: NDArray[np.float32], crops: NDArray[np.uint8]) -> bytes:
    """Return probes.safetensors: the source's signatures (count, N, d) of these crops."""
    from safetensors.numpy import save

    return save({"signatures": np.ascontiguousarray(signatures, np.float32)}, metadata={"crops": _digest(crops)})


def probes_from_bytes(
    data: bytes, crops: NDArray[np.uint8], name: str, shape: tuple[int, int] | None = None
) -> NDArray[np.float32]:
    """Read the signatures (count, N, d) of these crops.  shape: (N, d) of the model, if it is known.

    Raises BundleError if the file is damaged, was made from other crops, or holds signatures of another shape.
    """
    signatures, drawn = _read(data, name, shape)
    if drawn != _digest(crops) or len(signatures) != len(crops):
        raise BundleError(
            f"{name}: made of other probe images than this version of mdmf-deploy draws; export the bundle again, or "
            "give --checkpoint and images"
        )
    return signatures


def stored_probes(data: bytes, shape: tuple[int, int], name: str) -> NDArray[np.float32]:
    """Read signatures (count, N, d) of any probe images.  shape: (N, d) of the model. Raises BundleError."""
    return _read(data, name, shape)[0]


def _read(data: bytes, name: str, shape: tuple[int, int] | None) -> tuple[NDArray[np.float32], str]:
    """Return the signatures, and the digest of the crops that they are of."""
    try:
        header = TensorHeader.read(data, len(data), {"signatures": ("F32", 3)})
        signatures: NDArray[np.float32] = header.tensors["signatures"].of(data)
        if shape is not None and signatures.shape[1:] != shape:
            raise ValueError(f"expected (count, {shape[0]}, {shape[1]}) of this model, got {signatures.shape}")
        if not np.isfinite(signatures).all():
            raise ValueError("its signatures are not finite")
    except ValueError as error:
        raise BundleError(f"{name} does not hold probe signatures ({error}); export the bundle again") from error
    return signatures, header.metadata.get("crops", "")


def _digest(crops: NDArray[np.uint8]) -> str:
    return hashlib.sha256(crops.tobytes()).hexdigest()


def _hash(value: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """Hash 32-bit integers with good avalanche (Chris Wellons' lowbias32, public domain)."""
    value = (value ^ (value >> np.uint32(16))) * np.uint32(0x21F0AAAD)
    value = (value ^ (value >> np.uint32(15))) * np.uint32(0x735A2D97)
    return value ^ (value >> np.uint32(15))


def _noise(seed: int, cell: int, size: int) -> NDArray[np.int64]:
    """Return (size, size) in -32768..32767: hashed values on a lattice of `cell` pixels, bilinearly interpolated."""
    points = size // cell + 2
    lattice = _hash(_hash(np.arange(points * points, dtype=np.uint32)) ^ np.uint32(seed))
    values = (lattice >> np.uint32(16)).astype(np.int64).reshape(points, points) - 32768
    at, part = np.divmod(np.arange(size), cell)
    rows = values[at] * (cell - part)[:, None] + values[at + 1] * part[:, None]
    both: NDArray[np.int64] = rows[:, at] * (cell - part) + rows[:, at + 1] * part
    return both // (cell * cell)


def _probe(index: int, size: int) -> NDArray[np.uint8]:
    # A third of the probes are smooth, a third like photographs, a third full of fine texture.
    steepness = 1 + index % 3
    light = np.zeros((size, size), np.int64)
    colour = np.zeros((3, size, size), np.int64)
    for octave in range(7):
        weight = 64 >> (steepness * (6 - octave) // 2)
        light += weight * _noise(1000 * index + octave, 1 << octave, size)
        for channel in range(3):
            colour[channel] += weight * _noise(1000 * index + 100 * (channel + 1) + octave, 1 << octave, size)
    x, y = np.arange(size)[None, :], np.arange(size)[:, None]
    edge = (3 * x + (index - 8) * y > size * (1 + index % 2)) * (20 * (index % 5))
    contrast = 2 + index % 4
    levels = 80 + 4 * index + edge + contrast * (4 * light + colour) // (4 * 65536)
    return np.clip(levels, 0, 255).astype(np.uint8).transpose(1, 2, 0)
