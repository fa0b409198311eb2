"""The end of a run of `mdmf detect`: what it counted, what to do next, and its exit code."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import typer

from mdmf_deploy.cli.console import log
from mdmf_deploy.errors import CalibrationError, GateFailed

if TYPE_CHECKING:
    from mdmf_deploy.bundle.bundle import Bundle
    from mdmf_deploy.detection.rows import Row

_UNREADABLE = 3
_NO_VIDEOS = "no_video_thresholds"
_TOO_FEW = "no_calibration_for_this_size"


class Counts:
    """Counts of rows.

    verdicts: verdict -> rows.
    undecided: size group, "videos" or "frames of videos" -> rows without a verdict for lack of thresholds.
    unjudged: videos without thresholds for videos.
    """

    def __init__(self) -> None:
        self.verdicts: Counter[str] = Counter()
        self.undecided: Counter[str] = Counter()
        self.unjudged = 0

    def add(self, rows: Iterable[Row]) -> None:
        """Count these rows, too."""
        for row in rows:
            self.verdicts[row.verdict] += 1
            if row.verdict == "uncalibrated" or row.reason == _TOO_FEW:
                self.undecided[row.size_group or ("videos" if row.frame_time is None else "frames of videos")] += 1
            self.unjudged += row.reason == _NO_VIDEOS


def warn_of_caveat(caveat: str | None, gated: bool) -> None:
    """Warn once, before the first row, if verdicts are withheld.

    Raises CalibrationError if a gate depends on them: a gate that no image can fail must not pass.
    """
    if caveat is None:
        return
    if gated:
        raise CalibrationError(f"--fail-on cannot be judged: {caveat}")
    log(f"warning: {caveat}")


def summarise(verdicts: Counter[str], of: tuple[int, int], others: Mapping[str, int], seconds: float) -> None:
    """Print how many inputs were done.  of: the inputs done, and all of them."""
    from mdmf_deploy.cli.list_inputs import counted

    done, total = of
    images = f"{done} image{'s' * (done != 1)}" if done == total else f"{done} of {total} images"
    listed = ", ".join(
        f"{count} {'unreadable' if verdict == 'error' else verdict}" for verdict, count in verdicts.items()
    )
    rows = f", {verdicts.total()} rows" if verdicts.total() != done else ""
    log(f"{images}{rows}: {listed or 'none finished'}")
    skipped = sum(others.values())
    also = f"; {skipped} other files in folders skipped ({counted(others)})" if skipped else ""
    log(f"{seconds:.1f} s, {done / max(seconds, 1e-9):.1f} images/s{also}")


def advise_on_videos(bundle: Bundle, count: int) -> None:
    """Say which command gives a bundle thresholds for this many videos that had none."""
    from mdmf_deploy.bundle.bundle import suggestion

    videos = "1 video has" if count == 1 else f"{count} videos have"
    command = suggestion("calibrate", bundle.path, "REAL_VIDEOS")
    log(f"{videos} no verdict, because this bundle has no thresholds for videos; run {command}")


def following(bundle: Bundle) -> str:
    """Return the command that gives the bundle thresholds of the user's own, or "" if it has them."""
    from mdmf_deploy.bundle.bundle import shipped_name, suggestion

    if shipped_name(bundle.path) is None and bundle.calibration is not None:
        return ""
    return suggestion("calibrate", bundle.path, "REAL_PHOTOS")


def exit_by(verdicts: Counter[str], undecided: Counter[str], fail_on: Sequence[str]) -> None:
    """Raise what the exit code is for: --fail-on's refusal, verdicts it cannot judge, or unreadable inputs."""
    refused = [f"{verdicts[verdict]} {verdict}" for verdict in dict.fromkeys(fail_on) if verdicts[verdict]]
    if refused:
        raise GateFailed(f"--fail-on: {', '.join(refused)} of {verdicts.total()} images")
    if fail_on and undecided:
        raise CalibrationError(
            f"--fail-on cannot be judged for {undecided.total()} of {verdicts.total()} images: too few calibration "
            f"images like them ({', '.join(undecided)}); calibrate with more, or add --fail-on uncertain"
        )
    if verdicts["error"]:
        raise typer.Exit(_UNREADABLE)
