"""The table of a calibration's size groups, for `mdmf calibrate` and `mdmf inspect`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mdmf_deploy.bundle.calibration import Calibration, Group


def group_facts(calibration: Calibration) -> list[dict[str, Any]]:
    """Return each size group's range, number of images and thresholds, as --json prints them.

    interval: holds the threshold's false positive rate with 95% confidence.
    images_missing: how many more images the group needs before any can be called generated at this rate.
    """
    return [
        {
            "size_group": group.name,
            "above_megapixels": group.above,
            "up_to_megapixels": group.up_to,
            "images": len(group.scores),
            "thresholds": _thresholds(group),
        }
        for group in calibration.groups
    ]


def video_facts(calibration: Calibration) -> dict[str, Any] | None:
    """Return the same facts of the group of videos, and the frames that it holds for, or None if there is none."""
    videos = calibration.videos
    if videos is None:
        return None
    return {
        "size_group": "videos",
        "frames": videos.frames,
        "images": len(videos.scores),
        "thresholds": _thresholds(videos.group),
        "least_evidence": videos.least_evidence,
        "review": videos.review,
        "measured_on": {"runtime": videos.measured_on.runtime, "precision": videos.measured_on.precision},
    }


def _thresholds(group: Group) -> list[dict[str, Any]]:
    from mdmf_deploy.bundle.conformal import fpr_interval, images_needed

    return [
        {
            "fpr": entry.fpr,
            "threshold": entry.score,
            "interval": fpr_interval(len(group.scores), entry.fpr),
            "images_missing": max(0, images_needed(entry.fpr) - len(group.scores)),
        }
        for entry in group.thresholds
    ]


def group_table(facts: list[dict[str, Any]]) -> list[str]:
    """Return the lines of a table of group_facts."""
    width = max(len(group["size_group"]) for group in facts)
    lines = [f"{'size':<{width}}  {'images':>6}  {'fpr':>6}  {'threshold':>9}  95% interval of the fpr"]
    for group in facts:
        for entry in group["thresholds"]:
            low, high = entry["interval"]
            what = "videos" if "frames" in group else "images"
            threshold, note = "none", f"uncertain; needs {entry['images_missing']} more {what}"
            if entry["threshold"] is not None:
                threshold, note = f"{entry['threshold']:.6f}", f"{low:.5f} to {high:.5f}"
            lines.append(
                f"{group['size_group']:<{width}}  {group['images']:>6}  {entry['fpr']:>6g}  {threshold:>9}  {note}"
            )
    return lines
