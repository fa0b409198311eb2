"""What a file's own metadata claims about where the picture comes from. It never touches the score."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Claim = Literal["none", "claims_ai", "claims_capture", "claims_edited", "invalid"]
"""Every value of a row's `provenance`. They are stable."""


@dataclass(frozen=True, slots=True)
class Provenance:
    """claim: what the metadata say.  source: where they say it, and who signed it, in one line of printable text."""

    claim: Claim = "none"
    source: str | None = None


def read_provenance(data: bytes) -> Provenance:
    """Return what the metadata in the bytes of a file claim."""
    return Provenance()
