"""The option --fdr: rows are judged together at the end of a run, by their false discovery rate."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

from mdmf_deploy.cli.console import log
from mdmf_deploy.cli.summary import Counts
from mdmf_deploy.errors import UsageError

if TYPE_CHECKING:
    from mdmf_deploy.bundle.bundle import Bundle
    from mdmf_deploy.detection.outputs.held_rows import HeldRows
    from mdmf_deploy.detection.rows import Row

FdrOption = Annotated[
    float | None,
    typer.Option(
        "--fdr",
        metavar="RATE",
        help="Keep generated verdicts of which at most this share is expected to be wrong, such as 0.05. Rows come at "
        "the end.",
    ),
]


def check_fdr(fdr: float | None, resume: bool, on_ray: bool) -> None:
    """Raise UsageError where rows of other runs or other processes would have to be judged together with these."""
    for option, given in (("--resume", resume), ("--engine ray", on_ray)):
        if fdr is not None and given:
            raise UsageError(
                f"--fdr judges all rows together at the end of one run, and {option} writes them as they come; leave "
                f"one of them out, or add --keep-signatures DIR and then run `mdmf rescore DIR --fdr {fdr:g}`"
            )


def held_back(write: Callable[[Row], None], fdr: float) -> HeldRows:
    """Return what holds rows back until `told` writes them. Raises UsageError if the rate makes no sense."""
    from mdmf_deploy.detection.outputs.held_rows import HeldRows

    return HeldRows(write, fdr)


def told(held: HeldRows, bundle: Bundle, revise: Callable[[int, Row], None] = lambda n, row: None) -> Counts:
    """Write all rows, judged together, and say how many stay generated. Return their counts.

    revise: gets the number of each row, from 0, and the row.
    """
    counts = Counts()
    for n, row in enumerate(held.release()):
        counts.add([row])
        revise(n, row)
    found = held.found
    total = found.judged.total()
    log(
        f"false discovery rate {found.rate:g}: {found.discovered} of {found.alarms} generated verdicts stay, among "
        f"{total} rows that have a threshold"
    )
    sizes = _sizes(bundle)
    most = max((sizes.get(group or "", 0) for group in found.judged), default=0)
    needed = found.alarms_needed(most)
    if total and needed > max(1, found.alarms):
        log(
            f"note: with {most} calibration images the smallest p-value is {1 / (most + 1):.2g}, so among {total} rows "
            f"a generated verdict stays only if {needed} have one; with {found.images_needed} calibration images, one "
            "alone could stay"
        )
    return counts


def _sizes(bundle: Bundle) -> dict[str, int]:
    """Return the number of calibration images of each size group, and of videos."""
    from mdmf_deploy.bundle.calibration import VIDEOS

    calibration = bundle.calibration
    if calibration is None:
        return {}
    sizes = {group.name: len(group.scores) for group in calibration.groups}
    return sizes if calibration.videos is None else sizes | {VIDEOS: len(calibration.videos.scores)}
