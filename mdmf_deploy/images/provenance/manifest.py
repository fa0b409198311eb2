"""Claims in C2PA manifests: whether the signature and the hashes hold, and what was signed (C2PA specification 2.2).

Whether the signer deserves trust is another question, which nothing here answers: there is no list of trusted signers.
The library that reads manifests runs in a child process, because it is native code and the bytes are a stranger's.
"""

from __future__ import annotations

import importlib.util

import msgspec

from mdmf_deploy.errors import ImageError, install
from mdmf_deploy.images.budget import DECODING
from mdmf_deploy.images.limits import DEFAULT_LIMITS
from mdmf_deploy.images.provenance.claims import Claim, Finding
from mdmf_deploy.images.provenance.metadata import Metadata

MOST_BYTES = 128 * 2**20
"""Bytes of the largest file whose manifest is read. Its hash covers the whole file."""

_MEMORY = 256 * 2**20  # bytes for the library, beyond the file


class Asked(msgspec.Struct, frozen=True):
    """The media type of a file with a manifest."""

    media_type: str


class Answer(msgspec.Struct, frozen=True):
    """The claim of a file's manifest, and the line that says where it stands."""

    claim: Claim
    source: str


def manifest_findings(data: bytes, found: Metadata) -> list[Finding]:
    """Return the claim of the manifest that the walk over the file found.

    Raises nothing but Ended, if the thread's owner ends (mdmf_deploy.images.isolation.owners).
    """
    if found.manifest is None:
        return []
    if importlib.util.find_spec("c2pa") is None:
        return [not_read(install("provenance"))]
    if len(data) > MOST_BYTES:
        return [not_read(f"the file is larger than {MOST_BYTES >> 20} MiB")]
    try:
        answer = _read(data, Asked(found.manifest))
    except ImageError as error:
        return [not_read(_REASONS.get(error.code, "the library that reads it failed"))]
    except (OSError, RuntimeError):
        return [not_read("no process could be started for it")]
    return [Finding(answer.claim, answer.source)]


_REASONS = {"too_slow": "it takes too long", "too_much_memory": "it takes too much memory"}


def not_read(why: str) -> Finding:
    """Return that there is a manifest of which nothing is known."""
    return Finding("none", f"C2PA manifest not read; {why}")


def _read(data: bytes, asked: Asked) -> Answer:
    # Imported late, because files without a manifest need no process.
    from mdmf_deploy.images.isolation.conversation import Allowance, conversation

    allowance = Allowance(len(data) + _MEMORY, DEFAULT_LIMITS.max_seconds)
    with (
        DECODING.held(2 * len(data), DEFAULT_LIMITS.max_memory),
        conversation("manifest", data, asked, allowance, "C2PA manifest") as child,
    ):
        return child.receive(Answer)
