"""Judge images of known class, and tabulate the figures."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import msgspec
import numpy as np
from numpy.typing import NDArray

from mdmf_deploy.detection.rows import Row
from mdmf_deploy.errors import UsageError
from mdmf_deploy.images.inputs import uri
from mdmf_deploy.tasks.evaluate.conditions import Condition
from mdmf_deploy.tasks.evaluate.datasets import KnownImage
from mdmf_deploy.tasks.evaluate.metrics import RESAMPLES, Estimate, Figures, figures, wilson

if TYPE_CHECKING:
    from mdmf_deploy.detection.detector import Detector


class Table(msgspec.Struct, frozen=True, kw_only=True):
    """The figures measured under one condition.

    real_images: how many are readable.
    fpr: the fraction of real images with the verdict "generated", None if uncalibrated.
    real_uncertain: how many real images got the verdict "uncertain", which is not "generated". None if uncalibrated.
    generators: worst AUROC first.
    mean: auroc, ap, acc and tpr averaged over the generators. acc and tpr are None if uncalibrated.
    pooled: all generated images taken as one generator.
    unreadable: images without a score, as row URIs.
    """

    condition: str
    real_images: int
    fpr: Estimate | None
    real_uncertain: int | None
    generators: dict[str, Figures]
    mean: dict[str, float | None]
    pooled: Figures
    unreadable: tuple[str, ...]

    @property
    def worst_auroc(self) -> float:
        """The AUROC of the generator that is hardest to tell from real images."""
        return min(figure.auroc.value for figure in self.generators.values())


def judge(detector: Detector, images: Sequence[KnownImage], condition: Condition) -> Iterator[tuple[KnownImage, Row]]:
    """Yield each image with its row, in order. The row's uri and sha256 are the file's, not the changed image's."""
    rows = detector.stream(condition.source(image.path) for image in images)
    for image, row in zip(images, rows, strict=True):
        yield image, msgspec.structs.replace(row, uri=uri(image.path), sha256=image.sha256)


def tabulate(condition: str, judged: Iterable[tuple[KnownImage, Row]], resamples: int = RESAMPLES) -> Table:
    """Compute the figures of one condition. Raises UsageError unless real and generated images are readable."""
    rows: dict[str | None, list[Row]] = {}
    unreadable = []
    for image, row in judged:
        if row.score is None:
            unreadable.append(row.uri)
        else:
            rows.setdefault(image.generator, []).append(row)
    real = rows.pop(None, [])
    generators = {name: rows_of for name, rows_of in rows.items() if name is not None}
    if not real or not generators:
        missing = "generated" if real else "real"
        raise UsageError(f"no {missing} image is left to judge; give more, or another --part")
    calibrated = _decided(real)

    def measure(generated: list[Row]) -> Figures:
        if not (calibrated and _decided(generated)):
            return figures(_scores(real), _scores(generated), None, None, resamples)
        measured = figures(_scores(real), _scores(generated), _flags(real), _flags(generated), resamples)
        return msgspec.structs.replace(measured, uncertain=_uncertain(generated))

    by_generator = {name: measure(rows_of) for name, rows_of in generators.items()}
    return Table(
        condition=condition,
        real_images=len(real),
        fpr=wilson(int(_flags(real).sum()), len(real)) if calibrated else None,
        real_uncertain=_uncertain(real) if calibrated else None,
        generators=dict(sorted(by_generator.items(), key=lambda item: item[1].auroc.value)),
        mean={name: _mean(by_generator.values(), name) for name in ("auroc", "ap", "acc", "tpr")},
        pooled=measure([row for rows_of in generators.values() for row in rows_of]),
        unreadable=tuple(unreadable),
    )


def unscored(images: Iterable[KnownImage], tables: Sequence[Table]) -> list[str]:
    """Return the generators that have images, but no scored row in at least one of the tables."""
    names = dict.fromkeys(image.generator for image in images if image.generator is not None)
    return [name for name in names if any(name not in table.generators for table in tables)]


def _mean(rows: Iterable[Figures], name: str) -> float | None:
    estimates = [getattr(row, name) for row in rows]
    return None if None in estimates else float(np.mean([estimate.value for estimate in estimates]))


def _scores(rows: list[Row]) -> NDArray[np.float64]:
    return np.array([row.score for row in rows], dtype=np.float64)


def _flags(rows: list[Row]) -> NDArray[np.bool_]:
    return np.array([row.verdict == "generated" for row in rows])


def _decided(rows: list[Row]) -> bool:
    """Return whether any of these images could have been called generated. If none could, a rate of 0 says nothing."""
    return any(row.verdict != "uncalibrated" and row.reason != "no_calibration_for_this_size" for row in rows)


def _uncertain(rows: list[Row]) -> int:
    return sum(row.verdict == "uncertain" for row in rows)
