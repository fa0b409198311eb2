"""Make formats and sizes alike, so that figures cannot rest on them.

Every image, real or generated, is cut to the same central square, and then coded as a JPEG without metadata, at a
quality drawn from the same range. Nothing is scaled: scales would differ between the classes where sizes do, and
resampling leaves traces that detectors see.

Two things remain. An image that was a JPEG before is now one for the second time. And a square of a large photograph
shows less of the scene than one of a small picture.
"""

from __future__ import annotations

import hashlib
import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from PIL import Image

from mdmf_deploy.errors import ImageError, UsageError
from mdmf_deploy.images.crops import boxes
from mdmf_deploy.images.decode import decode, read
from mdmf_deploy.tasks.evaluate.datasets import KnownImage
from mdmf_deploy.tasks.evaluate.facts import Facts, facts_of

LEAST_SIDE = 224
"""Pixels. A square is never smaller, because the detector's own crops are not."""

QUALITIES = (60, 90)
"""The lowest and the highest quality of the JPEGs. Most photographs on the web were saved at a higher one, so that the
last coding hides much of the first."""

# A square that this share of each generator's images, and of the real ones, may be too small for.
_TOO_SMALL = 0.05
_SHOWN = 3


@dataclass(frozen=True, slots=True)
class Matching:
    """A condition, like conditions.Condition, that makes the files of a data set alike.

    side: of the square, in pixels.
    images: those to judge. Unreadable ones are among them, and the detector gives each a row.
    left_out: those smaller than the square, and videos.
    """

    name: ClassVar[str] = "matched"

    side: int
    images: tuple[KnownImage, ...]
    left_out: tuple[KnownImage, ...]

    @classmethod
    def of(
        cls, images: Sequence[KnownImage], facts: Sequence[Facts | None] | None = None, least: int = LEAST_SIDE
    ) -> Matching:
        """Choose the largest square that fits into 19 in 20 images of every generator, and of the real ones.

        facts: of each image, as facts_of returns them. They are read if left out.
        least: the smallest side of the square.
        Raises UsageError if the real or the generated images are all smaller than that.
        """
        found = facts_of(image.path for image in images) if facts is None else facts
        shorter = {image: _shorter(fact) for image, fact in zip(images, found, strict=True) if fact is not None}
        sides: dict[str | None, list[int]] = {}
        for image, side in shorter.items():
            if side is not None:
                sides.setdefault(image.generator, []).append(side)
        side = max(least, min((sorted(of)[int(_TOO_SMALL * len(of))] for of in sides.values()), default=least))
        fits = {image: length is not None and length >= side for image, length in shorter.items()}
        for label, wanted in (("real", True), ("generated", False)):
            if not any(fit and (image.generator is None) == wanted for image, fit in fits.items()):
                raise UsageError(
                    f"--match: no {label} image has {side} pixels or more on both sides; give larger images, or leave "
                    "out --match"
                )
        kept = tuple(image for image in images if fits.get(image, True))
        return cls(side, kept, tuple(image for image in images if not fits.get(image, True)))

    def source(self, path: Path) -> Path | bytes:
        """Return the JPEG that the detector gets in place of the file, or the file itself if it cannot be decoded.

        The same bytes give the same JPEG, because their hash decides the quality.
        """
        try:
            data = read(path)
            pixels = decode(data).pixels
        except ImageError:
            return path
        [(left, top, right, bottom)] = boxes(pixels.shape[0], pixels.shape[1], self.side)
        buffer = io.BytesIO()
        square = Image.fromarray(pixels[top:bottom, left:right])
        square.save(buffer, "JPEG", quality=_quality(data), subsampling="4:2:0")
        return buffer.getvalue()

    def line(self) -> str:
        """Return what was done to the images, in one line."""
        lowest, highest = QUALITIES
        done = (
            f"{self.name}: the central {self.side} x {self.side} pixels of every image, as a JPEG of quality {lowest} "
            f"to {highest}"
        )
        if not self.left_out:
            return done
        counts = Counter(image.generator or "real" for image in self.left_out).most_common()
        names = ", ".join(f"{name} {count}" for name, count in counts[:_SHOWN])
        more = ", ..." if len(counts) > _SHOWN else ""
        return f"{done}; {len(self.left_out)} smaller ones and videos left out ({names}{more})"


def _shorter(facts: Facts) -> int | None:
    """Return the shorter side, or None of a video."""
    return None if facts.width is None or facts.height is None else min(facts.width, facts.height)


def _quality(data: bytes) -> int:
    """Draw a quality from the range. The bytes decide it, and so neither the order of files nor their class does."""
    lowest, highest = QUALITIES
    return lowest + int.from_bytes(hashlib.sha256(data).digest()[:8]) % (highest - lowest + 1)
