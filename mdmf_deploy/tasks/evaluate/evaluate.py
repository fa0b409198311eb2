"""Judge a detector on a folder of images whose class is known.

A data set is a folder with real/ and generated/<generator>/, each searched recursively. Images that shaped the bundle
(its bank, its calibration) are left out by content hash, and so are copies. A condition makes the same change to every
image, real and generated alike.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mdmf_deploy.bundle.recipe import Part, Split, part_of, source_of
from mdmf_deploy.detection.rows import Row
from mdmf_deploy.errors import ImageError, UsageError
from mdmf_deploy.files import file_sha256, refuse_url
from mdmf_deploy.images.decode import decode, read
from mdmf_deploy.images.inputs import in_folder, uri
from mdmf_deploy.tasks.evaluate.metrics import RESAMPLES, Estimate, Figures, figures, wilson

if TYPE_CHECKING:
    from mdmf_deploy.bundle.bundle import Bundle
    from mdmf_deploy.detection.detector import Detector

AS_IS = "as is"
_STEP = re.compile(r"(jpeg|resize):(\d+(?:\.\d+)?)")
_MAX_SCALE = 4.0


@dataclass(frozen=True, slots=True)
class KnownImage:
    """One image whose class is known.

    sha256: None if its file cannot be read.
    generator: None if it is real.
    """

    path: Path
    sha256: str | None
    generator: str | None


@dataclass(frozen=True, slots=True)
class Condition:
    """A change made to every image before it is judged.

    steps: ("resize", factor) and ("jpeg", quality at 4:2:0), applied in this order. No steps leave the file as it is.
    """

    name: str
    steps: tuple[tuple[str, float], ...]

    @classmethod
    def parse(cls, text: str) -> Condition:
        """Read "as is", "jpeg:75", "resize:0.5", or several steps as "resize:0.5,jpeg:75".

        Raises UsageError naming the step that is none of these.
        """
        if text == AS_IS:
            return cls(text, ())
        return cls(text, tuple(_step(part.strip()) for part in text.split(",")))

    def source(self, path: Path) -> Path | bytes | NDArray[np.uint8]:
        """Return the input that the detector gets in place of the file, or the file itself if it cannot be decoded."""
        if not self.steps:
            return path
        try:
            image = Image.fromarray(decode(read(path)).pixels)
        except ImageError:
            return path
        data = None
        for name, amount in self.steps:
            if name == "resize":
                size = (max(1, round(image.width * amount)), max(1, round(image.height * amount)))
                image, data = image.resize(size, Image.Resampling.LANCZOS), None
            else:
                data = _jpeg(image, int(amount))
                image = Image.fromarray(decode(data).pixels)
        return np.asarray(image) if data is None else data


class Audit(msgspec.Struct, frozen=True, kw_only=True):
    """The fate of the data set's images before any is scored.

    judged: how many go to the detector, unreadable files included.
    in_bank, in_calibration, copies: images left out, as row URIs.
    other_parts: how many images the split left out.
    left_out: generators that have no image left, in order.
    """

    judged: int
    in_bank: tuple[str, ...]
    in_calibration: tuple[str, ...]
    copies: tuple[str, ...]
    other_parts: int
    left_out: tuple[str, ...]


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


def find_images(
    dataset: Path, whole_disk: bool = False, tell: Callable[[str], None] = lambda line: None
) -> list[KnownImage]:
    """Find and hash every image of real/ and of each visible folder in generated/, in path order.

    whole_disk, tell: as for images.inputs.expand.
    Raises UsageError if the folders are not laid out like this, or one of them holds no image.
    """
    refused = refuse_url(dataset)
    if refused is not None:
        raise UsageError(refused)
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
        raise UsageError(f"{uri(generated)}: expected one folder per generator in it")
    return [
        KnownImage(path, _sha256(path), generator)
        for generator, folder in folders.items()
        for path in in_folder(folder, whole_disk, tell).paths
    ]


def audit(
    images: Iterable[KnownImage], bundle: Bundle, split: Split | None = None, part: Part = "test"
) -> tuple[list[KnownImage], Audit]:
    """Return the images that may be judged, and an account of the others.

    split: keep only the images that it puts into `part`.
    Raises UsageError if the same bytes are called both real and generated.
    """
    banked, calibration = bundle.bank.hashes, bundle.calibration
    calibrated = frozenset(calibration.image_sha256) if calibration else frozenset()
    seen: dict[str, KnownImage] = {}
    generators: dict[str, None] = {}
    kept: list[KnownImage] = []
    dropped: dict[str, list[str]] = {"in_bank": [], "in_calibration": [], "copies": []}
    other_parts = 0
    for image in images:
        sha256 = image.sha256
        if image.generator is not None:
            generators[image.generator] = None
        if sha256 is None:
            # The detector gives an unreadable file a row of its own.
            kept.append(image)
            continue
        first = seen.setdefault(sha256, image)
        if (first.generator is None) != (image.generator is None):
            raise UsageError(f"{uri(first.path)} and {uri(image.path)} are the same bytes; is it real or generated?")
        if first is not image:
            dropped["copies"].append(uri(image.path))
        elif sha256 in banked:
            dropped["in_bank"].append(uri(image.path))
        elif sha256 in calibrated:
            dropped["in_calibration"].append(uri(image.path))
        elif split is not None and part_of(sha256, split, source_of(image.path, image.generator)) != part:
            other_parts += 1
        else:
            kept.append(image)
    lists = {name: tuple(uris) for name, uris in dropped.items()}
    remaining = {image.generator for image in kept}
    left_out = tuple(name for name in generators if name not in remaining)
    return kept, Audit(judged=len(kept), other_parts=other_parts, left_out=left_out, **lists)


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


def _step(text: str) -> tuple[str, float]:
    match = _STEP.fullmatch(text)
    if match:
        name, amount = match[1], float(match[2])
        if name == "resize" and 0 < amount <= _MAX_SCALE:
            return name, amount
        if name == "jpeg" and 1 <= amount <= 100 and amount.is_integer():
            return name, amount
    raise UsageError(
        f"condition {text!r}: expected {AS_IS!r}, jpeg:QUALITY (1 to 100), resize:FACTOR (up to {_MAX_SCALE:g}), "
        "or several joined by commas"
    )


def _jpeg(image: Image.Image, quality: int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality, subsampling="4:2:0")
    return buffer.getvalue()


def _sha256(path: Path) -> str | None:
    try:
        return file_sha256(path)
    except OSError:
        return None


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
