"""A bundle: everything a verdict depends on, in one folder with a hash (docs/bundle.md)."""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from mdmf_deploy.bundle import SHIPPED_BUNDLES
from mdmf_deploy.bundle.manifest import (
    BANK,
    CALIBRATION,
    MANIFEST,
    MODEL,
    VIDEO_SCHEMA,
    FileEntry,
    Manifest,
    Verification,
)
from mdmf_deploy.errors import BundleError
from mdmf_deploy.files import atomic_folder, failure, file_sha256, refuse_url

if TYPE_CHECKING:
    from mdmf_deploy.bundle.bank import Bank
    from mdmf_deploy.bundle.calibration import Calibration


class Bundle:
    """An opened bundle. Every file has matched its hash.

    path: the folder.  manifest: its manifest.json.  bank, calibration: read on first use.
    """

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path = path
        self.manifest = manifest

    def __repr__(self) -> str:
        return f"<Bundle {self.path} ({self.bundle_id[:12]})>"

    @classmethod
    def open(cls, name_or_path: str | Path) -> Bundle:
        """Open a bundle by its path, or by the name of one shipped in the package, such as "starter".

        A bare name means the shipped bundle first. Write "./starter" for a folder of that name.
        Raises BundleError naming the file if the folder or a file is missing, the schema is newer, a key is missing,
        a hash does not match, or the parts do not belong together.
        """
        path = _locate(name_or_path)
        manifest = _read_manifest(path / MANIFEST)
        for name, entry in manifest.files.items():
            _check_file(path, name, entry)
        for name in (MODEL, BANK):
            if name not in manifest.files:
                raise BundleError(f"{path / MANIFEST}: does not list {name}; export the bundle again")
        for extra in sorted(path.glob("model.onnx*")):
            # A graph may read weights from files beside it. They must be hashed and listed like all others.
            if extra.name not in manifest.files:
                raise BundleError(f"{extra}: is not in the manifest; remove it, or copy the bundle again")
        return cls(path, manifest)

    @property
    def bundle_id(self) -> str:
        return self.manifest.bundle_id

    @property
    def calibration_id(self) -> str | None:
        return self.manifest.calibration_id

    @property
    def covered(self) -> tuple[tuple[str, str], ...]:
        """The (runtime, precision) pairs that verification covers on this machine, sorted."""
        return self.manifest.covered(self._gpu)

    def covers(self, runtime: str, precision: str) -> bool:
        """Return whether verification of this pair has passed and counts on this machine."""
        return (runtime, precision) in self.covered

    def newest_record(self, runtime: str, precision: str) -> Verification | None:
        """Return the newest verification record of this pair that counts on this machine, or None."""
        return self.manifest.newest(self._gpu).get((runtime, precision))

    @property
    def _gpu(self) -> str | None:
        """This machine's GPU, if the records name any."""
        if not self.manifest.names_a_gpu:
            return None
        # Imported late, because most bundles and machines involve no GPU.
        from mdmf_deploy.hardware.gpu import this_gpu

        return this_gpu()

    @property
    def model_path(self) -> Path:
        return self.path / MODEL

    @cached_property
    def bank(self) -> Bank:
        """The reference bank. Raises BundleError if it was made with another model or bandwidth."""
        from mdmf_deploy.bundle.bank import Bank

        bank = Bank.from_bytes((self.path / BANK).read_bytes(), str(self.path / BANK))
        check_bank(bank, self.manifest, str(self.path / BANK))
        return bank

    @cached_property
    def calibration(self) -> Calibration | None:
        """The calibration, or None. It holds for the pairs that verification covers now.

        Raises BundleError if it belongs to another bundle_id, CalibrationError if it is not a calibration.
        """
        if CALIBRATION not in self.manifest.files:
            return None
        from mdmf_deploy.bundle.calibration import Calibration, Pair

        path = self.path / CALIBRATION
        calibration = Calibration.from_bytes(path.read_bytes(), str(path), self.manifest.schema_version)
        if calibration.bundle_id != self.bundle_id:
            raise BundleError(
                f"{path}: made for bundle {calibration.bundle_id[:12]}, this is "
                f"{self.bundle_id[:12]}; run `mdmf calibrate` again"
            )
        return msgspec.structs.replace(calibration, holds_for=tuple(Pair(*pair) for pair in self.covered))

    def files(self) -> dict[str, bytes | Path]:
        """Return the path of every file but the manifest, by name, for write_bundle. Replace entries by new bytes."""
        return {name: self.path / name for name in self.manifest.files}


