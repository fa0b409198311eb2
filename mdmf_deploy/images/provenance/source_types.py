"""IPTC's vocabulary of digital source types: how a picture came to be, as XMP and C2PA manifests say it."""

from __future__ import annotations

from mdmf_deploy.images.provenance.claims import Claim

SOURCE_TYPES: dict[str, Claim] = {
    # Made or changed by an algorithm that had to invent what the picture shows
    "trainedAlgorithmicMedia": "claims_ai",
    "compositeWithTrainedAlgorithmicMedia": "claims_ai",
    "compositeSynthetic": "claims_ai",
    "trainedAlgorithmicData": "claims_ai",
    # Not trained: made by a formula. No capture either, and the line names the type.
    "algorithmicMedia": "claims_ai",
    # Sampled from real life, or from a medium
    "digitalCapture": "claims_capture",
    "computationalCapture": "claims_capture",
    "negativeFilm": "claims_capture",
    "positiveFilm": "claims_capture",
    "print": "claims_capture",
    # Changed without generative AI
    "humanEdits": "claims_edited",
    "minorHumanEdits": "claims_edited",
    "algorithmicallyEnhanced": "claims_edited",
    "composite": "claims_edited",
    "compositeCapture": "claims_edited",
    # Neither AI, nor a capture, nor an edit
    "digitalArt": "none",
    "digitalCreation": "none",
    "dataDrivenMedia": "none",
    "screenCapture": "none",
    "softwareImage": "none",
    "virtualRecording": "none",
}
"""The last part of a term's URI -> its claim (https://cv.iptc.org/newscodes/digitalsourcetype, version of 2024-10-23).

trainedAlgorithmicData is C2PA's own (C2PA specification 2.2, section 18.16.4).
"""


def source_type(value: str) -> str | None:
    """Return the name in SOURCE_TYPES for a URI, a QCode or a bare term, or None for anything else.

    http://cv.iptc.org/newscodes/digitalsourcetype/digitalCapture -> digitalCapture
    """
    name = value.strip().rstrip("/").rpartition("/")[2].rpartition(":")[2]
    return name if name in SOURCE_TYPES else None
