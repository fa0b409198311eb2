"""Compress a bank while its images arrive, without ever holding the whole bank or visiting all of its M^2 pairs.

Signatures fill a block. A full block is compressed, with an exact error bound of its own, and its points wait on a
level. When a level holds a block's worth of points, they are joined, compressed again and moved one level up. This is a
streaming coreset (Bentley and Saxe 1980; Har-Peled and Mazumdar 2004). The mean embedding of a union is that of its
parts, weighted by their shares of the signatures. So error bounds add up by the triangle inequality:

    MMD(R, R') <= sum_c n_c / M MMD(R_c, R'_c) + MMD(union of all R'_c, R').
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from mdmf_deploy.errors import BankError
from mdmf_deploy.mmd.compress.bank_rows import MemoryRows
from mdmf_deploy.mmd.compress.fit import compress
from mdmf_deploy.mmd.compress.kernel import Floats
from mdmf_deploy.mmd.reference import bank_self_term

BLOCK = 32_768
PER_BLOCK = 2048
# A merge takes at least this many compressed blocks. With fewer, points would be fitted over and over for little gain.
_FAN = 4


@dataclass(frozen=True, slots=True)
class Coreset:
    """Points that stand for `of` signatures.

    signatures: (m, d).
    weights: (m,), for a bank of these signatures only.
    source: (m,), the number of each point's image.
    max_mmd_change: the error bound. No image's MMD differs by more between the points and the signatures.
    """

    signatures: NDArray[np.float32]
    weights: Floats
    source: NDArray[np.int32]
    of: int
    max_mmd_change: float


@dataclass(frozen=True, slots=True)
class Gathered:
    """The result of Gathering.

    coreset: at most as many points as asked for. Its source is an index into hashes.
    hashes: of all images, ascending.
    """

    coreset: Coreset
    self_term: float
    hashes: tuple[str, ...]


class Gathering:
    """Take images one by one, holding one block of points and one per level: log M blocks in all.

    points: how many to keep in the end.
    block: signatures compressed at once, at least four times the points kept of them.
    per_block: points kept of each block, at least `points`.
    Signatures that fit into one block are compressed once, and the result does not depend on the order of the images.
    Otherwise blocks are filled in the order given, which the choice of points depends on. The bound holds in any order.
    """

    def __init__(self, sigma: float, points: int, *, block: int = BLOCK, per_block: int = PER_BLOCK) -> None:
        if points < 1:
            raise BankError(f"points: expected 1 or more, got {points}")
        self._sigma, self._points = sigma, points
        self._per_block = max(points, per_block)
        self._block = max(block, _FAN * self._per_block)
        self._hashes: list[str] = []
        self._open: list[tuple[str, int, NDArray[np.float32]]] = []
        self._held = 0
        self._levels: list[list[Coreset]] = []

    def add(self, sha256: str, signatures: NDArray[np.float32]) -> None:
        """Add an image that was not given before. signatures: (N, d). Raises BankError if one is not finite."""
        if not np.isfinite(signatures).all():
            raise BankError(f"bank: signatures of the image with SHA-256 {sha256} are not finite; run `mdmf verify`")
        if self._open and self._held + len(signatures) > self._block:
            self._put(0, _reduced(self._close(), self._sigma, self._per_block)[0])
        self._open.append((sha256, len(self._hashes), signatures))
        self._hashes.append(sha256)
        self._held += len(signatures)

    def result(self) -> Gathered:
        """Return the points that stand for all images, at least one of which was added."""
        parts = [part for level in reversed(self._levels) for part in level]
        if self._open:
            parts.append(self._close())
        self._levels = []
        coreset, self_term = _reduced(_joined(parts), self._sigma, self._points)
        ascending = sorted(range(len(self._hashes)), key=self._hashes.__getitem__)
        place = np.empty(len(ascending), np.int32)
        place[ascending] = np.arange(len(ascending), dtype=np.int32)
        numbered = replace(coreset, source=place[coreset.source])
        return Gathered(numbered, self_term, tuple(self._hashes[number] for number in ascending))

    def _put(self, level: int, part: Coreset) -> None:
        if level == len(self._levels):
            self._levels.append([])
        waiting = self._levels[level]
        waiting.append(part)
        if sum(len(one.weights) for one in waiting) >= self._block:
            self._levels[level] = []
            self._put(level + 1, _reduced(_joined(waiting), self._sigma, self._per_block)[0])

    def _close(self) -> Coreset:
        """Return the open block with its images ordered by hash, and start a new one."""
        images = sorted(self._open, key=lambda image: image[0])
        self._open, self._held = [], 0
        signatures = np.concatenate([image[2] for image in images]).astype(np.float32, copy=False)
        source = np.repeat(np.array([image[1] for image in images], np.int32), [len(image[2]) for image in images])
        return Coreset(signatures, np.full(len(signatures), 1.0 / len(signatures)), source, len(signatures), 0.0)


def _joined(parts: Sequence[Coreset]) -> Coreset:
    of = sum(part.of for part in parts)
    return Coreset(
        np.concatenate([part.signatures for part in parts]),
        np.concatenate([part.weights * (part.of / of) for part in parts]),
        np.concatenate([part.source for part in parts]),
        of,
        sum(part.max_mmd_change * (part.of / of) for part in parts),
    )


def _reduced(part: Coreset, sigma: float, points: int) -> tuple[Coreset, float]:
    """Compress to at most `points`, and return the result with its self term."""
    self_term = bank_self_term(part.signatures, part.weights, sigma)
    if len(part.weights) <= points:
        return part, self_term
    fitted = compress(MemoryRows(part.signatures, part.weights), sigma, self_term, points=points)
    change = part.max_mmd_change + fitted.mmd
    reduced = Coreset(fitted.signatures, fitted.weights, part.source[fitted.places], part.of, change)
    return reduced, fitted.self_term
