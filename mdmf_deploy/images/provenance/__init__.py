"""What a file's own metadata claims about where the picture comes from (docs/provenance.md). Never touches the score.

`metadata` finds the parts of a file that may hold claims. `xmp`, `texts` and `manifest` read one kind of part each, and
`claims` decides when they disagree. Nothing is executed or fetched, and nothing but one line of text is kept.
"""

from __future__ import annotations

from mdmf_deploy.images.provenance.claims import Claim, Provenance, merged

__all__ = ["Claim", "Provenance", "read_provenance"]


def read_provenance(data: bytes) -> Provenance:
    """Return what the metadata in the bytes of a file claim. Raises nothing, whatever the bytes are.

    The walk over the file visits a bounded number of its parts and passes over the pixels. Only a C2PA manifest makes
    it read the whole file, because the manifest's hash covers that.
    """
    # Imported late, because rows need the names of the claims alone, and these modules compile many patterns.
    from mdmf_deploy.images.provenance.findings import findings

    return merged(findings(data))
