"""A bank compressed while it is gathered: never whole in memory, and never all of its M^2 pairs.

Signatures fill a block; a full one is compressed, with an exact certificate of its own, and its points wait on a level.
A level that holds a block's worth of points is joined, compressed again and goes one level up: a streaming coreset
(Bentley and Saxe 1980; Har-Peled and Mazumdar 2004).  A union's mean embedding is its parts' by their shares of the
signatures, so certificates add up by the triangle inequality:

    MMD(R, R') <= sum_c n_c / M MMD(R_c, R'_c) + MMD(union of all R'_c, R').
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mdmf_deploy.errors import BankError
from mdmf_deploy.mmd.compress.bank_rows import MemoryRows
from mdmf_deploy.mmd.compress.fit import compress
from mdmf_deploy.mmd.compress.kernel import Floats
from mdmf_deploy.mmd.reference import bank_self_term

BLOCK = 32_768
PER_BLOCK = 2048
# A merge takes at least this many compressed blocks, or their points would be fitted over and over for little.
_FAN = 4


@dataclass(frozen=True, slots=True)
class Part:
    """Points that stand for `of` signatures; no image's MMD differs by more than max_mmd_change between the two.

    signatures: (m, d).  weights: (m,), for a bank of these signatures alone.  source: (m,) number of the image.
    """

    signatures: NDArray[np.float32]
    weights: Floats
    source: NDArray[np.int32]
    of: int
    max_mmd_change: float


@dataclass(frozen=True, slots=True)
class Gathered:
    """part: at most as many points as asked for, its source an index into hashes.  hashes: of all images, ascending."""

    part: Part
    self_term: float
    hashes: tuple[str, ...]


class Gathering:
    """Takes images one by one and holds a few blocks of points: one, and one for each level, log M of them.

    points: how many to end with.  block: signatures compressed at once, at least four times what is kept of them.
    per_block: points kept of each, at least `points`.
    What fits into one block is compressed once, and does not depend on the order of the images; otherwise blocks are
    filled in the order given, and the choice of points, though not what the certificate promises, depends on it.
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
        self._levels: list[list[Part]] = []

    def add(self, sha256: str, signatures: NDArray[np.float32]) -> None:
        """An image not given before.  signatures: (N, d).  Raises BankError if one is not finite."""
        if not np.isfinite(signatures).all():
            raise BankError(f"bank: signatures of the image with SHA-256 {sha256} are not finite; run `mdmf verify`")
        if self._open and self._held + len(signatures) > self._block:
            self._put(0, _reduced(self._close(), self._sigma, self._per_block)[0])
        self._open.append((sha256, len(self._hashes), signatures))
        self._hashes.append(sha256)
        self._held += len(signatures)

    def result(self) -> Gathered:
        """The points chosen from all that was given, at least one image."""
        parts = [part for level in reversed(self._levels) for part in level]
        if self._open:
            parts.append(self._close())
        self._levels = []
        part, self_term = _reduced(_joined(parts), self._sigma, self._points)
        ascending = sorted(range(len(self._hashes)), key=self._hashes.__getitem__)
        place = np.empty(len(ascending), np.int32)
        place[ascending] = np.arange(len(ascending), dtype=np.int32)
        numbered = Part(part.signatures, part.weights, place[part.source], part.of, part.max_mmd_change)
        return Gathered(numbered, self_term, tuple(self._hashes[number] for number in ascending))

    def _put(self, level: int, part: Part) -> None:
        if level == len(self._levels):
            self._levels.append([])
        waiting = self._levels[level]
        waiting.append(part)
        if sum(len(one.weights) for one in waiting) >= self._block:
            self._levels[level] = []
            self._put(level + 1, _reduced(_joined(waiting), self._sigma, self._per_block)[0])

    def _close(self) -> Part:
        """The block as a part, its images by hash."""
        images = sorted(self._open, key=lambda image: image[0])
        self._open, self._held = [], 0
        signatures = np.concatenate([image[2] for image in images]).astype(np.float32, copy=False)
        source = np.repeat(np.array([image[1] for image in images], np.int32), [len(image[2]) for image in images])
        return Part(signatures, np.full(len(signatures), 1.0 / len(signatures)), source, len(signatures), 0.0)


def _joined(parts: Sequence[Part]) -> Part:
    of = sum(part.of for part in parts)
    return Part(
        np.concatenate([part.signatures for part in parts]),
        np.concatenate([part.weights * (part.of / of) for part in parts]),
        np.concatenate([part.source for part in parts]),
        of,
        sum(part.max_mmd_change * (part.of / of) for part in parts),
    )


def _reduced(part: Part, sigma: float, points: int) -> tuple[Part, float]:
    """At most `points` of its points, and their self term."""
    self_term = bank_self_term(part.signatures, part.weights, sigma)
    if len(part.weights) <= points:
        return part, self_term
    fitted = compress(MemoryRows(part.signatures, part.weights), sigma, self_term, points=points)
    change = part.max_mmd_change + fitted.mmd
    reduced = Part(fitted.signatures, fitted.weights, part.source[fitted.places], part.of, change)
    return reduced, fitted.self_term
