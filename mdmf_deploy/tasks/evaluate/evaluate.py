"""Judge images of known class, and tabulate the figures."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import msgspec

from mdmf_deploy.detection.rows import Row
from mdmf_deploy.images.inputs import uri
from mdmf_deploy.tasks.evaluate.comparison import Comparison, Judged, fpr_of, uncertain
from mdmf_deploy.tasks.evaluate.conditions import Change
from mdmf_deploy.tasks.evaluate.datasets import KnownImage
from mdmf_deploy.tasks.evaluate.groups import GroupFigures, kinds_of, sizes_of
from mdmf_deploy.tasks.evaluate.metrics import RESAMPLES, Draws, Estimate, Figures, figures, mean_figures

if TYPE_CHECKING:
    from mdmf_deploy.detection.detector import Detector

FEW = 10
"""A generator with fewer images is named, because its figures say little."""


class Table(msgspec.Struct, frozen=True, kw_only=True):
    """The figures measured under one condition.

    real_images: how many are readable. One that is compared with several generators counts once.
    fpr: the fraction of real images with the verdict "generated", None if uncalibrated.
    real_uncertain: how many real images got the verdict "uncertain", which is not "generated". None if uncalibrated.
    generators: worst AUROC first.
    mean: every figure of metrics.AVERAGED, averaged over the generators. None where a generator lacks it.
    pooled: all generated images taken as one generator.
    kinds: "photographs", "art", "screenshots" and "videos", where folders or lists say so, and "other".
    sizes: by the calibration's size groups, or without one by those that calibrations have by default.
    best_thresholds: at which best_acc is measured, one for each half of the images or one of another data set.
    unreadable: images without a score, as row URIs.
    """

    condition: str
    real_images: int
    fpr: Estimate | None
    real_uncertain: int | None
    generators: dict[str, Figures]
    mean: dict[str, Estimate | None]
    pooled: Figures
    kinds: dict[str, GroupFigures]
    sizes: dict[str, GroupFigures]
    best_thresholds: tuple[float, ...]
    unreadable: tuple[str, ...]

    @property
    def worst_auroc(self) -> float:
        """The AUROC of the generator that is hardest to tell from real images."""
        return min(figure.auroc.value for figure in self.generators.values())

    @property
    def few(self) -> list[str]:
        """The generators with fewer than FEW images."""
        return [name for name, figure in self.generators.items() if figure.images < FEW]


def judge(detector: Detector, images: Sequence[KnownImage], change: Change) -> Iterator[Judged]:
    """Yield each image with its row, in order. The row's uri and sha256 are the file's, not the changed image's."""
    rows = detector.stream(change.source(image.path) for image in images)
    for image, row in zip(images, rows, strict=True):
        yield Judged(image, msgspec.structs.replace(row, uri=uri(image.path), sha256=image.sha256))


def tabulate(
    condition: str,
    judged: Iterable[tuple[KnownImage, Row]],
    resamples: int = RESAMPLES,
    threshold: float | None = None,
) -> Table:
    """Compute the figures of one condition.

    threshold: for best_acc, found on another data set. None means that each half of the images gives the other's.
    Raises UsageError unless real and generated images are readable.
    """
    pairs = [Judged(*pair) for pair in judged]
    scored = [pair for pair in pairs if pair.row.score is not None]
    comparison = Comparison(scored, threshold, resamples)
    generators, drawn = {}, []
    for name, own in comparison.generated.items():
        drawn.append(comparison.draws(name, comparison.real_of(name), own))
        generators[name] = _figures(comparison, own, drawn[-1])
    everything = [pair for own in comparison.generated.values() for pair in own]
    return Table(
        condition=condition,
        real_images=len(comparison.real),
        fpr=fpr_of(comparison.real),
        real_uncertain=uncertain(comparison.real),
        generators=dict(sorted(generators.items(), key=lambda item: item[1].auroc.value)),
        mean=mean_figures(drawn),
        pooled=_figures(comparison, everything, comparison.draws("", comparison.real, everything)),
        kinds=kinds_of(comparison),
        sizes=sizes_of(comparison),
        best_thresholds=tuple(dict.fromkeys(comparison.thresholds)),
        unreadable=tuple(pair.row.uri for pair in pairs if pair.row.score is None),
    )


def _figures(comparison: Comparison, generated: list[Judged], drawn: Draws) -> Figures:
    found = figures(comparison.sample(generated), drawn)
    return msgspec.structs.replace(found, uncertain=None if found.tpr is None else uncertain(generated))


def unscored(images: Iterable[KnownImage], tables: Sequence[Table]) -> list[str]:
    """Return the generators that have images, but no scored row in at least one of the tables."""
    names = dict.fromkeys(image.generator for image in images if image.generator is not None)
    return [name for name in names if any(name not in table.generators for table in tables)]


def threshold_of(judged: Iterable[tuple[KnownImage, Row]]) -> float:
    """Return the threshold that has the highest accuracy on these images, as `tabulate` takes it.

    Raises UsageError unless real and generated images are readable.
    """
    scored = [Judged(*pair) for pair in judged if pair[1].score is not None]
    found = Comparison(scored, None, 0).best(lambda pair: True)
    assert found is not None  # both classes have images
    return found
