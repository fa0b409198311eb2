"""Leave out what may not be judged: images that shaped the bundle, copies, and other parts of a split."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import msgspec

from mdmf_deploy.bundle.recipe import Part, Split, part_of, source_of
from mdmf_deploy.errors import UsageError
from mdmf_deploy.images.inputs import uri
from mdmf_deploy.tasks.evaluate.datasets import KnownImage

if TYPE_CHECKING:
    from mdmf_deploy.bundle.bundle import Bundle
    from mdmf_deploy.bundle.calibration import Calibration


class Audit(msgspec.Struct, frozen=True, kw_only=True):
    """The fate of the data set's images before any is scored.

    judged: how many go to the detector, unreadable files included.
    in_bank, in_calibration, copies: images left out, as row URIs.
    other_parts: how many images the split left out.
    left_out: generators that have no image left, in order.
    """

    judged: int
    in_bank: tuple[str, ...]
    in_calibration: tuple[str, ...]
    copies: tuple[str, ...]
    other_parts: int
    left_out: tuple[str, ...]


def audit(
    images: Iterable[KnownImage], bundle: Bundle, split: Split | None = None, part: Part = "test"
) -> tuple[list[KnownImage], Audit]:
    """Return the images that may be judged, and an account of the others.

    split: keep only the images that it puts into `part`.
    A real image that lies beside several generators is kept beside each of them.
    Raises UsageError if the same bytes are called both real and generated.
    """
    banked, calibration = bundle.bank.hashes, bundle.calibration
    calibrated = _calibrated(calibration) if calibration else frozenset()
    seen: dict[str, KnownImage] = {}
    places: set[tuple[str, str | None]] = set()
    generators: dict[str, None] = {}
    kept: list[KnownImage] = []
    dropped: dict[str, list[str]] = {"in_bank": [], "in_calibration": [], "copies": []}
    other_parts = 0
    for image in images:
        sha256 = image.sha256
        if image.generator is not None:
            generators[image.generator] = None
        if sha256 is None:
            # The detector gives an unreadable file a row of its own.
            kept.append(image)
            continue
        first = seen.setdefault(sha256, image)
        if (first.generator is None) != (image.generator is None):
            raise UsageError(f"{uri(first.path)} and {uri(image.path)} are the same bytes; is it real or generated?")
        if (sha256, image.compared_with) in places:
            dropped["copies"].append(uri(image.path))
            continue
        places.add((sha256, image.compared_with))
        if split is not None and part_of(sha256, split, source_of(image.path, image.generator)) != part:
            other_parts += 1
        elif sha256 in banked:
            dropped["in_bank"].append(uri(image.path))
        elif sha256 in calibrated:
            dropped["in_calibration"].append(uri(image.path))
        else:
            kept.append(image)
    lists = {name: tuple(uris) for name, uris in dropped.items()}
    remaining = {image.generator for image in kept}
    left_out = tuple(name for name in generators if name not in remaining)
    return kept, Audit(judged=len(kept), other_parts=other_parts, left_out=left_out, **lists)


def refuse_overlap(audited: Audit) -> None:
    """Raise UsageError if images of the data set shaped the bundle."""
    banked, calibrated = len(audited.in_bank), len(audited.in_calibration)
    if banked or calibrated:
        first = (*audited.in_bank, *audited.in_calibration)[0]
        raise UsageError(
            f"{banked + calibrated} images of the data set made this bundle ({banked} are in its bank, {calibrated} in "
            f"its calibration), such as {first}; judge others, or add --allow-overlap, which leaves these out"
        )


def _calibrated(calibration: Calibration) -> frozenset[str]:
    videos = () if calibration.videos is None else calibration.videos.video_sha256
    return frozenset((*calibration.image_sha256, *videos))
