"""Claims in XMP packets (ISO 16684-1), found by bounded patterns. No XML parser sees them, so no entity is expanded."""

from __future__ import annotations

import re

from mdmf_deploy.images.provenance.claims import Finding
from mdmf_deploy.images.provenance.generators import credited, generator
from mdmf_deploy.images.provenance.source_types import SOURCE_TYPES, source_type

_MOST_VALUES = 8


def _property(name: str) -> re.Pattern[bytes]:
    """Return a pattern for a property as an attribute, an element or a resource.

    Any prefix is accepted, because a file may bind another one. All repetitions are bounded and give nothing back, so
    that a search takes time linear in the packet.
    """
    return re.compile(
        rb":%b\s{0,20}+(?:=\s{0,20}+[\"']([^\"'<]{1,300}+)"
        rb"|rdf:resource\s{0,20}+=\s{0,20}+[\"']([^\"'<]{1,300}+)"
        rb"|>\s{0,200}+([^<]{1,300}+)<)" % name.encode()
    )


_SOURCE_TYPE = _property("DigitalSourceType")  # IPTC Photo Metadata Standard 2023.1, "Digital Source Type"
_PROGRAMS = {
    "CreatorTool": (_property("CreatorTool"), generator),
    "Software": (_property("Software"), generator),
    "Credit": (_property("Credit"), credited),
}
_REMOTE = re.compile(rb":provenance\s{0,20}+(?:=\s{0,20}+[\"']|>\s{0,200}+)https?://")


def xmp_findings(packet: bytes) -> list[Finding]:
    """Return the claims of a packet: its digital source types, and the generators that it names."""
    found: list[Finding] = []
    for value in _values(_SOURCE_TYPE, packet):
        name = source_type(value)
        if name is not None:
            found.append(Finding(SOURCE_TYPES[name], f"XMP: {name}"))
    for place, (pattern, named) in _PROGRAMS.items():
        for value in _values(pattern, packet):
            program = named(value)
            if program is not None:
                found.append(Finding("claims_ai", f"XMP: {place} ({program})"))
    return found


def remote_manifest(packet: bytes) -> bool:
    """Return whether a packet says that the C2PA manifest lies at a URL (C2PA specification 2.2, section 11.4)."""
    return _REMOTE.search(packet) is not None


def _values(pattern: re.Pattern[bytes], packet: bytes) -> list[str]:
    matches = (match for match, _ in zip(pattern.finditer(packet), range(_MOST_VALUES), strict=False))
    return [next(group for group in match.groups() if group).decode("utf-8", "replace") for match in matches]
