"""The settings of a run: everything besides an input's bytes that decides its rows."""

from __future__ import annotations

import msgspec

from mdmf_deploy.errors import UsageError


class RunSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What rows of one resumable output have in common. A run with other settings may not add to it.

    format: version of the resumable output's own format.
    tool: version of mdmf-deploy.
    verdicts: whether thresholds hold (detection/verdicts.py). `mdmf verify` can change that at the same ids.
    crops, frames, each_frame, probe, max_*: the options of `mdmf detect`, with the bundle's own crop plan filled in.
    """

    format: int = 1
    tool: str
    bundle_id: str
    calibration_id: str | None
    runtime: str
    precision: str
    verdicts: bool
    crops: int
    frames: int | None
    each_frame: bool
    probe: bool = False
    max_pixels: int
    max_memory: int
    max_seconds: float

    def differences(self, now: RunSettings) -> list[str]:
        """Return a clause for each setting that differs, such as "crops 4 there, 1 now"."""
        return [
            f"{name} {short(before)} there, {short(after)} now"
            for name in self.__struct_fields__
            if (before := getattr(self, name)) != (after := getattr(now, name))
        ]

    def check_same(self, now: RunSettings, where: str) -> None:
        """Raise UsageError that says what differs if a run with settings `now` may not add to the output `where`."""
        found = self.differences(now)
        if found:
            raise UsageError(
                f"{where} was begun with other settings ({'; '.join(found)}); give the same ones, or another output"
            )


def short(value: object) -> str:
    """Return a setting as messages show it."""
    return value[:12] if isinstance(value, str) else "none" if value is None else str(value)
