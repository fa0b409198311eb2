"""A bundle: everything a verdict depends on, in one folder with a hash (DESIGN.md, "Bundle")."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from mdmf_deploy.errors import BundleError
from mdmf_deploy.files import atomic_folder, file_sha256
from mdmf_deploy.recipe import Limits, Precision, Preprocessing

if TYPE_CHECKING:
    from mdmf_deploy.bank import Bank
    from mdmf_deploy.calibration import Calibration

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"
MODEL = "model.onnx"
MODEL_DATA = "model.onnx.data"
BANK = "bank.safetensors"
PROBES = "probes.safetensors"
CALIBRATION = "calibration.json"


class ModelCard(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What the graph is: images (B, 3, crop, crop) -> signatures (B, pool * pool, signature).

    kept: layers of an int8 graph that stayed in fp32, by module name, for decisions to stay the same; most sensitive
        first.  Without any it is left out of the manifest, so that bundle_ids from before it hold.
    """

    backbone: str
    pool: int
    signature: int
    sigma: float
    precision: Precision
    opset: int
    kept: tuple[str, ...] = ()


class Provenance(msgspec.Struct, frozen=True, kw_only=True):
    """Where the bundle came from.  libraries: name -> version, of all that shaped its bytes."""

    recipe: str
    checkpoint_sha256: str
    tool: str
    decoder: str
    libraries: dict[str, str] = {}


class Verification(msgspec.Struct, frozen=True, kw_only=True):
    """One passed or failed gate: this bundle's model on one runtime against its source (mdmf_deploy.verifying).

    images: how many were compared.  score_spread: standard deviation of the source's scores over real images.
    max_score_change: in units of score_spread.  The other fields are named as in mdmf_deploy.recipe.Limits.
    images_per_second: the engine's own speed on that machine, batches of 8 (mdmf_deploy.pace); None if not measured.
    """

    runtime: str
    precision: Precision
    passed: bool
    reasons: tuple[str, ...]
    reference: str
    images: int
    max_signature_error: float
    mean_signature_error: float
    score_spread: float
    max_score_change: float
    rank_correlation: float
    threshold: float
    flipped_verdicts: float
    fpr_change: float
    images_per_second: float | None = None
    environment: dict[str, str] = {}


class Refusal(msgspec.Struct, frozen=True, kw_only=True):
    """A rung of the precision ladder that `--precision auto` tried and left, and why."""

    precision: Precision
    reason: str


class FileEntry(msgspec.Struct, frozen=True, kw_only=True):
    """Hash (SHA-256, hex) and size (bytes) of one file of the bundle."""

    sha256: str
    size: int

    @classmethod
    def of(cls, path: Path) -> FileEntry:
        """Hash a file. Raises OSError if it cannot be read."""
        return cls(sha256=file_sha256(path), size=path.stat().st_size)


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """manifest.json.  limits: the recipe's, so that `mdmf verify` needs nothing but the bundle."""

    schema_version: int = SCHEMA_VERSION
    name: str
    model: ModelCard
    preprocessing: Preprocessing
    provenance: Provenance
    limits: Limits = Limits()
    verification: tuple[Verification, ...] = ()
    refused: tuple[Refusal, ...] = ()
    files: dict[str, FileEntry] = {}

    @property
    def model_sha256(self) -> str:
        """One hash for model.onnx and its external data, which a bank must have been made with."""
        names = [name for name in (MODEL, MODEL_DATA) if name in self.files]
        return hashlib.sha256("".join(self.files[name].sha256 for name in names).encode()).hexdigest()

    @property
    def bundle_id(self) -> str:
        """sha256 over the canonical JSON of model, preprocessing, and the hashes of model and bank."""
        identity = {
            "model": msgspec.to_builtins(self.model),
            "preprocessing": msgspec.to_builtins(self.preprocessing),
            "files": {name: self.files[name].sha256 for name in (MODEL, MODEL_DATA, BANK) if name in self.files},
        }
        return hashlib.sha256(msgspec.json.encode(identity, order="sorted")).hexdigest()

    @property
    def names_a_gpu(self) -> bool:
        """Whether a verification record comes from a GPU."""
        return any("gpu" in record.environment for record in self.verification)

    def covered(self, gpu: str | None) -> tuple[tuple[str, str], ...]:
        """Return the (runtime, precision) pairs that verification covers, sorted, by the newest record of each.

        gpu: the name of the GPU at hand, or None. Records from any machine count, but those from a GPU count only on
            the same model: other models run other kernels, which round differently.
        """
        newest = {
            (record.runtime, record.precision): record.passed
            for record in self.verification
            if record.environment.get("gpu") in (None, gpu)
        }
        return tuple(sorted(pair for pair, passed in newest.items() if passed))


