"""Judging a detector on a folder of known images, without fooling oneself.

A data set is a folder with real/ and generated/<generator>/, each searched recursively. What has shaped the bundle
(its bank, its calibration) is left out by content hash, and so are copies.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np
from numpy.typing import NDArray

from mdmf_deploy.bundle.recipe import Part, Split, part_of
from mdmf_deploy.detection.rows import Row
from mdmf_deploy.errors import UsageError
from mdmf_deploy.files import file_sha256
from mdmf_deploy.images.inputs import in_folder, uri
from mdmf_deploy.tasks.evaluate.conditions import Condition
from mdmf_deploy.tasks.evaluate.metrics import RESAMPLES, Estimate, Figures, figures, wilson

if TYPE_CHECKING:
    from mdmf_deploy.bundle.bundle import Bundle
    from mdmf_deploy.detection.detector import Detector


@dataclass(frozen=True, slots=True)
class Sample:
    """One image whose class is known.  sha256: None if its file cannot be read.  generator: None if it is real."""

    path: Path
    sha256: str | None
    generator: str | None


class Audit(msgspec.Struct, frozen=True, kw_only=True):
    """What became of the data set's images before any was scored.

    in_bank, in_calibration, copies: left out, as row URIs.  other_parts: how many the split left out.
    left_out: generators none of whose images is left, in order.
    """

    judged: int
    in_bank: tuple[str, ...]
    in_calibration: tuple[str, ...]
    copies: tuple[str, ...]
    other_parts: int
    left_out: tuple[str, ...]


class Table(msgspec.Struct, frozen=True, kw_only=True):
    """All figures under one condition.

    real_images: readable ones.  fpr: fraction of them with the verdict "generated", None if uncalibrated.
    generators: worst AUROC first.  mean: over the generators, of auroc, ap, acc and tpr, None if uncalibrated.
    pooled: all generated images as one generator.  unreadable: as row URIs.
    """

    condition: str
    real_images: int
    fpr: Estimate | None
    generators: dict[str, Figures]
    mean: dict[str, float | None]
    pooled: Figures
    unreadable: tuple[str, ...]

    @property
    def worst_auroc(self) -> float:
        """The AUROC of the generator that is told apart worst."""
        return min(figure.auroc.value for figure in self.generators.values())


def find_samples(dataset: Path) -> list[Sample]:
    """Every image of real/ and of each folder in generated/ that is not hidden, hashed, in path order.

    Raises UsageError if the folders are not laid out so, or one of them holds no image.
    """
    generated = dataset / "generated"
    if not (dataset / "real").is_dir() or not generated.is_dir():
        raise UsageError(f"{uri(dataset)}: expected the folders real/ and generated/<generator>/ in it")
    folders: dict[str | None, Path] = {None: dataset / "real"}
    folders |= {
        folder.name: folder
        for folder in sorted(generated.iterdir())
        if folder.is_dir() and not folder.name.startswith(".")
    }
    if len(folders) == 1:
        raise UsageError(f"{uri(generated)}: expected one folder a generator in it")
    return [
        Sample(path, _sha256(path), generator)
        for generator, folder in folders.items()
        for path in in_folder(folder).paths
    ]


def audit(
    samples: Iterable[Sample], bundle: Bundle, split: Split | None = None, part: Part = "test"
) -> tuple[list[Sample], Audit]:
    """The samples that may be judged, and what became of the others.

    split: keep only the images that it puts into `part`.
    Raises UsageError if the same bytes are called real and generated.
    """
    banked, calibration = bundle.bank.hashes, bundle.calibration
    calibrated = frozenset(calibration.image_sha256) if calibration else frozenset()
    seen: dict[str, Sample] = {}
    generators: dict[str, None] = {}
    kept: list[Sample] = []
    dropped: dict[str, list[str]] = {"in_bank": [], "in_calibration": [], "copies": []}
    other_parts = 0
    for sample in samples:
        sha256 = sample.sha256
        if sample.generator is not None:
            generators[sample.generator] = None
        if sha256 is None:
            kept.append(sample)
            continue
        first = seen.setdefault(sha256, sample)
        if (first.generator is None) != (sample.generator is None):
            raise UsageError(f"{uri(first.path)} and {uri(sample.path)} are the same bytes; is it real or generated?")
        if first is not sample:
            dropped["copies"].append(uri(sample.path))
        elif sha256 in banked:
            dropped["in_bank"].append(uri(sample.path))
        elif sha256 in calibrated:
            dropped["in_calibration"].append(uri(sample.path))
        elif split is not None and part_of(sha256, split, sample.generator) != part:
            other_parts += 1
        else:
            kept.append(sample)
    lists = {name: tuple(uris) for name, uris in dropped.items()}
    remaining = {sample.generator for sample in kept}
    left_out = tuple(name for name in generators if name not in remaining)
    return kept, Audit(judged=len(kept), other_parts=other_parts, left_out=left_out, **lists)


def unscored(samples: Iterable[Sample], tables: Sequence[Table]) -> list[str]:
    """Generators that had samples, but in one of the tables no row with a score."""
    names = dict.fromkeys(sample.generator for sample in samples if sample.generator is not None)
    return [name for name in names if any(name not in table.generators for table in tables)]


def judge(detector: Detector, samples: Sequence[Sample], condition: Condition) -> Iterator[tuple[Sample, Row]]:
    """Each sample with its row, in order; uri and sha256 are those of the file, whatever the condition made of it."""
    rows = detector.stream(condition.source(sample.path) for sample in samples)
    for sample, row in zip(samples, rows, strict=True):
        yield sample, msgspec.structs.replace(row, uri=uri(sample.path), sha256=sample.sha256)


def tabulate(condition: str, judged: Iterable[tuple[Sample, Row]], resamples: int = RESAMPLES) -> Table:
    """The figures of one condition.  Raises UsageError unless there are readable real and generated images."""
    rows: dict[str | None, list[Row]] = {}
    unreadable = []
    for sample, row in judged:
        if row.score is None:
            unreadable.append(row.uri)
        else:
            rows.setdefault(sample.generator, []).append(row)
    real = rows.pop(None, [])
    generators = {name: rows_of for name, rows_of in rows.items() if name is not None}
    if not real or not generators:
        missing = "generated" if real else "real"
        raise UsageError(f"no {missing} image is left to judge; give more, or another --part")
    calibrated = all(row.verdict != "uncalibrated" for row in real)

    def measure(generated: list[Row]) -> Figures:
        if not calibrated:
            return figures(_scores(real), _scores(generated), None, None, resamples)
        return figures(_scores(real), _scores(generated), _flags(real), _flags(generated), resamples)

    by_generator = {name: measure(rows_of) for name, rows_of in generators.items()}
    return Table(
        condition=condition,
        real_images=len(real),
        fpr=wilson(int(_flags(real).sum()), len(real)) if calibrated else None,
        generators=dict(sorted(by_generator.items(), key=lambda item: item[1].auroc.value)),
        mean={name: _mean(by_generator.values(), name) for name in ("auroc", "ap", "acc", "tpr")},
        pooled=measure([row for rows_of in generators.values() for row in rows_of]),
        unreadable=tuple(unreadable),
    )


def _mean(rows: Iterable[Figures], name: str) -> float | None:
    estimates = [getattr(row, name) for row in rows]
    return None if None in estimates else float(np.mean([estimate.value for estimate in estimates]))


def _scores(rows: list[Row]) -> NDArray[np.float64]:
    return np.array([row.score for row in rows], dtype=np.float64)


def _flags(rows: list[Row]) -> NDArray[np.bool_]:
    return np.array([row.verdict == "generated" for row in rows])


def _sha256(path: Path) -> str | None:
    try:
        return file_sha256(path)
    except OSError:
        return None
