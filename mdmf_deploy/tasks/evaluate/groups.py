"""The figures of a data set by the kind and by the size of its images."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise

import msgspec

from mdmf_deploy.bundle.groups import SIZE_BOUNDS, VIDEOS
from mdmf_deploy.tasks.evaluate.comparison import Comparison, Judged, fpr_of, uncertain
from mdmf_deploy.tasks.evaluate.metrics import Estimate, mean_figures


class GroupFigures(msgspec.Struct, frozen=True, kw_only=True):
    """The figures of the images of one kind or size.

    fpr, real_uncertain: of its real images, as in Table.
    generators: how many have images in it.
    auroc, tpr: averaged over these generators. None without images of both classes, or if uncalibrated.
    all_generated: whether the generated images of all kinds were taken, because none of them has this one.
    """

    real_images: int
    fpr: Estimate | None
    real_uncertain: int | None
    generated_images: int
    generators: int
    auroc: Estimate | None
    tpr: Estimate | None
    all_generated: bool = False


def kinds_of(comparison: Comparison) -> dict[str, GroupFigures]:
    """Return the figures by kind. Without any kind there are none."""
    own = _by(comparison, _kind)
    if set(own) <= {"other"}:
        return {}
    order = ("photographs", "art", "screenshots", VIDEOS, "other")
    return {
        kind: _group(comparison, *own[kind], kind in ("art", "screenshots", "photographs"))
        for kind in order
        if kind in own
    }


def sizes_of(comparison: Comparison) -> dict[str, GroupFigures]:
    """Return the figures by size, from small to large, with videos last."""
    own = _by(comparison, _size)
    return {size: _group(comparison, *own[size], False) for size in sorted(own, key=_place)}


def _by(
    comparison: Comparison, key: Callable[[Judged], str]
) -> dict[str, tuple[list[Judged], dict[str, list[Judged]]]]:
    """Return the real images and those of each generator, by a key."""
    groups: dict[str, tuple[list[Judged], dict[str, list[Judged]]]] = {}
    for pair in comparison.real:
        groups.setdefault(key(pair), ([], {}))[0].append(pair)
    for name, pairs in comparison.generated.items():
        for pair in pairs:
            groups.setdefault(key(pair), ([], {}))[1].setdefault(name, []).append(pair)
    return groups


def _group(
    comparison: Comparison, real: list[Judged], generated: Mapping[str, list[Judged]], or_all: bool
) -> GroupFigures:
    all_generated = or_all and not generated
    if all_generated:
        generated = comparison.generated
    drawn = [comparison.draws(name, real, own) for name, own in generated.items()] if real else []
    means = mean_figures(drawn)
    return GroupFigures(
        real_images=len(real),
        fpr=fpr_of(real),
        real_uncertain=uncertain(real),
        generated_images=sum(map(len, generated.values())),
        generators=len(generated),
        auroc=means["auroc"],
        tpr=means["tpr"],
        all_generated=all_generated,
    )


def _kind(pair: Judged) -> str:
    return VIDEOS if pair.row.frames is not None else pair.image.kind or "other"


def _size(pair: Judged) -> str:
    if pair.row.size_group is not None:
        return pair.row.size_group
    if pair.row.frames is not None:
        return VIDEOS
    megapixels = (pair.row.width or 0) * (pair.row.height or 0) / 1e6
    for above, up_to in pairwise((0.0, *SIZE_BOUNDS)):
        if megapixels <= up_to:
            return f"{above:g} to {up_to:g} MP" if above else f"up to {up_to:g} MP"
    return f"above {SIZE_BOUNDS[-1]:g} MP"


def _place(size: str) -> tuple[int, float]:
    """Return where a size group stands: from small to large, and videos last."""
    words = size.split()
    if words[0] == "up":
        return 0, 0.0
    if words[-1] != "MP":
        return 2, 0.0
    return 1, float(words[1] if words[0] == "above" else words[0])
