"""The images of a model card: where they come from, which of them were kept out of training, and their scores."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from mdmf_deploy.bundle.calibration import Calibration, Group
from mdmf_deploy.bundle.conformal import threshold
from mdmf_deploy.detection.detector import Detector
from mdmf_deploy.detection.feed import Extraction
from mdmf_deploy.detection.pipeline import extract
from mdmf_deploy.detection.sources import Source
from mdmf_deploy.errors import ImageError, UsageError
from mdmf_deploy.files import file_sha256
from mdmf_deploy.images.decode import decode, read
from mdmf_deploy.images.inputs import expand, in_folder, uri
from mdmf_deploy.mmd import score_images

T = TypeVar("T")
Kept = Literal["held out", "unseen files", "trained on"]
GENERATED, FULLSIZE, PHOTOGRAPHS, ART, SCREENSHOTS = (
    "generated",
    "fullsize photographs",
    "photographs",
    "art",
    "screenshots",
)


@dataclass(frozen=True, slots=True)
class Folder:
    """The images of one source, or of the part of it that was kept out of training.

    name: "real/NAME", "generated/NAME" or "fullsize".
    kept: "held out" if no image of the source was trained on, "unseen files" if these were not, else "trained on".
    """

    name: str
    kept: Kept
    paths: tuple[Path, ...]

    @property
    def kind(self) -> str:
        """The kind of image, by the name of the source: art_* is art, screen_* are screenshots."""
        top, _, source = self.name.partition("/")
        if top in (GENERATED, "fullsize"):
            return GENERATED if top == GENERATED else FULLSIZE
        return {"art": ART, "screen": SCREENSHOTS}.get(source.split("_")[0], PHOTOGRAPHS)

    def at_most(self, count: int | None) -> Folder:
        """Return the folder with at most `count` images, spread evenly."""
        return self if count is None else Folder(self.name, self.kept, tuple(spread(self.paths, count)))


@dataclass(frozen=True, slots=True, eq=False)
class Scored:
    """One image with its score.

    flagged: whether its score is above the threshold of its size, or, where its size has too few calibration images for
        one, above that of all calibration images. None if the bundle has no thresholds for this runtime.
    calibrates: whether it is in the calibration. Then the calibration without it has judged it.
    signatures: (n, N, d) of its n crops, or None if they were not asked for.
    """

    folder: str
    kind: str
    kept: Kept
    score: float
    flagged: bool | None
    verdict: str
    reason: str | None
    calibrates: bool
    width: int
    height: int
    format: str
    signatures: NDArray[np.float32] | None


def spread(values: Sequence[T], count: int) -> list[T]:
    """Return at most `count` of the values, evenly spread."""
    if len(values) <= count:
        return list(values)
    return [values[n] for n in np.linspace(0, len(values) - 1, count).round().astype(int)]


def find_folders(data: Path, held_out: Sequence[str], unseen: Sequence[Path]) -> list[Folder]:
    """Return the sources in real/, generated/ and fullsize/ of a data set, each with what was kept out of training.

    held_out: sources, such as "generated/sdxl" or "sdxl". Also takes patterns such as "real/*". "fullsize" always is.
    unseen: lists of files, absolute or relative to `data`, that were not trained on.
    Raises UsageError if a folder is missing, or a name or file is not in the data set.
    """
    tops = [name for name in ("real", GENERATED, "fullsize") if name != "fullsize" or (data / name).is_dir()]
    files: dict[str, list[Path]] = {}
    for top in tops:
        for path in in_folder(data / top).paths:
            parts = path.relative_to(data).parts
            files.setdefault("/".join(parts[: 2 if len(parts) > 2 else 1]), []).append(path)
    for pattern in held_out:
        if not any(_matches(name, pattern) for name in files):
            raise UsageError(f"held-out source {pattern!r} is not in {uri(data)}; name one of {', '.join(files)}")
    by_place = {path.resolve(): path for paths in files.values() for path in paths}
    kept_out = set()
    for listing in unseen:
        for path in expand([f"@{listing}"]).paths:
            place = (data / path).resolve()
            if place not in by_place:
                raise UsageError(f"{uri(listing)}: {uri(path)} is not in {uri(data)}; list files of its folders")
            kept_out.add(by_place[place])
    folders = []
    for name, paths in files.items():
        if name == "fullsize" or any(_matches(name, pattern) for pattern in held_out):
            folders.append(Folder(name, "held out", tuple(paths)))
            continue
        chosen = tuple(path for path in paths if path in kept_out)
        folders.append(Folder(name, "unseen files", chosen))
        folders.append(Folder(name, "trained on", tuple(path for path in paths if path not in kept_out)))
    return [folder for folder in folders if folder.paths]


def without(folders: Iterable[Folder], banked: frozenset[str]) -> tuple[list[Folder], int]:
    """Leave out copies, and images of the bank from those that may be judged. Return the rest and how many are missing.

    An image that was trained on counts as such, wherever its copies lie.
    """
    seen: set[str] = set()
    rest, left_out = [], 0
    for folder in sorted(folders, key=lambda folder: folder.kept != "trained on"):
        seen |= banked if folder.kept != "trained on" else set()
        paths = []
        for path in folder.paths:
            sha256 = file_sha256(path)
            if sha256 not in seen:
                paths.append(path)
            seen.add(sha256)
        left_out += len(folder.paths) - len(paths)
        if paths:
            rest.append(Folder(folder.name, folder.kept, tuple(paths)))
    return rest, left_out


class Scorer:
    """Score images as a detector does, and keep their signatures if asked to."""

    def __init__(self, detector: Detector) -> None:
        self.bundle, self.engine = detector.bundle, detector.engine
        self._reduction = detector.reduction
        covered = self.bundle.covers(self.engine.name, self.engine.precision)
        self._calibration = self.bundle.calibration if covered else None

    def __call__(self, folder: Folder, sources: Iterable[Source], keep: bool = False) -> list[Scored | None]:
        """Score images of a folder, in order. None stands for an image that cannot be read."""
        preprocessing = self.bundle.manifest.preprocessing
        return [
            None if one.signatures is None else self._scored(folder, one, one.signatures, keep)
            for one in extract(sources, self.engine, preprocessing)
        ]

    def _scored(self, folder: Folder, one: Extraction, signatures: NDArray[np.float32], keep: bool) -> Scored:
        [(score, _)] = score_images(self._reduction, [signatures], self.bundle.bank)
        width, height = one.width or 0, one.height or 0
        flagged: bool | None = None
        verdict, reason, calibrates = "uncalibrated", None, False
        if self._calibration is not None:
            calibrates = one.sha256 in self._calibration.image_sha256
            calibration = leave_one_out(self._calibration, one.sha256) if calibrates else self._calibration
            limit = calibration.group(width * height).decides
            limit = threshold(calibration.scores, calibration.fpr) if limit is None else limit
            flagged = limit is not None and score > limit
            engine = self.engine
            judged = calibration.judge(score, one.evidence or 0.0, width * height, engine.name, engine.precision)
            verdict, reason = judged.verdict, judged.reason
        return Scored(
            folder=folder.name,
            kind=folder.kind,
            kept=folder.kept,
            score=score,
            flagged=flagged,
            verdict=verdict,
            reason=reason,
            calibrates=calibrates,
            width=width,
            height=height,
            format=one.format or "",
            signatures=signatures if keep else None,
        )


def leave_one_out(calibration: Calibration, sha256: str) -> Calibration:
    """Return the calibration without one of its images. That image's p-value is then as valid as a new image's."""
    groups = tuple(
        Group.of(
            [pair for pair in zip(group.scores, group.image_sha256, strict=True) if pair[1] != sha256],
            calibration.fprs,
            group.above,
            group.up_to,
        )
        for group in calibration.groups
    )
    return msgspec.structs.replace(calibration, groups=groups)


def _resized(image: Image.Image, factor: float) -> Image.Image:
    size = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
    return image.resize(size, Image.Resampling.LANCZOS)


def _encoded(image: Image.Image, format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


CHANGES: dict[str, Callable[[Image.Image], Source]] = {
    "JPEG 75": lambda image: _encoded(image, "JPEG", quality=75, subsampling="4:2:0"),
    "JPEG 50": lambda image: _encoded(image, "JPEG", quality=50, subsampling="4:2:0"),
    "WebP 75": lambda image: _encoded(image, "WEBP", quality=75),
    "resized by 0.5": lambda image: np.asarray(_resized(image, 0.5)),
    "resized by 2": lambda image: np.asarray(_resized(image, 2.0)),
    "blurred, sigma 1": lambda image: np.asarray(image.filter(ImageFilter.GaussianBlur(1))),
}
"""The conditions, each the same change to every image."""


def changed(path: Path, change: Callable[[Image.Image], Source]) -> Source:
    """Return the image after a change, or the file itself if it cannot be decoded."""
    try:
        return change(Image.fromarray(decode(read(path)).pixels))
    except ImageError:
        return path


def _matches(name: str, pattern: str) -> bool:
    return fnmatchcase(name, pattern) or fnmatchcase(name.partition("/")[2], pattern)