class Bundle:
    """An opened bundle whose every file has matched its hash.

    path: the folder.  manifest: what it says.  bank, calibration: read on first use.
    """

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path = path
        self.manifest = manifest

    @classmethod
    def open(cls, name_or_path: str | Path) -> Bundle:
        """Open a bundle by path, or by the name of one shipped in the package: "starter" (a folder: "./starter").

        Raises BundleError naming the file for a missing folder, a newer schema, a missing key, a file that is
        missing or does not match its hash, or parts that do not belong together.
        """
        path = _locate(name_or_path)
        manifest = _read_manifest(path / MANIFEST)
        for name, entry in manifest.files.items():
            _check_file(path, name, entry)
        for name in (MODEL, BANK):
            if name not in manifest.files:
                raise BundleError(f"{path / MANIFEST}: does not list {name}; export the bundle again")
        for extra in sorted(path.glob("model.onnx*")):
            # A graph may read weights from files beside it: those must be hashed and listed like the rest.
            if extra.name not in manifest.files:
                raise BundleError(f"{extra}: is not in the manifest; remove it, or copy the bundle again")
        return cls(path, manifest)

    @property
    def bundle_id(self) -> str:
        return self.manifest.bundle_id

    @property
    def covered(self) -> tuple[tuple[str, str], ...]:
        """The (runtime, precision) pairs that verification covers on this machine, sorted."""
        if not self.manifest.names_a_gpu:
            return self.manifest.covered(None)
        # Imported late: most bundles and machines have nothing to do with GPUs.
        from mdmf_deploy.hardware.gpu import this_gpu

        return self.manifest.covered(this_gpu())

    def covers(self, runtime: str, precision: str) -> bool:
        """Whether verification has passed for this pair, as far as it counts on this machine."""
        return (runtime, precision) in self.covered

    @property
    def model_path(self) -> Path:
        return self.path / MODEL

    @cached_property
    def bank(self) -> Bank:
        """The reference bank.  Raises BundleError if it was made with another model or bandwidth."""
        from mdmf_deploy.bank import Bank

        bank = Bank.from_bytes((self.path / BANK).read_bytes(), str(self.path / BANK))
        check_bank(bank, self.manifest, str(self.path / BANK))
        return bank

    @cached_property
    def calibration(self) -> Calibration | None:
        """The calibration, or None, holding for the pairs that verification covers now.

        Raises BundleError if it belongs to another bundle_id, CalibrationError if it is not a calibration.
        """
        if CALIBRATION not in self.manifest.files:
            return None
        from mdmf_deploy.calibration import Calibration, Pair

        calibration = Calibration.from_bytes((self.path / CALIBRATION).read_bytes(), str(self.path / CALIBRATION))
        if calibration.bundle_id != self.bundle_id:
            raise BundleError(
                f"{self.path / CALIBRATION}: made for bundle {calibration.bundle_id[:12]}, this is "
                f"{self.bundle_id[:12]}; run `mdmf calibrate` again"
            )
        return msgspec.structs.replace(calibration, holds_for=tuple(Pair(*pair) for pair in self.covered))

    def files(self) -> dict[str, bytes | Path]:
        """Where every file but the manifest lies, by name; as write_bundle takes them, with replacements as bytes."""
        return {name: self.path / name for name in self.manifest.files}


