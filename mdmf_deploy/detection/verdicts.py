"""Scores to rows: the verdict on each image, video or frame, and the facts that its row gives."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import msgspec
import numpy as np

from mdmf_deploy.bundle.bundle import Bundle, hint
from mdmf_deploy.bundle.calibration import Judgement
from mdmf_deploy.detection.feed import Extraction, ImageScore
from mdmf_deploy.detection.rows import Row
from mdmf_deploy.errors import ImageError
from mdmf_deploy.text import one_line


class Copy(NamedTuple):
    """A changed copy of an image.  evidence: as in Row."""

    score: float
    evidence: float


class Verdicts:
    """The rows of one bundle on one runtime.

    runtime, precision: what scores.
    crops: the most crops taken of an image or a frame.
    """

    def __init__(self, bundle: Bundle, runtime: str, precision: str, crops: int) -> None:
        self._path, self._calibration = bundle.path, bundle.calibration
        self._bundle_id, self._calibration_id = bundle.bundle_id, bundle.calibration_id
        self._runtime, self._precision = runtime, precision
        self._covered = bundle.covers(runtime, precision)
        self._planned, self._crops = bundle.manifest.preprocessing.crops, crops
        self._range = bundle.bank.score_range

    def rows(self, extraction: Extraction, scored: ImageScore | None, each_frame: bool = False) -> tuple[Row, ...]:
        """Return the row of one source, or with each_frame one for each frame of a video.

        scored: None if there is no score, because of an error. A score that is not finite gives an error, too, and so
            does one that no image can have, of a whole source or of a frame.
        """
        if scored is None:
            return (self._error_row(extraction, extraction.error, None),)
        if not math.isfinite(scored.score):
            text = f"its score on {self._runtime} is {scored.score}; run `mdmf verify`, which says whether that may be "
            return (self._error_row(extraction, ImageError("not_finite", text + "used"), scored),)
        low, high = self._range
        frame_rows = () if extraction.frames is None else self._frame_rows(extraction, scored)
        scores = [scored.score, *(row.score for row in frame_rows if row.score is not None)]
        if not (low <= min(scores) and max(scores) <= high):
            text = (
                f"a score of {scored.score:.6g} on {self._runtime}, but {max(low, 0.0):g} to {high:.3g} are possible; "
                "run `mdmf verify`, or get the bundle again"
            )
            return (self._error_row(extraction, ImageError("impossible_score", text), scored),)
        if extraction.frames is None:
            return (self._image_row(extraction, scored),)
        return frame_rows if each_frame else (self._video_row(extraction, scored, frame_rows),)

    def near(self, row: Row) -> bool:
        """Return whether the row of an image lies so near its threshold that it is worth a second look."""
        # Photographs' thresholds judge images alone, and a row without evidence has no threshold.
        if self._calibration is None or row.threshold is None or row.score is None or row.frames is not None:
            return False
        near = self._calibration.group(_pixels(row)).near
        return near is not None and near[0] <= row.score <= near[1]

    def looked_again(self, row: Row, copies: Sequence[Copy]) -> Row:
        """Return the row after a second look at copies of its image.

        All copies are judged by the thresholds of the image's own size group. Those with too little evidence don't
        count. The verdict is "uncertain" for the reason "unstable" if image and copies are "real" as well as
        "generated". Otherwise it stays.
        """
        assert self._calibration is not None
        assert row.score is not None
        verdicts, scores = {row.verdict}, [row.score]
        for copy in copies:
            if not math.isfinite(copy.score):
                continue
            judgement = self._calibration.judge(copy.score, copy.evidence, _pixels(row), self._runtime, self._precision)
            if judgement.threshold is not None:
                verdicts.add(judgement.verdict)
                scores.append(copy.score)
        looked = msgspec.structs.replace(
            row, probes=len(scores) - 1, lowest_probe=min(scores), highest_probe=max(scores)
        )
        if {"real", "generated"} <= verdicts:
            return msgspec.structs.replace(looked, verdict="uncertain", reason="unstable")
        return looked

    def _image_row(self, extraction: Extraction, scored: ImageScore) -> Row:
        pixels = _pixels(extraction)
        judgement = self._withheld()
        if judgement is None:
            assert self._calibration is not None
            judgement = self._calibration.judge(
                scored.score, extraction.evidence or 0.0, pixels, self._runtime, self._precision
            )
        return self._row(extraction, scored, judgement)

    def _video_row(self, extraction: Extraction, scored: ImageScore, frames: tuple[Row, ...]) -> Row:
        """Return the row of a whole video. Among equal frames, the first is the lowest or the highest."""
        judgement = self._withheld()
        if judgement is None:
            assert self._calibration is not None
            judgement = self._calibration.judge_video(
                scored.score, extraction.evidence or 0.0, len(frames), self._runtime, self._precision
            )
        lowest = min(frames, key=lambda row: row.score or 0.0)
        highest = max(frames, key=lambda row: row.score or 0.0)
        return msgspec.structs.replace(
            self._row(extraction, scored, judgement),
            frames=len(frames),
            lowest_score=lowest.score,
            lowest_time=lowest.frame_time,
            highest_score=highest.score,
            highest_time=highest.frame_time,
            contributions=highest.contributions,
        )

    def _frame_rows(self, extraction: Extraction, scored: ImageScore) -> tuple[Row, ...]:
        """Return a row for each frame. No threshold holds for one frame, because the mean of several varies less."""
        frames = extraction.frames
        assert frames is not None
        count = len(frames.times)
        shares = np.array(scored.contributions).reshape(count, -1)
        judgement = self._withheld() or Judgement(None, None, "uncalibrated", "one_frame")
        row = self._row(extraction, scored, judgement)
        return tuple(
            msgspec.structs.replace(
                row,
                uri=f"{extraction.uri}#t={seconds:.3f}",
                score=float(share.mean()),
                evidence=evidence,
                frame_time=seconds,
                ms_decode=None if row.ms_decode is None else row.ms_decode / count,
                ms_engine=None if row.ms_engine is None else row.ms_engine / count,
                ms_mmd=None if row.ms_mmd is None else row.ms_mmd / count,
                contributions=tuple(share.tolist()),
            )
            for seconds, evidence, share in zip(frames.times, frames.evidence, shares, strict=True)
        )

    def _row(self, extraction: Extraction, scored: ImageScore, judgement: Judgement) -> Row:
        return msgspec.structs.replace(
            self._facts(extraction, scored),
            score=scored.score,
            p_value=judgement.p_value,
            verdict=judgement.verdict,
            reason=judgement.reason,
            threshold=judgement.threshold,
            size_group=judgement.size_group,
            ms_mmd=scored.ms_mmd,
            contributions=tuple(scored.contributions),
        )

    def _error_row(self, extraction: Extraction, error: ImageError | None, scored: ImageScore | None) -> Row:
        return msgspec.structs.replace(
            self._facts(extraction, scored),
            status="error",
            error_code=error.code if error else None,
            error=one_line(str(error)) if error else None,
        )

    def _facts(self, extraction: Extraction, scored: ImageScore | None) -> Row:
        """Return a row with everything but the score and the verdict."""
        return Row(
            uri=extraction.uri,
            sha256=extraction.sha256 or None,
            evidence=extraction.evidence,
            bundle_id=self._bundle_id,
            calibration_id=self._calibration_id,
            runtime=self._runtime,
            precision=self._precision,
            width=extraction.width,
            height=extraction.height,
            format=extraction.format,
            crop=extraction.crop,
            notes=" ".join(extraction.notes) or None,
            provenance=extraction.provenance.claim if extraction.provenance else None,
            provenance_source=extraction.provenance.source if extraction.provenance else None,
            ms_decode=_ms_prepared(extraction),
            ms_engine=extraction.ms_engine if scored is None else scored.ms_engine,
        )

    def _withheld(self) -> Judgement | None:
        """Return the verdict that every input gets if no threshold holds at all."""
        if self._calibration is None:
            return Judgement(None, None, "uncalibrated", "no_thresholds")
        if not self._covered:
            return Judgement(None, None, "uncalibrated", "not_verified")
        # The mean of several crops varies less than one crop's score, so thresholds hold for one plan only.
        if self._crops != self._planned:
            return Judgement(None, None, "uncalibrated", "other_crops")
        return None

    @property
    def hold(self) -> bool:
        """Whether thresholds hold. Otherwise every verdict is withheld."""
        return self._withheld() is None

    def caveat(self, asked: str) -> str | None:
        """Return the reason why no image gets a verdict, and the command to run. None if all is well.

        asked: the runtime that was asked for.
        """
        # `mdmf calibrate` verifies as well, so it comes first.
        if self._calibration is None:
            options = () if self._covered or asked == "auto" else ("--runtime", asked)
            return (
                "verdicts are withheld (uncalibrated): this bundle has no thresholds; "
                f"run {hint('calibrate', self._path, 'REAL_PHOTOS', *options)}"
            )
        if not self._covered:
            return (
                f"verdicts are withheld (uncalibrated): {self._runtime} {self._precision} is not verified for this "
                f"bundle; run {hint('verify', self._path, '--runtime', self._runtime)}"
            )
        if self._crops != self._planned:
            return (
                "verdicts are withheld (uncalibrated): thresholds hold for the bundle's crop plan "
                f"(up to {self._planned} an image), not for {self._crops}; leave out --crops"
            )
        if self._calibration.shortage is not None and self._calibration.scores:
            return (
                f"no image can be called real or generated: {self._calibration.shortage}; "
                f"run {hint('calibrate', self._path, 'REAL_PHOTOS')} with more"
            )
        return None


def _pixels(image: Extraction | Row) -> int:
    return (image.width or 0) * (image.height or 0)


def _ms_prepared(extraction: Extraction) -> float:
    return sum(ms for ms in (extraction.ms_read, extraction.ms_decode, extraction.ms_crop) if ms is not None)
