"""`mdmf inspect`: the contents of a bundle."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import typer

from mdmf_deploy.bundle import DEFAULT_BUNDLE
from mdmf_deploy.cli.console import print_json
from mdmf_deploy.cli.options import AsJson, BundleOrDefault

if TYPE_CHECKING:
    from mdmf_deploy.bundle.bundle import Bundle


def inspect(
    bundle: BundleOrDefault = DEFAULT_BUNDLE,
    as_json: AsJson = False,
) -> None:
    """Show what is in a bundle.

    Prints its model, bank, calibration, verification, provenance and files. Every file is checked against its hash
    first. A damaged bundle is an error.

    Example: mdmf inspect starter --json
    """
    from mdmf_deploy.bundle.bundle import Bundle

    facts = describe(Bundle.open(bundle))
    if as_json:
        print_json(facts)
    else:
        typer.echo("\n".join(_lines(facts)))


def describe(bundle: Bundle) -> dict[str, Any]:
    """Return the manifest, its ids, and summaries of the bank and the calibration, as `mdmf inspect --json` prints."""
    import msgspec

    from mdmf_deploy.cli.size_groups import group_facts

    bank, calibration = bundle.bank, bundle.calibration
    facts: dict[str, Any] = {"path": str(bundle.path), "bundle_id": bundle.bundle_id}
    facts |= msgspec.to_builtins(bundle.manifest)
    facts["model"]["sha256"] = bundle.manifest.model_sha256
    facts["bank"] = {
        "signatures": len(bank.signatures),
        "images": len(bank.sources),
        "self_term": bank.self_term,
        "compression": dict(bank.compression),
    }
    facts["calibration"] = calibration and {
        "images": len(calibration.scores),
        "groups": group_facts(calibration),
        "least_evidence": calibration.least_evidence,
        "review": calibration.review,
        "measured_on": msgspec.to_builtins(calibration.measured_on),
        "holds_for": msgspec.to_builtins(calibration.holds_for),
    }
    return facts


def _lines(facts: dict[str, Any]) -> list[str]:
    model, preprocessing, provenance, bank = (facts[k] for k in ("model", "preprocessing", "provenance", "bank"))
    blocks = f" (blocks {', '.join(map(str, model['blocks']))})" if model.get("blocks") else ""
    lines = [
        f"{facts['path']}  (name {facts['name']}, schema {facts['schema_version']})",
        f"bundle id     {facts['bundle_id']}",
        f"model         {model['backbone']}{blocks}, {model['precision']}, {model['pool']} x {model['pool']} patches, "
        f"signatures of width {model['signature']}, bandwidth {model['sigma']:g}, opset {model['opset']}",
        f"preprocessing at most {preprocessing['crops']} crop{'s' * (preprocessing['crops'] != 1)} an image, "
        f"{preprocessing['crop']} pixels a side, mean {preprocessing['mean']}, std {preprocessing['std']}",
        f"bank          {bank['signatures']} signatures of {bank['images']} images, "
        f"compression {bank['compression'].get('method', 'none')}",
        *_calibration_lines(facts["calibration"]),
        f"provenance    recipe {provenance['recipe']}, checkpoint {provenance['checkpoint_sha256'][:12]}, "
        f"{provenance['tool']}, {provenance['decoder']}",
        f"              {', '.join(f'{name} {version}' for name, version in provenance['libraries'].items())}",
    ]
    if backbone := provenance["backbone"]:
        parts = (backbone["name"], backbone.get("version"), backbone.get("member"))
        lines.append(f"backbone from {' '.join(filter(None, parts))}, sha256 {backbone['sha256'][:12]}")
    lines.append("verification")
    for record in facts["verification"]:
        verdict = "passed" if record["passed"] else f"failed ({'; '.join(record['reasons'])})"
        lines.append(
            f"  {record['runtime']} {record['precision']} against {record['reference']}: {verdict}; "
            f"{record['images']} images, signatures off by at most {record['max_signature_error']:.2g}, scores by "
            f"{record['max_score_change']:.2g} spreads, {record['flipped_verdicts']:.2%} of the verdicts flipped"
        )
    if not facts["verification"]:
        lines.append("  none; run `mdmf verify`")
    lines += [f"  {refused['precision']} refused: {refused['reason']}" for refused in facts["refused"]]
    lines.append("files")
    for name, entry in facts["files"].items():
        lines.append(f"  {name:<20} {entry['size']:>12,} bytes  sha256 {entry['sha256']}")
    return lines


def _calibration_lines(calibration: dict[str, Any] | None) -> list[str]:
    from mdmf_deploy.cli.size_groups import group_table

    if calibration is None:
        return ["calibration   none, so verdicts are 'uncalibrated'; run `mdmf calibrate`"]
    held = ", ".join(f"{pair['runtime']} {pair['precision']}" for pair in calibration["holds_for"])
    lines = [f"calibration   {calibration['images']} real images; holds for {held or 'nothing: run `mdmf verify`'}"]
    lines += [f"              {line}" for line in group_table(calibration["groups"])]
    return [
        *lines,
        f"              uncertain up to p = {calibration['review']:g}, or with texture in fewer than "
        f"{calibration['least_evidence']:.0%} of the patches",
    ]
