"""A row: one verdict on one input, with its evidence, and its text as a line of a table and as JSON."""

from __future__ import annotations

from typing import Literal

import msgspec

from mdmf_deploy.bundle.calibration import Reason, Verdict
from mdmf_deploy.images.provenance import Claim
from mdmf_deploy.text import one_line, printable_json


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One verdict on one input. Every output writes the fields in this order.

    score: biased squared MMD against the reference bank, without a unit. A higher score is less like the bank.
    evidence: the share, 0 to 1, of the crops' patches with texture (mdmf_deploy.images.evidence).
    p_value: conformal, (k + 1) / (n + 1), from the calibration images of the same size group. A real image like those
        gets p or less with probability at most p, on average over draws of the calibration images. None if no
        calibration holds, the group has none, or the image is featureless.
    reason: why the verdict is "uncertain" or "uncalibrated" (docs/rows.md lists the codes). None for all others.
    threshold: the score above which the verdict is "generated". None if there is none for this image.
    size_group: the range of megapixels that the image was judged in. None if no calibration holds.
    bundle_id, calibration_id: hashes of what scored the image, and of the bundle's calibration.json, whose thresholds
        judge it. Bundles with the same bundle_id give the same scores. None if the bundle has no calibration.
    width, height: size of the whole image after EXIF orientation, in pixels.
    crop: "center", "reflected" (smaller than the crop, mirrored at its edges), or "grid RxC" (R rows of C crops).
    notes: codes, with spaces between them, of what a careful reader would say about the file (docs/rows.md).
    provenance: what the file's own metadata claims, never mixed into the score (mdmf_deploy.images.provenance).
    provenance_source: where the claim stands, and who signed it.
    frames: frames of a video that were scored. The score is the mean of theirs.
    frame_time: seconds from the beginning, in a row that holds one frame of a video.
    lowest_score, lowest_time, highest_score, highest_time: of a video's frames, and where they lie, in seconds.
    probes: changed copies of the image that were scored in a second look (mdmf_deploy.detection.second_look). 0 if it
        could not be read again. None if there was no second look.
    lowest_probe, highest_probe: the lowest and the highest score of the image and these copies.
    ms_*: milliseconds spent on this image. The time of a batch is divided evenly among its images.
    contributions: (n N,) each patch's share of the score, crop by crop, each row-major over the pool grid. Their mean
        is the score. Those of a video's row are its highest frame's. The tabular outputs leave it out.
    """

    uri: str
    sha256: str | None = None
    status: Literal["ok", "error"] = "ok"
    error_code: str | None = None
    error: str | None = None
    score: float | None = None
    evidence: float | None = None
    p_value: float | None = None
    verdict: Verdict = "error"
    reason: Reason | None = None
    threshold: float | None = None
    size_group: str | None = None
    bundle_id: str | None = None
    calibration_id: str | None = None
    runtime: str | None = None
    precision: str | None = None
    width: int | None = None
    height: int | None = None
    format: str | None = None
    crop: str | None = None
    notes: str | None = None
    provenance: Claim | None = None
    provenance_source: str | None = None
    frames: int | None = None
    frame_time: float | None = None
    lowest_score: float | None = None
    lowest_time: float | None = None
    highest_score: float | None = None
    highest_time: float | None = None
    probes: int | None = None
    lowest_probe: float | None = None
    highest_probe: float | None = None
    ms_decode: float | None = None
    ms_engine: float | None = None
    ms_mmd: float | None = None
    contributions: tuple[float, ...] | None = None

    def to_dict(self) -> dict[str, object]:
        """Return what the files hold: every field but the contributions, in their order."""
        return {name: getattr(self, name) for name in COLUMNS}

    def __repr__(self) -> str:
        shown = ("uri", "verdict", "reason", "error_code", "score", "p_value", "threshold")
        given = [f"{name}={value!r}" for name in shown if (value := getattr(self, name)) is not None]
        return f"Row({', '.join(given)})"


COLUMNS = tuple(name for name in Row.__struct_fields__ if name != "contributions")
TIMINGS = ("ms_decode", "ms_engine", "ms_mmd")
TABLE_HEADER = f"{'verdict':<12}  {'score':>9}  {'p':>7}  {'threshold':>9}  {'size':>11}  image"

_COLOURS: dict[Verdict, str] = {
    "real": "32",
    "generated": "1;31",
    "uncertain": "33",
    "uncalibrated": "36",
    "error": "35",
}


def table_line(row: Row, colour: bool = False) -> str:
    """Return the row as one line under TABLE_HEADER. It ends with the reason for a verdict that needs one.

    After that comes the claim of the file's metadata, if there is one. The image comes before them, because its path
    has no known width. It is never cut.
    """
    verdict = f"{row.verdict:<12}"
    if colour:
        verdict = f"\x1b[{_COLOURS[row.verdict]}m{verdict}\x1b[0m"
    score = "-" if row.score is None else f"{row.score:.6f}"
    p_value = "-" if row.p_value is None else f"{row.p_value:.3g}"
    threshold = "-" if row.threshold is None else f"{row.threshold:.6f}"
    size = "-" if row.width is None else f"{row.width}x{row.height}"
    reason = f"  ({row.reason})" if row.reason else ""
    if row.status == "error":
        reason = f"  ({row.error_code}: {row.error})"
    claim = "" if row.provenance in (None, "none") else f"  [{row.provenance}: {row.provenance_source}]"
    end = one_line(row.uri + reason + claim)
    return f"{verdict}  {score:>9}  {p_value:>7}  {threshold:>9}  {size:>11}  {end}"


def json_line(row: Row) -> bytes:
    """Return the row as a JSON object with its newline. Numbers read back unchanged and a missing value is null."""
    return printable_json(msgspec.json.encode(row.to_dict())) + b"\n"
