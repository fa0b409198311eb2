"""All claims in the metadata of one file."""

from __future__ import annotations

from mdmf_deploy.images.provenance.claims import Finding
from mdmf_deploy.images.provenance.manifest import manifest_findings, not_read
from mdmf_deploy.images.provenance.metadata import Metadata, metadata
from mdmf_deploy.images.provenance.texts import comment_findings, exif_findings, iptc_findings, png_findings
from mdmf_deploy.images.provenance.xmp import remote_manifest, xmp_findings


def findings(data: bytes) -> list[Finding]:
    """Return the signed claim first, then those that anyone can write. Raises like manifest_findings."""
    try:
        found = metadata(data)
        unsigned = unsigned_findings(found)
    except Exception:  # whatever hostile metadata do, they must not cost the row its score
        return []
    return [*manifest_findings(data, found), *unsigned]


def unsigned_findings(found: Metadata) -> list[Finding]:
    """Return the claims of everything but a C2PA manifest."""
    claims: list[Finding] = []
    for packet in found.xmp:
        claims += xmp_findings(packet)
    for keyword, text in found.texts:
        claims += png_findings(keyword, text)
    for block in found.exif:
        claims += exif_findings(block)
    for block in found.iptc:
        claims += iptc_findings(block)
    for comment in found.comments:
        claims += comment_findings(comment)
    if found.manifest is None and any(remote_manifest(packet) for packet in found.xmp):
        claims.append(not_read("it is stored elsewhere, and nothing is fetched"))
    return claims
