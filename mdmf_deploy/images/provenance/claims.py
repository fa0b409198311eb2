"""A claim of where a picture comes from, and which claim counts when several disagree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Claim = Literal["none", "claims_ai", "claims_capture", "claims_edited", "invalid"]
"""Every value of a row's `provenance`. They are stable."""

PRECEDENCE: tuple[Claim, ...] = ("invalid", "claims_ai", "claims_edited", "claims_capture", "none")
"""The first of these that a file holds is its claim.

A broken C2PA manifest comes first, because the file is no longer the one that was signed. AI comes next, whoever else
claims a capture: a valid signature covers the rest of the file, so that whoever signed the capture also signed the
text that says AI. A capture that was edited is no longer the capture.
"""

MOST_CHARACTERS = 200
_MOST_NAME = 60


@dataclass(frozen=True, slots=True)
class Provenance:
    """claim: what the metadata say.  source: where they say it, and who signed it, in one line of printable text."""

    claim: Claim = "none"
    source: str | None = None


@dataclass(frozen=True, slots=True)
class Finding:
    """One claim and the place where it stands."""

    claim: Claim
    source: str


def merged(findings: Sequence[Finding]) -> Provenance:
    """Return the claim that counts and all places, the one that counts first.

    Of equal claims, those that come first in `findings` are named first.
    """
    if not findings:
        return Provenance()
    ordered = sorted(findings, key=lambda finding: PRECEDENCE.index(finding.claim))
    sources = dict.fromkeys(printable(finding.source, MOST_CHARACTERS) for finding in ordered)
    return Provenance(ordered[0].claim, printable("; ".join(sources), MOST_CHARACTERS))


def printable(text: str, most: int) -> str:
    """Return a text in one line of at most `most` characters, without control, invisible or bidirectional ones."""
    kept = (c if c.isprintable() else " " if c.isspace() else "" for c in text[: 8 * most])
    shown = " ".join("".join(kept).split())
    return shown if len(shown) <= most else shown[: most - 3] + "..."


def quoted(name: str) -> str:
    """Return a name that a stranger chose, so that it cannot pass for a part of the line around it."""
    return f'"{printable(name, _MOST_NAME).translate({ord(mark): None for mark in QUOTES})}"'


QUOTES = '"\u201c\u201d\u201e\u201f\u2033\u2036\u02ba\uff02\u301d\u301e\u301f'
