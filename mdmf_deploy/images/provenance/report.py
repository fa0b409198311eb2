"""The claim in a C2PA library's report: what was signed, and whether it holds (C2PA specification 2.2)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mdmf_deploy.images.provenance.claims import Finding, printable, quoted
from mdmf_deploy.images.provenance.generators import generator
from mdmf_deploy.images.provenance.source_types import SOURCE_TYPES, source_type

_CREDENTIAL_CODES = {"signingCredential.expired", "signingCredential.untrusted"}
"""Failures that say nothing about the bytes. A certificate expires, and a row must not change with the date."""

# Actions that leave the picture as it was (C2PA specification 2.2, section 18.16.2)
_NO_EDITS = {
    "c2pa.converted",
    "c2pa.created",
    "c2pa.edited.metadata",
    "c2pa.opened",
    "c2pa.published",
    "c2pa.redacted",
    "c2pa.repackaged",
    "c2pa.transcoded",
    "c2pa.unknown",
    "c2pa.watermarked",
    "c2pa.watermarked.bound",
    "c2pa.watermarked.unbound",
}
_MOST_MANIFESTS = 100
_MOST_CODES = 3


def judged(report: dict[str, Any]) -> Finding:
    """Return the claim of a report, as the library writes it in JSON."""
    broken = _broken(report)
    if broken is not None:
        return Finding("invalid", f"C2PA: {broken}")
    finding = _claimed(report)
    signature = report["manifests"][report["active_manifest"]].get("signature_info") or {}
    signer = signature.get("issuer") or signature.get("common_name")
    signed = f"signed by {quoted(str(signer))}" if signer else "signed"
    return Finding(finding.claim, f"C2PA: {finding.source}, {signed}, signature and hashes valid, signer not checked")


def _broken(report: dict[str, Any]) -> str | None:
    """Return the codes of the failures if the signature or a hash does not hold, else None."""
    results = report.get("validation_results") or {}
    active = results.get("activeManifest") or {}
    failures = [status["code"] for status in active.get("failure") or ()]
    for delta in results.get("ingredientDeltas") or ():
        failures += [status["code"] for status in (delta.get("validationDeltas") or {}).get("failure") or ()]
    codes = [code for code in dict.fromkeys(map(str, failures)) if code not in _CREDENTIAL_CODES]
    if report.get("validation_state") in ("Valid", "Trusted"):
        return None
    validated = any(status["code"] == "claimSignature.validated" for status in active.get("success") or ())
    if not codes and validated:
        return None
    return ", ".join(printable(code, 60) for code in codes[:_MOST_CODES]) or "signature not validated"


def _claimed(report: dict[str, Any]) -> Finding:
    """Return the claim of the active manifest and the pictures that went into this one, without its signer."""
    types: list[str] = []
    edits: list[str] = []
    program = None
    for manifest, whole in _history(report):
        for action in _actions(manifest):
            kind = str(action.get("action"))
            agent = action.get("softwareAgent")
            if kind == "c2pa.created" and program is None:
                program = generator(str(agent.get("name") if isinstance(agent, dict) else agent))
            if kind not in _NO_EDITS and whole:
                edits.append(kind)
        named = (source_type(value) for value in _source_types(manifest))
        types += [name for name in named if name and (whole or SOURCE_TYPES[name] == "claims_ai")]
    by_claim = {claim: name for name in reversed(types) for claim in [SOURCE_TYPES[name]]}
    if "claims_ai" in by_claim:
        return Finding("claims_ai", by_claim["claims_ai"])
    if program is not None:
        return Finding("claims_ai", f"made by {program}")
    if "claims_edited" in by_claim:
        return Finding("claims_edited", by_claim["claims_edited"])
    if edits and ("claims_capture" in by_claim or not types):
        capture = f"{by_claim['claims_capture']}, " if "claims_capture" in by_claim else ""
        return Finding("claims_edited", f"{capture}{quoted(edits[0])}")
    if "claims_capture" in by_claim:
        return Finding("claims_capture", by_claim["claims_capture"])
    return Finding("none", by_claim.get("none", "no source type"))


def _history(report: dict[str, Any]) -> Iterator[tuple[dict[str, Any], bool]]:
    """Yield the active manifest and those of its ingredients, and whether the picture is a version of each.

    It is a version of its parents, and its components are parts of it. Pictures that a model was only given as input
    are left out.
    """
    manifests = report["manifests"]
    waiting = [(report["active_manifest"], True)]
    seen: set[str] = set()
    while waiting and len(seen) < _MOST_MANIFESTS:
        label, whole = waiting.pop(0)
        if label in seen or label not in manifests:
            continue
        seen.add(label)
        yield manifests[label], whole
        for ingredient in manifests[label].get("ingredients") or ():
            if ingredient.get("relationship") in ("parentOf", "componentOf"):
                waiting.append((ingredient.get("active_manifest"), whole and ingredient["relationship"] == "parentOf"))


def _actions(manifest: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for assertion in manifest.get("assertions") or ():
        if str(assertion.get("label")).startswith("c2pa.actions"):
            yield from (assertion.get("data") or {}).get("actions") or ()


def _source_types(manifest: dict[str, Any]) -> Iterator[str]:
    """Yield the source types of the actions and of the signed IPTC metadata."""
    for action in _actions(manifest):
        yield str(action.get("digitalSourceType") or "")
    for assertion in manifest.get("assertions") or ():
        data = assertion.get("data")
        if isinstance(data, dict):
            yield str(data.get("Iptc4xmpExt:DigitalSourceType") or "")
