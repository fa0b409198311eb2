"""`mdmf inspect`: the contents of a bundle."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mdmf_deploy.bundle import DEFAULT_BUNDLE
from mdmf_deploy.cli.console import print_json, print_lines
from mdmf_deploy.cli.layout import joined, wrapped
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
        print_lines(_lines(facts))


def describe(bundle: Bundle) -> dict[str, Any]:
    """Return what `mdmf inspect --json` prints: a summary, the manifest, its ids, and facts of bank and calibration."""
    import msgspec

    from mdmf_deploy.cli.size_groups import group_facts, video_facts

    bank, calibration = bundle.bank, bundle.calibration
    facts: dict[str, Any] = {"path": str(bundle.path), "bundle_id": bundle.bundle_id}
    facts["calibration_id"] = bundle.calibration_id
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
        "videos": video_facts(calibration),
        "least_evidence": calibration.least_evidence,
        "review": calibration.review,
        "measured_on": msgspec.to_builtins(calibration.measured_on),
        "holds_for": msgspec.to_builtins(calibration.holds_for),
    }
    return {"summary": _summary(facts)} | facts


def _summary(facts: dict[str, Any]) -> list[str]:
    """Return what the bundle can do, in a few sentences."""
    model, preprocessing, calibration = (facts[name] for name in ("model", "preprocessing", "calibration"))
    crops = "the central crop" if preprocessing["crops"] == 1 else f"up to {preprocessing['crops']} crops"
    passed = [record["runtime"] for record in facts["verification"] if record["passed"]]
    failed = [record["runtime"] for record in facts["verification"] if not record["passed"]]
    sentences = [
        f"{facts['name']} scores an image by {crops} of {preprocessing['crop']} pixels, "
        f"with {model['backbone']} in {model['precision']}.",
        _calibrated(calibration),
        f"It is verified for {joined(passed)}." if passed else "It is verified for no runtime; run `mdmf verify`.",
    ]
    return sentences + ([f"It failed verification on {joined(failed)}."] if failed else [])


def _calibrated(calibration: dict[str, Any] | None) -> str:
    if calibration is None:
        return "It has no calibration, so it gives scores without verdicts; run `mdmf calibrate`."
    groups, videos = calibration["groups"], calibration["videos"]
    also = f"{videos['images']} videos of {videos['frames']} frames each" if videos else ""
    if also and not calibration["images"]:
        return f"It is calibrated on {also} alone, so images are uncalibrated."
    deciding = [(group["size_group"], group["thresholds"][0]) for group in groups if group["thresholds"]]
    few = [name for name, entry in deciding if entry["threshold"] is None]
    rate = f"at a false positive rate of {100 * deciding[0][1]['fpr']:.3g}% " if deciding else ""
    text = (
        f"It is calibrated {rate}on {calibration['images']} photographs in {len(groups)} size "
        f"group{'s' * (len(groups) != 1)}{' and on ' * bool(also)}{also}"
    )
    return f"{text}; too few for {joined(few)}, so images of that size are uncertain." if few else f"{text}."


def _lines(facts: dict[str, Any]) -> list[str]:
    import msgspec

    from mdmf_deploy.bundle.manifest import WeightsSource
    from mdmf_deploy.model.known_weights import described

    model, preprocessing, provenance, bank = (facts[k] for k in ("model", "preprocessing", "provenance", "bank"))
    blocks = f" (blocks {', '.join(map(str, model['blocks']))})" if model.get("blocks") else ""
    rows = [
        ("bundle", facts["path"]),
        ("name", f"{facts['name']}, schema {facts['schema_version']}"),
        ("bundle id", facts["bundle_id"]),
        (
            "model",
            f"{model['backbone']}{blocks}, {model['precision']}, {model['pool']} x {model['pool']} patches, signatures "
            f"of width {model['signature']}, bandwidth {model['sigma']:g}, opset {model['opset']}",
        ),
        (
            "preprocessing",
            f"at most {preprocessing['crops']} crop{'s' * (preprocessing['crops'] != 1)} an image, "
            f"{preprocessing['crop']} pixels a side, mean {preprocessing['mean']}, std {preprocessing['std']}",
        ),
        (
            "bank",
            f"{bank['signatures']} signatures of {bank['images']} images, "
            f"compression {bank['compression'].get('method', 'none')}",
        ),
        (
            "provenance",
            f"recipe {provenance['recipe']}, checkpoint {provenance['checkpoint_sha256'][:12]}, {provenance['tool']}, "
            f"{provenance['decoder']}",
        ),
        ("", ", ".join(f"{name} {version}" for name, version in provenance["libraries"].items())),
    ]
    lines = [*wrapped(" ".join(facts["summary"])), ""]
    for name, text in rows:
        lines += wrapped(text, f"{name:<14}")
    if provenance["smoke"]:
        lines += wrapped("of a smoke run (mdmf train --smoke), so its verdicts are worth nothing", " " * 14)
    if backbone := provenance["backbone"]:
        lines += wrapped(described(msgspec.convert(backbone, WeightsSource)))
    lines += ["", *_calibration_lines(facts["calibration"], facts["calibration_id"]), "", "verification"]
    for record in facts["verification"]:
        verdict = "passed" if record["passed"] else f"failed ({'; '.join(record['reasons'])})"
        lines += wrapped(
            f"{record['runtime']} {record['precision']} against {record['reference']}: {verdict}; "
            f"{record['images']} images, signatures off by at most {record['max_signature_error']:.2g}, scores by "
            f"{record['max_score_change']:.2g} spreads, {record['flipped_verdicts']:.2%} of the verdicts flipped",
            "  ",
            indent=4,
        )
    if not facts["verification"]:
        lines.append("  none; run `mdmf verify`")
    for refused in facts["refused"]:
        lines += wrapped(f"{refused['precision']} refused: {refused['reason']}", "  ", indent=4)
    lines += ["", "files"]
    for name, entry in facts["files"].items():
        lines += [f"  {name:<20} {entry['size']:>15,} bytes, sha256", f"    {entry['sha256']}"]
    return lines


def _calibration_lines(calibration: dict[str, Any] | None, calibration_id: str | None) -> list[str]:
    from mdmf_deploy.cli.size_groups import group_table

    if calibration is None:
        return ["calibration   none, so verdicts are 'uncalibrated'; run `mdmf calibrate`"]
    held = ", ".join(f"{pair['runtime']} {pair['precision']}" for pair in calibration["holds_for"])
    videos = calibration["videos"]
    also = f" and {videos['images']} real videos of {videos['frames']} frames" if videos else ""
    text = f"{calibration['images']} real images{also}; holds for {held or 'nothing: run `mdmf verify`'}"
    rule = (
        f"uncertain up to p = {calibration['review']:g}, or with texture in fewer than "
        f"{calibration['least_evidence']:.0%} of the patches"
    )
    table = [f"  {line}" for line in group_table(calibration["groups"] + [videos] * bool(videos))]
    return [*wrapped(text, "calibration   "), f"  id {calibration_id}", *table, *wrapped(rule, "  ")]
