"""How many inputs of a run ended how: what each part tells the driver, added up."""

from __future__ import annotations

from collections import Counter

import msgspec
import pyarrow

COUNTED = ("verdict", "reason", "size_group", "frame_time")
_NO_VIDEOS, _TOO_FEW = "no_video_thresholds", "no_calibration_for_this_size"


class Tally(msgspec.Struct, kw_only=True):
    """Counts of rows.

    inputs: that have their rows.
    verdicts: verdict -> rows.
    undecided: size group, "videos" or "frames of videos" -> rows without a verdict for lack of thresholds.
    unjudged: videos without thresholds for videos.
    """

    inputs: int = 0
    verdicts: dict[str, int] = {}
    undecided: dict[str, int] = {}
    unjudged: int = 0

    @classmethod
    def of(cls, table: pyarrow.Table, inputs: int = 0) -> Tally:
        """Count the rows of a part, which has at least the columns COUNTED."""
        verdicts: Counter[str] = Counter()
        undecided: Counter[str] = Counter()
        unjudged = 0
        for verdict, reason, group, time in zip(*(table[name].to_pylist() for name in COUNTED), strict=True):
            verdicts[verdict] += 1
            if verdict == "uncalibrated" or reason == _TOO_FEW:
                undecided[group or ("videos" if time is None else "frames of videos")] += 1
            unjudged += reason == _NO_VIDEOS
        return cls(inputs=inputs, verdicts=dict(verdicts), undecided=dict(undecided), unjudged=unjudged)

    def add(self, other: Tally) -> None:
        """Add another tally to this one."""
        self.inputs += other.inputs
        self.unjudged += other.unjudged
        for mine, theirs in ((self.verdicts, other.verdicts), (self.undecided, other.undecided)):
            for name, count in theirs.items():
                mine[name] = mine.get(name, 0) + count
