"""Which part of a data set an image belongs to, decided by its bytes alone."""

from __future__ import annotations

from typing import Literal

from mdmf_deploy.recipe import Split

Part = Literal["train", "validation", "test"]


def part_of(sha256: str, split: Split, generator: str | None = None) -> Part:
    """The part of an image with this SHA-256 (hex); a held-out generator's images are all "test".

    Copies of a file can never end up in two parts, on any machine, in any order.
    """
    if generator is not None and generator in split.held_out:
        return "test"
    # The first 52 bits, as a number in [0, 1): exact in a float64.
    position = int(sha256[:13], 16) / 16**13
    if position < split.train:
        return "train"
    return "validation" if position < split.train + split.validation else "test"
