"""A row: one verdict on one input, with its evidence."""

from __future__ import annotations

from typing import Literal

import msgspec

from mdmf_deploy.bundle.calibration import Verdict


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One verdict on one input. Every output writes the fields in this order.

    score: biased squared MMD against the reference bank, without a unit. A higher score is less like the bank.
    p_value: conformal, (k + 1) / (n + 1), from the bundle's calibration. None if no calibration holds.
    threshold: the score above which the verdict is "generated". None if no calibration holds.
    width, height: size of the whole image after EXIF orientation, in pixels.
    crop: "center", "reflected" (smaller than the crop, mirrored at its edges), or "center+N" for several crops.
    ms_*: milliseconds spent on this image. The time of a batch is divided evenly among its images.
    contributions: (N,) each patch's share of the score, row-major over the pool grid. Their mean is the score.
        The tabular outputs leave it out.
    """

    uri: str
    sha256: str | None = None
    status: Literal["ok", "error"] = "ok"
    error_code: str | None = None
    error: str | None = None
    score: float | None = None
    p_value: float | None = None
    verdict: Verdict = "error"
    threshold: float | None = None
    bundle_id: str | None = None
    runtime: str | None = None
    precision: str | None = None
    width: int | None = None
    height: int | None = None
    format: str | None = None
    crop: str | None = None
    ms_decode: float | None = None
    ms_engine: float | None = None
    ms_mmd: float | None = None
    contributions: tuple[float, ...] | None = None


COLUMNS = tuple(name for name in Row.__struct_fields__ if name != "contributions")
TIMINGS = ("ms_decode", "ms_engine", "ms_mmd")