def write_bundle(destination: Path, manifest: Manifest, files: Mapping[str, bytes | Path]) -> Bundle:
    """Write a whole bundle. A bundle at the destination is replaced only once the new one is complete and on disk.

    files: name -> contents, or the path of a file to copy. The manifest is not among them, and gets its hashes and
        sizes here. No two bundles share a file on disk: editing one would change the other, or the package.
    Raises BundleError if the destination exists and is not a bundle, or cannot be written.
    """
    check_destination(destination)
    try:
        with atomic_folder(destination) as scratch:
            replaced = destination.resolve()
            entries = {name: _place(scratch / name, contents, replaced) for name, contents in sorted(files.items())}
            manifest = msgspec.structs.replace(manifest, files=entries)
            (scratch / MANIFEST).write_bytes(msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n")
    except OSError as error:
        raise BundleError(failure(destination, error, "choose a folder you can write to")) from error
    return Bundle(destination.resolve(), manifest)


def check_bank(bank: Bank, manifest: Manifest, name: str) -> None:
    """Raise BundleError unless the bank was made with this model at this bandwidth."""
    if bank.model_sha256 != manifest.model_sha256:
        raise BundleError(
            f"{name}: its signatures come from another model ({bank.model_sha256[:12]}, this bundle's is "
            f"{manifest.model_sha256[:12]}); run `mdmf bank build`"
        )
    if bank.signatures.shape[1] != manifest.model.signature or bank.sigma != manifest.model.sigma:
        raise BundleError(
            f"{name}: expected width {manifest.model.signature} and bandwidth {manifest.model.sigma}, "
            f"got {bank.signatures.shape[1]} and {bank.sigma}; run `mdmf bank build`"
        )


def check_destination(destination: Path) -> None:
    """Raise BundleError if the destination exists and is not a bundle, or lies where nothing can be written."""
    if destination.exists() and not (destination / MANIFEST).is_file():
        raise BundleError(f"{destination} exists and is not a bundle; choose another -o")
    above = next(folder for folder in destination.absolute().parents if folder.exists())
    if not above.is_dir():
        raise BundleError(f"{destination}: {above} is a file; choose another -o")
    if not os.access(above, os.W_OK):
        raise BundleError(f"{destination}: {above} cannot be written to; choose another -o")


def shipped(name: str) -> Path:
    """Return the folder of a bundle shipped in the package, such as "starter". It may not exist."""
    return Path(__file__).resolve().parent / "shipped" / f"{name}.mdmf"


def shipped_name(bundle: Path) -> str | None:
    """Return the name of a bundle that lies where the package ships its own, or None if it lies elsewhere."""
    folder = bundle.resolve()
    return folder.stem if folder.parent == shipped(folder.stem).resolve().parent else None


def suggestion(command: str, bundle: Path, *rest: str) -> str:
    """Return `mdmf <command> <bundle> <rest>`, or `mdmf detect photos/ --bundle <bundle>`, ready for a shell.

    A shipped bundle that would change gets -o with a name that is free here. So does every bundle that is to be
    calibrated, because `mdmf calibrate` replaces none without --force.
    """
    if command == "detect":
        return shlex.join(("mdmf", "detect", "photos/", "--bundle", _argument(bundle), *rest))
    words: tuple[str, ...] = ("mdmf", command, _argument(bundle), *rest)
    if shipped_name(bundle) is not None or command == "calibrate":
        words = (*words, "-o", _free_name(bundle))
    return shlex.join(words)


def hint(command: str, bundle: Path, *rest: str) -> str:
    """Return the suggestion in backquotes, to stand in a sentence."""
    return f"`{suggestion(command, bundle, *rest)}`"


def _argument(bundle: Path) -> str:
    """Return the word that means this bundle on the command line."""
    word = shipped_name(bundle) or str(bundle)
    if shipped_name(bundle) is None and (word.startswith("-") or (word == bundle.name and shipped(word).is_dir())):
        # Otherwise it would mean an option, or the shipped bundle of this name.
        return f"./{word}"
    return word


def _free_name(bundle: Path) -> str:
    names = ("mine.mdmf", "new.mdmf", *(f"mine{n}.mdmf" for n in range(2, 1000)))
    return next((name for name in names if name != bundle.name and not Path(name).exists()), "NEW.mdmf")


def _locate(name_or_path: str | Path) -> Path:
    # A bare name means a shipped bundle first. A folder of the same name must not silently take its place.
    name = os.fspath(name_or_path)
    if name and os.path.basename(name) == name and shipped(name).is_dir():  # noqa: PTH119
        return shipped(name)
    path = Path(name_or_path)
    if path.is_dir():
        return path
    refused = refuse_url(name)
    if refused is not None:
        raise BundleError(f"bundle {refused}")
    known = " or ".join(map(repr, SHIPPED_BUNDLES))
    raise BundleError(f"bundle {str(name_or_path)!r} is not a folder; give a .mdmf folder, or {known}")


def _read_manifest(path: Path) -> Manifest:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise BundleError(f"{path}: {error.strerror}; is this folder a bundle?") from error

    class Version(msgspec.Struct):
        schema_version: int

    try:
        # Check the version first, because a newer manifest may lack a key that this version expects.
        version = msgspec.json.decode(data, type=Version).schema_version
        if version > VIDEO_SCHEMA:
            raise BundleError(f"{path}: schema {version} is newer than {VIDEO_SCHEMA}; upgrade mdmf-deploy")
        if version < 1:
            raise BundleError(f"{path}: schema {version} is not known; export the bundle again")
        return msgspec.json.decode(data, type=Manifest)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BundleError(f"{path}: {error}; export the bundle again") from error


def _check_file(folder: Path, name: str, entry: FileEntry) -> None:
    path = folder / name
    if Path(name).name != name:
        raise BundleError(f"{folder / MANIFEST}: file name {name!r} leaves the bundle; do not trust it")
    try:
        digest, size = file_sha256(path), path.stat().st_size
    except OSError as error:
        raise BundleError(f"{path}: {error.strerror}; copy the bundle again, whole") from error
    if (digest, size) != (entry.sha256, entry.size):
        raise BundleError(
            f"{path}: hash {digest[:12]} of {size} bytes is not the manifest's {entry.sha256[:12]} of {entry.size}; "
            "copy the bundle again"
        )


def _place(path: Path, contents: bytes | Path, replaced: Path) -> FileEntry:
    """Write, copy, or move one file. Only files of the bundle that is being replaced move."""
    if isinstance(contents, bytes):
        path.write_bytes(contents)
    elif not _moved(contents, path, replaced):
        shutil.copyfile(contents, path)
    return FileEntry.of(path)


def _moved(contents: Path, path: Path, replaced: Path) -> bool:
    """Return whether a second name could be given to a file whose only other name will go with the replaced bundle."""
    try:
        if contents.resolve().parent != replaced or contents.stat().st_nlink != 1:
            return False
        # Adding a record to a bundle of several gigabytes must not write its weights again.
        os.link(contents, path)
    except OSError:
        return False
    return True
