"""The manifest of a bundle: what the model is, where it came from, what was verified, and every file with its hash."""

from __future__ import annotations

import hashlib
from pathlib import Path

import msgspec

from mdmf_deploy.bundle.recipe import GateLimits, Precision, Preprocessing
from mdmf_deploy.files import file_sha256

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"
MODEL = "model.onnx"
MODEL_DATA = "model.onnx.data"
BANK = "bank.safetensors"
PROBES = "probes.safetensors"
CALIBRATION = "calibration.json"

# The names of the graph's tensors.
INPUT, OUTPUT = "images", "signatures"


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
    """One passed or failed gate: this bundle's model on one runtime against its source (mdmf_deploy.tasks.verify).

    images: how many were compared.  score_spread: standard deviation of the source's scores over real images.
    max_score_change: in units of score_spread.  The other fields are named as in mdmf_deploy.bundle.recipe.GateLimits.
    images_per_second: the engine's own speed on that machine, batches of 8 (runtime/speed.py); None if not measured.
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
    limits: GateLimits = GateLimits()
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


# protobuf stops at 2 GiB; the graph itself takes a few MB of that.
INLINE_BYTES = 1_900_000_000
