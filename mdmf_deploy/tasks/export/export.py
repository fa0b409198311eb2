"""From a checkpoint to a bundle: trace, lower the precision, build the bank, and verify before anything is written."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

import msgspec

import mdmf_deploy
from mdmf_deploy.bundle.bundle import Bundle, check_destination, write_bundle
from mdmf_deploy.bundle.manifest import BANK, MODEL, PROBES, Manifest, ModelCard, Provenance, Refusal, Verification
from mdmf_deploy.bundle.probe_images import probe_crops, probes_to_bytes
from mdmf_deploy.bundle.recipe import Precision, Recipe
from mdmf_deploy.errors import GateFailed, ImageError, QuantisationError, UsageError
from mdmf_deploy.images import decode as images
from mdmf_deploy.model.checkpoints import load_source, source_sha256
from mdmf_deploy.model.pfs import MdmfModel, TorchEngine
from mdmf_deploy.runtime import installed
from mdmf_deploy.tasks.bank.build import BankReport
from mdmf_deploy.tasks.export.ladder import Trials
from mdmf_deploy.tasks.export.trace import trace
from mdmf_deploy.tasks.verify import extract_crops, signatures_by_hash

LEAST_REALS = 16
_HELD_BACK = (8, 128)
_LIBRARIES = ("torch", "onnx", "onnxscript", "onnxruntime", "nncf", "numpy", "pillow")


@dataclass(frozen=True, slots=True)
class Exported:
    """What an export made.

    bank: its report.  verification: one record a runtime, ONNX Runtime's first, which passed.  refused: rungs that
    did not.
    """

    bundle: Bundle
    bank: BankReport
    verification: tuple[Verification, ...]
    refused: tuple[Refusal, ...]


def export(
    checkpoint: Path,
    recipe: Recipe,
    reals: Sequence[Path],
    destination: Path,
    precision: Literal["auto"] | Precision = "auto",
    log: Callable[[str], None] = lambda text: None,
    backbone_weights: Path | None = None,
) -> Exported:
    """Export a checkpoint to a bundle with a bank of these real images; see export_detector.

    backbone_weights: the backbone's own file, for a checkpoint of a PFS head alone.
    Raises CheckpointError if the checkpoint is not one of this recipe's model, else as export_detector.
    """
    check_destination(destination)
    log(f"reading {checkpoint}")
    detector = load_source(checkpoint, recipe, backbone_weights)
    sha256 = source_sha256(checkpoint, backbone_weights)
    return export_detector(detector, recipe, reals, destination, precision, sha256, log)


def export_detector(
    detector: MdmfModel,
    recipe: Recipe,
    reals: Sequence[Path],
    destination: Path,
    precision: Literal["auto"] | Precision = "auto",
    checkpoint_sha256: str = "",
    log: Callable[[str], None] = lambda text: None,
    runtimes: Sequence[str] | None = None,
) -> Exported:
    """Write a verified bundle; the detector is changed by tracing and cannot be used afterwards.

    reals: image files; by content hash, the last fifth (8 to 128) is held back to verify on, the rest is
        the bank and gives int8 its ranges.
    precision: "auto" tries the recipe's export.precision and falls back to fp32, keeping the reason; a named one is
        that or nothing.
    say: told what is going on, a line at a time.
    runtimes: what to verify besides ONNX Runtime, which must pass; None means all that are installed.
    Raises UsageError for too few reals, GateFailed if no rung passes, BundleError if the bundle cannot be written.
    Nothing is written unless a rung passes.
    """
    check_destination(destination)
    banked, held = split_reals(reals)
    preprocessing = recipe.preprocessing
    # The source signs before tracing bakes and replaces its parts, so that those steps are verified too.
    log(f"signing {len(held)} held-back images with PyTorch")
    source_engine = TorchEngine(detector)
    source = signatures_by_hash(held, source_engine, preprocessing)
    if len(source) < _HELD_BACK[0]:
        raise UsageError(
            f"--reals: only {len(source)} of {len(held)} held-back images are readable; expected 8, add more"
        )
    probes = probe_crops(preprocessing.crop)
    probe_signatures = extract_crops(probes, source_engine, preprocessing)
    sigma = detector.sigma
    destination.parent.mkdir(parents=True, exist_ok=True)
    # Beside the destination, so that gigabytes of weights are linked into the bundle rather than copied.
    scratch = Path(tempfile.mkdtemp(prefix=f".{destination.name}.export.", dir=destination.parent))
    try:
        log("tracing to ONNX")
        fp32 = trace(detector, recipe, _folder(scratch / "fp32") / MODEL, _graph_metadata(recipe, sigma))
        # From here on the weights are in the graph's file; a ViT-g holds 4.5 GB of them, and the session wants as much.
        detector.to("meta")
        draft = _draft(recipe, sigma, checkpoint_sha256)
        refused: list[Refusal] = []
        trials = Trials(fp32, draft, banked, held, source, recipe.bank.max_signatures, log)
        for rung in _ladder(recipe, precision):
            try:
                trial = trials.attempt(rung)
            except QuantisationError as error:
                reason = str(error)
            else:
                if trial.verification.passed:
                    log(f"{rung}: passed")
                    break
                reason = "; ".join(trial.verification.reasons)
            refused.append(Refusal(precision=rung, reason=reason))
            log(f"{rung}: refused, {reason}")
        else:
            why = "; ".join(f"{refusal.precision}: {refusal.reason}" for refusal in refused)
            raise GateFailed(f"{destination}: not written, the model misses its recipe's limits ({why})")
        records = trials.verify_everywhere(trial, installed() if runtimes is None else runtimes)
        manifest = msgspec.structs.replace(trial.manifest, verification=records, refused=tuple(refused))
        files: dict[str, bytes | Path] = {name: trial.graph.parent / name for name in manifest.files}
        files |= {BANK: trial.bank.bank.to_bytes(), PROBES: probes_to_bytes(probe_signatures, probes)}
        return Exported(write_bundle(destination, manifest, files), trial.bank, records, tuple(refused))
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def split_reals(reals: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """Distinct images for the bank, and those held back for verification: the last fifth by content hash, 8 to 128.

    Raises UsageError for fewer than 16 distinct files.
    """
    unique: dict[str, Path] = {}
    unreadable: list[Path] = []
    for path in reals:
        try:
            unique.setdefault(hashlib.sha256(images.read(path)).hexdigest(), path)
        except ImageError:
            unreadable.append(path)
    if len(unique) < LEAST_REALS:
        raise UsageError(f"--reals: {len(unique)} distinct images; expected at least {LEAST_REALS} real photographs")
    ordered = [unique[sha256] for sha256 in sorted(unique)]
    held = min(max(len(ordered) // 5, _HELD_BACK[0]), _HELD_BACK[1])
    # The bank's report names what cannot be read.
    return [*ordered[:-held], *unreadable], ordered[-held:]


def _ladder(recipe: Recipe, precision: Literal["auto"] | Precision) -> list[Precision]:
    if precision != "auto":
        return [precision]
    # No fp16 between int8 and fp32: it only gains on GPUs, and a CPU runs it slower than either.
    return list(dict.fromkeys((recipe.export.precision, "fp32")))


def _folder(path: Path) -> Path:
    path.mkdir()
    return path


def _graph_metadata(recipe: Recipe, sigma: float) -> dict[str, str]:
    return {
        "mdmf.recipe": msgspec.json.encode(recipe, order="sorted").decode(),
        "mdmf.precision": "fp32",
        "mdmf.sigma": repr(sigma),
        "mdmf.tool": f"mdmf-deploy {mdmf_deploy.__version__}",
    }


def _draft(recipe: Recipe, sigma: float, checkpoint_sha256: str) -> Manifest:
    """The fp32 graph's manifest, but for its files."""
    return Manifest(
        name=recipe.name,
        model=ModelCard(
            backbone=recipe.backbone.architecture,
            pool=recipe.head.pool,
            signature=recipe.head.signature,
            sigma=sigma,
            precision="fp32",
            opset=recipe.export.opset,
        ),
        preprocessing=recipe.preprocessing,
        provenance=Provenance(
            recipe=recipe.name,
            checkpoint_sha256=checkpoint_sha256,
            tool=f"mdmf-deploy {mdmf_deploy.__version__}",
            decoder=images.decoder_version(),
            libraries={name: metadata.version(name) for name in _LIBRARIES},
        ),
        limits=recipe.verification,
    )