def shipped(name: str) -> Path:
    """Return the folder of a bundle shipped in the package, such as "starter". It may not exist."""
    return Path(__file__).resolve().parent / "bundles" / f"{name}.mdmf"


def shipped_name(bundle: Path) -> str | None:
    """Return the name of a bundle that lies where the package ships its own, or None if it lies elsewhere."""
    folder = bundle.resolve()
    return folder.stem if folder.parent == shipped(folder.stem).parent else None


def hint(command: str, bundle: Path, *rest: str) -> str:
    """Return `mdmf <command> <bundle> <rest>` to suggest. A shipped bundle gets -o, since it must not be changed."""
    name = shipped_name(bundle)
    words = (str(bundle), *rest) if name is None else (name, *rest, "-o", "mine.mdmf")
    return f"`mdmf {command} {' '.join(words)}`"


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
    """Raise BundleError if something else than a bundle is there."""
    if destination.exists() and not (destination / MANIFEST).is_file():
        raise BundleError(f"{destination} exists and is not a bundle; choose another -o")


def write_bundle(destination: Path, manifest: Manifest, files: Mapping[str, bytes | Path]) -> Bundle:
    """Write a whole bundle, replacing one at the destination only once the new one is complete and on disk.

    files: name -> contents, or a file to take them from, without the manifest; hashes and sizes are filled in here.
        A file is hard-linked where the file system can (weights take gigabytes), else copied.
    Raises BundleError if the destination is something else than a bundle, or cannot be written.
    """
    check_destination(destination)
    try:
        with atomic_folder(destination) as scratch:
            entries = {name: _place(scratch / name, contents) for name, contents in sorted(files.items())}
            manifest = msgspec.structs.replace(manifest, files=entries)
            _place(scratch / MANIFEST, msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n")
    except OSError as error:
        raise BundleError(f"{destination}: {error.strerror}; choose a folder you can write to") from error
    return Bundle(destination.resolve(), manifest)


def _locate(name_or_path: str | Path) -> Path:
    # A bare name is the package's first: a folder that happens to be called so must not take its place unseen.
    name = os.fspath(name_or_path)
    if name and os.path.basename(name) == name and shipped(name).is_dir():  # noqa: PTH119
        return shipped(name)
    path = Path(name_or_path)
    if path.is_dir():
        return path
    raise BundleError(f"bundle {str(name_or_path)!r} is not a folder; give a .mdmf folder, or 'starter'")


def _read_manifest(path: Path) -> Manifest:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise BundleError(f"{path}: {error.strerror}; is this folder a bundle?") from error

    class Version(msgspec.Struct):
        schema_version: int

    try:
        # The version first: a newer manifest may well lack what this version expects.
        version = msgspec.json.decode(data, type=Version).schema_version
        if version > SCHEMA_VERSION:
            raise BundleError(f"{path}: schema {version} is newer than {SCHEMA_VERSION}; upgrade mdmf-deploy")
        return msgspec.json.decode(data, type=Manifest)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BundleError(f"{path}: {error}; export the bundle again") from error


def _check_file(folder: Path, name: str, entry: FileEntry) -> None:
    path = folder / name
    if Path(name).name != name:
        raise BundleError(f"{folder / MANIFEST}: file name {name!r} leaves the bundle; do not trust it")
    try:
        digest = file_sha256(path)
    except OSError as error:
        raise BundleError(f"{path}: {error.strerror}; copy the bundle again, whole") from error
    if digest != entry.sha256:
        raise BundleError(
            f"{path}: hash {digest[:12]} is not the manifest's {entry.sha256[:12]}; copy the bundle again"
        )


def _place(path: Path, contents: bytes | Path) -> FileEntry:
    if isinstance(contents, bytes):
        path.write_bytes(contents)
    else:
        try:
            # Safe to share: no file of a bundle is ever changed in place.
            os.link(contents, path)
        except OSError:
            shutil.copyfile(contents, path)
    return FileEntry.of(path)
