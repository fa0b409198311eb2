"""Find the images of a data set, and the class of each.

A data set is a folder with real/ and generated/<generator>/, each searched recursively.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mdmf_deploy.errors import UsageError
from mdmf_deploy.files import file_sha256, refuse_url
from mdmf_deploy.images.inputs import in_folder, uri


@dataclass(frozen=True, slots=True)
class KnownImage:
    """One image whose class is known.

    sha256: None if its file cannot be read.
    generator: None if it is real.
    kind: "photographs", "art" or "screenshots", where a folder or a list says so.
    compared_with: of a real image, the one generator it is compared with. None means every generator.
    """

    path: Path
    sha256: str | None
    generator: str | None
    kind: str | None = None
    compared_with: str | None = None


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


def _sha256(path: Path) -> str | None:
    try:
        return file_sha256(path)
    except OSError:
        return None
