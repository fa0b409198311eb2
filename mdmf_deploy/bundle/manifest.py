"""A bundle's manifest: the model, its provenance, its verification records, and the hash of every file."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from mdmf_deploy.bundle.documents import (
    Bandwidth,
    Bytes,
    Count,
    Line,
    Name,
    Rate,
    Sha256,
    Sha256OrNone,
    converted,
    decoded,
)
from mdmf_deploy.bundle.recipe import GateLimits, Opset, Precision, Preprocessing
from mdmf_deploy.errors import BundleError
from mdmf_deploy.files import file_sha256

SCHEMA_VERSION = 2
# A bundle with thresholds for videos, which earlier versions cannot read. All others stay at SCHEMA_VERSION.
VIDEO_SCHEMA = 3
MANIFEST = "manifest.json"
MODEL = "model.onnx"
MODEL_DATA = "model.onnx.data"
BANK = "bank.safetensors"
PROBES = "probes.safetensors"
# A manifest with its records takes a few KB.
MOST_BYTES = 4 << 20
CALIBRATION = "calibration.json"

_Block = Annotated[int, Meta(ge=1, le=1000)]
# float32 values differ by less than twice their largest, and a spread of scores may be next to nothing.
_Error = Annotated[float, Meta(ge=0.0, le=1e39)]
_Score = Annotated[float, Meta(ge=-1e6, le=1e6)]

WeightsOrigin = Literal["official", "package", "unknown"]

# The names of the graph's tensors.
INPUT, OUTPUT = "images", "signatures"
# Larger weights go to model.onnx.data. Protobuf ends at 2 GiB, and the graph itself takes a few MB.
INLINE_BYTES = 1_900_000_000


class ModelCard(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """The graph: images (B, 3, crop, crop) -> signatures (B, pool * pool, signature).

    It decides and is part of the bundle_id, so a key that this version does not know is an error.

    blocks: the blocks whose tokens feed the head, counted from 1. Empty means the last one.
    kept: layers of an int8 graph that stay in fp32 to keep decisions the same, by module name, most sensitive first.
    Empty blocks or kept are not written, so that older bundle_ids stay valid.
    """

    backbone: Name
    pool: Annotated[int, Meta(ge=1, le=64)]
    signature: Annotated[int, Meta(ge=1, le=65_536)]
    sigma: Bandwidth
    precision: Precision
    opset: Opset
    blocks: tuple[_Block, ...] = ()
    kept: tuple[Line, ...] = ()


class WeightsSource(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The file that a backbone's weights were read from.

    name: of the package, or of the file itself.
    version, member, archive_sha256: of a package: its version, the file inside it, and the SHA-256 of the archive.
    sha256: of the file that holds the weights, in hex. It is the same inside an archive and on its own.
    origin: whether this hash is that of an official file, of a known package's, or not known (model/known_weights.py).
        "" if this was not recorded.
    """

    name: Line
    sha256: Sha256
    version: Line = ""
    member: Line = ""
    archive_sha256: Sha256OrNone = ""
    origin: WeightsOrigin | Literal[""] = ""

    def __str__(self) -> str:
        parts = (self.name, self.version, self.member and f"({self.member})")
        return " ".join(part for part in parts if part)


class Provenance(msgspec.Struct, frozen=True, kw_only=True):
    """The bundle's origin.

    libraries: name -> version of every library that shaped its bytes.
    backbone: the file that the backbone's weights were read from, at export or at the start of training. None for a
        backbone trained from scratch, or if the checkpoint does not say.
    smoke: whether the checkpoint is of a smoke run, so that the bundle is worth nothing.
    """

    recipe: Name
    checkpoint_sha256: Sha256OrNone
    tool: Line
    decoder: Line
    libraries: dict[Name, Line] = {}
    backbone: WeightsSource | None = None
    smoke: bool = False


class Verification(msgspec.Struct, frozen=True, kw_only=True):
    """One run of the gate (mdmf_deploy.tasks.verify): this bundle's model on one runtime, compared with its source.

    images: how many were compared.
    score_spread: standard deviation of the source's scores over real images.
    max_score_change: in units of score_spread. The other measures are named as in mdmf_deploy.bundle.recipe.GateLimits.
    images_per_second: the engine's own speed on that machine, with one crop an image, in batches of 8, or None if it
        was not measured (mdmf_deploy.runtime.images_per_second).
    """

    runtime: Name
    precision: Precision
    passed: bool
    reasons: tuple[Line, ...]
    reference: Line
    images: Count
    max_signature_error: _Error
    mean_signature_error: _Error
    score_spread: Annotated[float, Meta(ge=0.0, le=1e6)]
    max_score_change: _Error
    # Rounding may lift it a little above 1.
    rank_correlation: Annotated[float, Meta(ge=-1.001, le=1.001)]
    threshold: _Score
    flipped_verdicts: Rate
    fpr_change: Rate
    images_per_second: Annotated[float, Meta(ge=0.0, le=1e9)] | None = None
    environment: dict[Name, Annotated[str, Meta(max_length=20_000)]] = {}


