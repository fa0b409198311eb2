"""Rows as aligned text, written as they come.

The image comes last: the other columns have a known width, and a path is neither cut nor does it push anything aside.
"""

from __future__ import annotations

from mdmf_deploy.bundle.calibration import Verdict
from mdmf_deploy.detection.rows import Row

_COLOURS: dict[Verdict, str] = {
    "real": "32",
    "generated": "1;31",
    "uncertain": "33",
    "uncalibrated": "36",
    "error": "35",
}
HEADER = f"{'verdict':<12}  {'score':>9}  {'p':>7}  {'threshold':>9}  {'size':>11}  image"


def text(row: Row, colour: bool = False) -> str:
    """One line; an unreadable image's says why."""
    verdict = f"{row.verdict:<12}"
    if colour:
        verdict = f"\x1b[{_COLOURS[row.verdict]}m{verdict}\x1b[0m"
    size = "-" if row.width is None else f"{row.width}x{row.height}"
    why = "" if row.status == "ok" else f"  ({row.error_code}: {row.error})"
    return (
        f"{verdict}  {_number(row.score, 6):>9}  {_p(row.p_value):>7}  {_number(row.threshold, 6):>9}  "
        f"{size:>11}  {row.uri}{why}"
    )


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _p(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"
