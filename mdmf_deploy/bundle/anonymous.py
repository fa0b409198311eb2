"""Banks and calibrations that do not say which photographs they were made of."""

from __future__ import annotations

import dataclasses
import hmac
import os
from typing import TYPE_CHECKING

import msgspec

from mdmf_deploy.bundle.documents import PSEUDONYM

if TYPE_CHECKING:
    from mdmf_deploy.bundle.bank import Bank
    from mdmf_deploy.bundle.bundle import Bundle
    from mdmf_deploy.bundle.calibration import Calibration


class Pseudonyms:
    """Stand-ins for hashes: HMAC-SHA256 under a random key that is in no file. Nobody can make them again."""

    def __init__(self) -> None:
        self._key = os.urandom(32)

    def of(self, sha256: str) -> str:
        """Return what stands for a hash. A hash that was replaced before stays."""
        if sha256.startswith(PSEUDONYM):
            return sha256
        return PSEUDONYM + hmac.digest(self._key, sha256.encode(), "sha256").hex()


def anonymous_bank(bank: Bank) -> Bank:
    """Return the same bank with numbers for the names of its images, and pseudonyms for their hashes."""
    from mdmf_deploy.bundle.bank import BankSource

    pseudonyms = Pseudonyms()
    sources = (BankSource(str(n), pseudonyms.of(source.sha256)) for n, source in enumerate(bank.sources, 1))
    return dataclasses.replace(bank, sources=tuple(sources))


def anonymous_calibration(calibration: Calibration) -> Calibration:
    """Return the same calibration with pseudonyms for the hashes of its images and videos."""
    pseudonyms = Pseudonyms()
    videos = calibration.videos
    if videos is not None:
        videos = msgspec.structs.replace(videos, video_sha256=tuple(map(pseudonyms.of, videos.video_sha256)))
    groups = tuple(
        msgspec.structs.replace(group, image_sha256=tuple(map(pseudonyms.of, group.image_sha256)))
        for group in calibration.groups
    )
    return msgspec.structs.replace(calibration, groups=groups, videos=videos)


def cannot_be_told(bundle: Bundle, *, calibration: bool) -> str | None:
    """Return a line if photographs that shaped this bundle cannot be recognised, or None.

    calibration: whether those of the calibration matter, too, beside those of the bank.
    """
    parts = ["bank"] * bundle.bank.anonymous
    if calibration and bundle.calibration is not None and bundle.calibration.anonymous:
        parts.append("calibration")
    if not parts:
        return None
    return (
        f"warning: the bundle's {' and '.join(parts)} {'are' if len(parts) > 1 else 'is'} anonymous, so photographs "
        "that are in it cannot be recognised and left out; give others"
    )