class Refusal(msgspec.Struct, frozen=True, kw_only=True):
    """A precision that `--precision auto` tried and refused, with the reason."""

    precision: Precision
    reason: Line


class FileEntry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The SHA-256 (hex) and size (bytes) of one file of the bundle."""

    sha256: Sha256
    size: Bytes

    @classmethod
    def of(cls, path: Path) -> FileEntry:
        """Hash and measure a file. Raises OSError if it cannot be read."""
        return cls(sha256=file_sha256(path), size=path.stat().st_size)


class _Version(msgspec.Struct):
    schema_version: int


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """manifest.json.

    limits: copied from the recipe, so that `mdmf verify` needs only the bundle.
    verification: oldest first. The newest record of a (runtime, precision) pair counts.
    """

    schema_version: int = SCHEMA_VERSION
    name: Name
    model: ModelCard
    preprocessing: Preprocessing
    provenance: Provenance
    limits: GateLimits = GateLimits()
    verification: tuple[Verification, ...] = ()
    refused: tuple[Refusal, ...] = ()
    files: dict[Annotated[str, Meta(min_length=1, max_length=255)], FileEntry] = {}

    @classmethod
    def from_bytes(cls, data: bytes, name: str = MANIFEST) -> Manifest:
        """Read a manifest. Keys that do not decide may come from a later version of this schema, and are left out.

        Raises BundleError naming the file if the schema is newer, a key is missing, or a value is not in its range.
        """
        try:
            tree = decoded(data, MOST_BYTES)
            # Check the version first, because a newer manifest may lack a key that this version expects.
            version = converted(tree, _Version).schema_version
            if version > VIDEO_SCHEMA:
                raise BundleError(f"{name}: schema {version} is newer than {VIDEO_SCHEMA}; upgrade mdmf-deploy")
            if version < 1:
                raise BundleError(f"{name}: schema {version} is not known; export the bundle again")
            return converted(tree, cls)
        except ValueError as error:
            raise BundleError(f"{name}: {error}; export the bundle again") from error

    @property
    def model_sha256(self) -> str:
        """One hash of model.onnx and its external data. A bank names the model it was made with by this hash."""
        names = [name for name in (MODEL, MODEL_DATA) if name in self.files]
        return hashlib.sha256("".join(self.files[name].sha256 for name in names).encode()).hexdigest()

    @property
    def bundle_id(self) -> str:
        """SHA-256 over the canonical JSON of model, preprocessing, and the hashes of model and bank."""
        preprocessing = msgspec.to_builtins(self.preprocessing)
        if self.preprocessing.crops == 1:
            # Leave it out, so that ids from before there were crop plans stay valid.
            del preprocessing["crops"]
        identity = {
            "model": msgspec.to_builtins(self.model),
            "preprocessing": preprocessing,
            "files": {name: self.files[name].sha256 for name in (MODEL, MODEL_DATA, BANK) if name in self.files},
        }
        return hashlib.sha256(msgspec.json.encode(identity, order="sorted")).hexdigest()

    @property
    def calibration_id(self) -> str | None:
        """SHA-256 of calibration.json, or None without one. Verification does not change it."""
        entry = self.files.get(CALIBRATION)
        return None if entry is None else entry.sha256

    @property
    def names_a_gpu(self) -> bool:
        """Whether any verification record comes from a GPU."""
        return any("gpu" in record.environment for record in self.verification)

    def covered(self, gpu: str | None) -> tuple[tuple[str, str], ...]:
        """Return the (runtime, precision) pairs whose newest record has passed, sorted.

        gpu: the name of this machine's GPU, or None. A record from a GPU counts only on the same model of GPU, because
            other models run other kernels, which round differently. All other records count on every machine.
        """
        return tuple(sorted(pair for pair, record in self.newest(gpu).items() if record.passed))

    def newest(self, gpu: str | None) -> dict[tuple[str, str], Verification]:
        """Return the newest record of each (runtime, precision) pair that counts on a machine with this GPU."""
        return {
            (record.runtime, record.precision): record
            for record in self.verification
            if record.environment.get("gpu") in (None, gpu)
        }
