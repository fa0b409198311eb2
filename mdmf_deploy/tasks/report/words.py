"""A row in plain words: its p-value, what its verdict says, and what it does not say (docs/rows.md, docs/report.md)."""

from __future__ import annotations

import math
from typing import NamedTuple

from mdmf_deploy.bundle.groups import VIDEOS
from mdmf_deploy.detection.rows import Row

_MOST_OVERSTATED = 1.1  # "at most 3 in 100" for 0.022 would say too much; "23 in 1,000" does not


class Meaning(NamedTuple):
    """What a verdict says, and what it does not say. Each is one sentence or a few."""

    says: str
    not_says: str


class PValue(NamedTuple):
    """A p-value in words.  headline: for a reader in a hurry.  detail: how it was counted, and when it holds."""

    headline: str
    detail: str


BRIEF: dict[str, str] = {
    "generated": "score above the threshold",
    "uncertain": "no verdict either way",
    "real": "not told apart from real photographs",
    "uncalibrated": "no threshold holds",
    "error": "could not be scored",
}
"""A few words on each verdict, for a summary."""

REASONS: dict[str, Meaning] = {
    "featureless": Meaning(
        "Too little of the image has texture: it is flat, a sky, a wall or a page of text.",
        "The score says nothing here, however high or low it is.",
    ),
    "no_calibration_for_this_size": Meaning(
        "The bundle was calibrated with too few inputs of this size to judge this one.",
        "Nothing follows about the image, in either direction.",
    ),
    "borderline": Meaning(
        "The score is high, but not high enough for the calibrated rate of false alarms.",
        "It is neither called generated nor passed as real. Look at other evidence.",
    ),
    "unstable": Meaning(
        "The verdict changes when the image is re-encoded, shrunk or shifted a little.",
        "It is neither called generated nor passed as real. Look at other evidence.",
    ),
    "expected_by_chance": Meaning(
        "The score is above the threshold, but among so many images too many real ones are expected to be.",
        "It is neither called generated nor passed as real. Look at other evidence.",
    ),
    "not_verified": Meaning(
        "The runtime that scored the image was not verified for this bundle. Run `mdmf verify`.",
        "The score has no threshold, so it is no verdict.",
    ),
    "no_thresholds": Meaning(
        "The bundle has no calibration. Run `mdmf calibrate` on photographs of your own.",
        "The score has no threshold, so it is no verdict.",
    ),
    "other_crops": Meaning(
        "The image was scored on another number of crops than the calibration.",
        "The score has no threshold, so it is no verdict.",
    ),
    "no_video_thresholds": Meaning(
        "The bundle was calibrated with photographs alone, and they say nothing about videos.",
        "The score has no threshold, so it is no verdict.",
    ),
    "other_frames": Meaning(
        "The video was scored on another number of frames than the calibration videos.",
        "The score has no threshold, so it is no verdict.",
    ),
    "one_frame": Meaning(
        "This is one frame of a video, and thresholds hold for whole videos.",
        "The score has no threshold, so it is no verdict.",
    ),
}
"""A sentence on each reason of a row."""

NOTES: dict[str, str] = {
    "no_end_marker": "The JPEG lacks its end marker. Its pixels are there, but perhaps those of its last two blocks.",
    "scans_missing": "The finer scans of this progressive JPEG are missing, so its pixels are coarse.",
    "frames_missing": "Some of the video's frames could not be read.",
}

CLAIMS: dict[str, str] = {
    "claims_ai": "The file's own metadata say that an algorithm made or changed what the picture shows.",
    "claims_capture": "The file's own metadata say that a camera or a scanner captured it.",
    "claims_edited": "The file's own metadata say that it was edited or composed without generative AI.",
    "none": "The file's own metadata claim nothing. Anyone can remove them, so that says nothing about the picture.",
    "invalid": "A C2PA manifest is there, but its signature or a hash does not hold. That is no sign of AI.",
}

_UNKNOWN = Meaning("The evidence does not suffice for a verdict.", "It is neither called generated nor passed as real.")
_ERROR = Meaning(
    "The input could not be scored.", "Nothing follows about the image. It was not judged, and it was not skipped."
)
_REAL = Meaning(
    "The image is not told apart from real photographs. It means no more than that.",
    "It does not say that a camera took the picture. A generated image that is missed gets this verdict, too.",
)


def meaning(row: Row, fpr: float | None) -> Meaning:
    """Return what the row's verdict says.  fpr: the calibrated false positive rate, or None without one."""
    if row.verdict == "generated":
        rate = "" if fpr is None else f" On average, up to {share(fpr)} real photographs get this verdict, too."
        return Meaning(
            "The image scores higher than real photographs of its size usually do.",
            "This is evidence, not proof. Illustrations, screenshots and heavy edits score high as well." + rate,
        )
    if row.verdict == "real":
        return _REAL
    if row.verdict == "error":
        return _ERROR
    return REASONS.get(row.reason or "", _UNKNOWN)


def p_value_in_words(p: float, count: int | None, group: str | None) -> PValue:
    """Say in words what a conformal p-value says: at most so many inputs like the calibration's score this high.

    The number is never below p, and above it by at most a tenth.

    p: (k + 1) / (n + 1), where k of the n calibration inputs of the group score at least as high.
    count: n, or None if it is not known.
    group: a size group as rows name it, or None.
    """
    kind = "videos" if group == VIDEOS else "photographs"
    of_size = kind if group in (None, VIDEOS, "all sizes") else f"{kind} of this size"
    if count is None:
        return PValue(
            f"At most {share(p)} {of_size} score this high.",
            f"p = {p:.3g}. It holds on average, and only for {kind} like those of the calibration.",
        )
    higher = round(p * (count + 1)) - 1
    if higher == 0:
        headline = f"At most 1 in {count + 1:,} {of_size} scores this high."
        counted = f"None of the {count:,} calibration {_named(kind, group)} scores this high, so no smaller p-value "
        counted += f"is possible here (p = {p:.3g})."
    elif higher >= count:
        headline = f"All calibration {of_size} score at least this high."
        counted = f"All {count:,} calibration {_named(kind, group)} score at least as high (p = 1)."
    else:
        headline = f"At most {share(p)} {of_size} score this high."
        verb = "scores" if higher == 1 else "score"
        counted = (
            f"{higher:,} of the {count:,} calibration {_named(kind, group)} {verb} at least as high (p = {p:.3g})."
        )
    return PValue(headline, f"{counted} This holds on average, and only for {kind} like those.")


def share(rate: float) -> str:
    """Return a rate in (0, 1] as "3 in 1,000". It is rounded up, by at most a tenth of the rate."""
    whole = 100
    # A hair less, because 0.07 * 100 is above 7 in floats.
    while (part := math.ceil(rate * whole - 1e-9)) > rate * whole * _MOST_OVERSTATED:
        whole *= 10
    return f"{part:,} in {whole:,}"


def _named(kind: str, group: str | None) -> str:
    if group in (None, VIDEOS, "all sizes"):
        return kind
    return f"{kind} {group}" if group.startswith("above") else f"{kind} of {group}"
