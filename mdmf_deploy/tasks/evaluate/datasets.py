"""Find the images and videos of a data set, and the class of each.

Layouts, told apart by the names of folders:
  real/ and generated/<generator>/            ours; "fake" stands for "generated" too
  <generator>/[<class>/]0_real/ and 1_fake/   CNNDetection and its successors
  <generator>/[val/]nature/ and ai/           GenImage
  a .csv, .json or .jsonl file                path, label and perhaps a generator of each (labels.py)

In the second and third layout, a generator is compared with the real images that lie beside its own. A generator
without any is compared with the real images that lie beside no generator.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mdmf_deploy.errors import ImageError, UsageError
from mdmf_deploy.files import refuse_url
from mdmf_deploy.images.decode import read_unless_video, sha256_of_video
from mdmf_deploy.images.inputs import in_folder, uri
from mdmf_deploy.images.limits import DEFAULT_LIMITS
from mdmf_deploy.images.listing import is_named_like_input
from mdmf_deploy.tasks.evaluate.labels import LISTS, read_labels

Kind = Literal["photographs", "art", "screenshots"]

_REAL = ("real", "0_real", "nature")
_GENERATED = ("generated", "fake", "1_fake", "ai")
# At the top of a data set, the folders in these are generators.
_HOLDS_GENERATORS = ("generated", "fake")
_TRAINING, _JUDGING = ("train", "training"), ("val", "valid", "validation", "test", "testing")
_DEEPEST = 4
_WORDS: dict[Kind, str] = {
    "art": r"art(work)?s?|paintings?|illustrations?|drawings?|cartoons?|anime|comics?",
    "screenshots": r"screen(shot|cap)?s?|ui",
    "photographs": r"photo(graph)?s?|photography|cameras?",
}
_EXPECTED = (
    "expected real/ and generated/<generator>/ in it, <generator>/0_real and 1_fake, <generator>/nature and ai, or "
    "a .csv or .json list in its place"
)


@dataclass(frozen=True, slots=True)
class KnownImage:
    """One image or video whose class is known.

    sha256: None if its file cannot be read.
    generator: None if it is real.
    kind: "photographs", "art" or "screenshots", where a folder or a list says so.
    compared_with: of a real image, the one generator it is compared with. None means every generator without real
        images of its own.
    video: whether its first bytes are those of a video.
    """

    path: Path
    sha256: str | None
    generator: str | None
    kind: Kind | None = None
    compared_with: str | None = None
    video: bool = False


def find_images(
    dataset: Path, whole_disk: bool = False, tell: Callable[[str], None] = lambda line: None
) -> list[KnownImage]:
    """Find and hash every image and video of a data set, the real ones first, then generator by generator.

    whole_disk, tell: as for images.inputs.expand. `tell` also gets a line for each part that is left out.
    Raises UsageError if the data set has none of the layouts, a folder of a class holds no image, or a list is wrong.
    """
    refused = refuse_url(dataset)
    if refused is not None:
        raise UsageError(refused)
    if dataset.suffix.lower() in LISTS and not dataset.is_dir():
        return [
            _known(label.path, label.generator, kind_of((label.kind,) if label.kind else _below(label.path, dataset)))
            for label in read_labels(dataset)
        ]
    if not dataset.is_dir():
        raise UsageError(f"{uri(dataset)}: no such folder, and no .csv or .json list; {_EXPECTED}")
    folders = _judged(dataset, list(_class_folders(dataset, dataset, _DEEPEST)), tell)
    _check(dataset, folders)
    _tell_of_strays(folders, tell)
    images = []
    for folder in sorted(folders, key=lambda folder: (not folder.real, folder.generator or "", folder.path)):
        for path in in_folder(folder.path, whole_disk, tell).paths:
            kind = kind_of(path.relative_to(dataset).parts[:-1])
            if folder.real:
                images.append(_known(path, None, kind, folder.generator))
            else:
                images.append(_known(path, folder.generator, kind))
    return images


def kind_of(parts: tuple[str, ...]) -> Kind | None:
    """Return the kind that the names of folders say, the deepest first. A name counts by its whole words."""
    for part in reversed(parts):
        for kind, words in _WORDS.items():
            if re.search(rf"(?<![a-z])({words})(?![a-z])", part.lower()):
                return kind
    return None


@dataclass(frozen=True, slots=True)
class _ClassFolder:
    """A folder of images of one class.

    generator: of generated images, and of real ones that lie beside those of one generator.
    part: the name of the split it belongs to, such as "val".
    """

    path: Path
    real: bool
    generator: str | None
    part: str | None


def _class_folders(dataset: Path, folder: Path, depth: int) -> Iterator[_ClassFolder]:
    """Yield the class folders below a folder. Class folders are not searched for others."""
    folders = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    real = [path for path in folders if path.name.lower() in _REAL]
    generated = [path for path in folders if path.name.lower() in _GENERATED]
    if not real and not generated:
        if depth:
            for path in folders:
                yield from _class_folders(dataset, path, depth - 1)
        return
    parts = folder.relative_to(dataset).parts
    split = next((part.lower() for part in parts if part.lower() in (*_TRAINING, *_JUDGING)), None)
    named = next((part for part in parts if part.lower() not in (*_TRAINING, *_JUDGING)), None)
    alone = named or dataset.resolve().name
    for path in generated:
        makers = [one for one in sorted(path.iterdir()) if one.is_dir() and not one.name.startswith(".")]
        if named is None and _holds_generators(path):
            yield from (_ClassFolder(maker, False, maker.name, split) for maker in makers or [path])
        else:
            yield _ClassFolder(path, False, alone, split)
    for path in real:
        shared = named is None and all(map(_holds_generators, generated))
        yield _ClassFolder(path, True, None if shared or not generated else alone, split)


def _holds_generators(folder: Path) -> bool:
    return folder.name.lower() in _HOLDS_GENERATORS


def _judged(dataset: Path, folders: list[_ClassFolder], tell: Callable[[str], None]) -> list[_ClassFolder]:
    """Leave training parts out where a part to judge lies beside them."""
    if not any(folder.part in _JUDGING for folder in folders):
        return folders
    left_out = [folder for folder in folders if folder.part in _TRAINING]
    if left_out:
        names = ", ".join(sorted({folder.part or "" for folder in left_out}))
        tell(f"{uri(dataset)}: folders called {names} are left out, because others hold the part to judge")
    return [folder for folder in folders if folder not in left_out]


def _check(dataset: Path, folders: list[_ClassFolder]) -> None:
    """Raise UsageError unless both classes have a folder."""
    if not folders:
        raise UsageError(f"{uri(dataset)}: no folder says which images are real; {_EXPECTED}")
    for real, what, names in (
        (True, "real", "real, 0_real or nature"),
        (False, "generated", "generated, 1_fake or ai"),
    ):
        if not any(folder.real == real for folder in folders):
            raise UsageError(f"{uri(dataset)}: expected {what} images too, in a folder called {names}; {_EXPECTED}")


def _tell_of_strays(folders: list[_ClassFolder], tell: Callable[[str], None]) -> None:
    """Name files that lie beside the folders of generators, because nobody would miss them in a table."""
    parents = {folder.path.parent for folder in folders if _holds_generators(folder.path.parent)}
    for parent in sorted(parents):
        count = sum(is_named_like_input(path.name) for path in parent.iterdir() if not path.is_dir())
        if count:
            tell(
                f"{uri(parent)}: {count} files beside the generators' folders are left out; move images into a folder "
                "of their own"
            )


def _known(path: Path, generator: str | None, kind: Kind | None, compared_with: str | None = None) -> KnownImage:
    sha256, video = _sha256(path)
    return KnownImage(path, sha256, generator, kind, compared_with, video)


def _sha256(path: Path) -> tuple[str | None, bool]:
    """Return the hash of a file, or None if it cannot be read, and whether it is a video."""
    try:
        _, data = read_unless_video(path)
        if data is None:
            return sha256_of_video(path, DEFAULT_LIMITS), True
        return hashlib.sha256(data).hexdigest(), False
    except ImageError:
        return None, False


def _below(path: Path, dataset: Path) -> tuple[str, ...]:
    """Return the names of the folders between a list and an image, or nothing if the image lies elsewhere."""
    folder = dataset.parent
    return path.relative_to(folder).parts[:-1] if path.is_relative_to(folder) else ()
