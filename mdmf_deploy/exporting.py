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
import numpy as np
from numpy.typing import NDArray

import mdmf_deploy
from mdmf_deploy import images
from mdmf_deploy.bank import Bank
from mdmf_deploy.banking import BankReport, build_bank
from mdmf_deploy.bundle import (
    BANK,
    MODEL,
    MODEL_DATA,
    PROBES,
    Bundle,
    FileEntry,
    Manifest,
    ModelCard,
    Provenance,
    Refusal,
    Verification,
    check_destination,
    write_bundle,
)
from mdmf_deploy.errors import GateFailed, ImageError, UsageError
from mdmf_deploy.model.checkpoints import file_sha256, load_source, source_sha256
from mdmf_deploy.model.pfs import Detector
from mdmf_deploy.pipeline import sign
from mdmf_deploy.probes import probe_crops, probes_to_bytes
from mdmf_deploy.quantising import to_fp16, to_int8
from mdmf_deploy.recipe import Precision, Recipe
from mdmf_deploy.runtime.ort import OrtEngine
from mdmf_deploy.runtime.torch_reference import TorchEngine
from mdmf_deploy.tracing import trace
from mdmf_deploy.verifying import compare, sign_crops

LEAST_REALS = 16
_HELD_BACK = (8, 128)
_INT8_IMAGES = 64
_LIBRARIES = ("torch", "onnx", "onnxscript", "onnxruntime", "numpy", "pillow")


@dataclass(frozen=True, slots=True)
class Exported:
    """What an export made.  bank: its report; verification: the gate it passed; refused: rungs that did not."""

    bundle: Bundle
    bank: BankReport
    verification: Verification
    refused: tuple[Refusal, ...]


def export(
    checkpoint: Path,
    recipe: Recipe,
    reals: Sequence[Path],
    destination: Path,
    precision: Literal["auto"] | Precision = "auto",
    say: Callable[[str], None] = lambda text: None,
    backbone_weights: Path | None = None,
) -> Exported:
    """Export a checkpoint to a bundle with a bank of these real images; see export_detector.

    backbone_weights: the backbone's own file, for a checkpoint of a PFS head alone.
    Raises CheckpointError if the checkpoint is not one of this recipe's model, else as export_detector.
    """
    check_destination(destination)
    say(f"reading {checkpoint}")
    detector = load_source(checkpoint, recipe, backbone_weights)
    sha256 = source_sha256(checkpoint, backbone_weights)
    return export_detector(detector, recipe, reals, destination, precision, sha256, say)


def export_detector(
    detector: Detector,
    recipe: Recipe,
    reals: Sequence[Path],
    destination: Path,
    precision: Literal["auto"] | Precision = "auto",
    checkpoint_sha256: str = "",
    say: Callable[[str], None] = lambda text: None,
) -> Exported:
    """Write a verified bundle; the detector is changed by tracing and cannot be used afterwards.

    reals: image files; by content hash, the last fifth (8 to 128) is held back to verify on, the rest is
        the bank and gives int8 its ranges.
    precision: "auto" tries the recipe's export.precision and falls back to fp32, keeping the reason; a named one is
        that or nothing.
    say: told what is going on, a line at a time.
    Raises UsageError for too few reals, GateFailed if no rung passes, BundleError if the bundle cannot be written.
    Nothing is written unless a rung passes.
    """
    check_destination(destination)
    banked, held = split_reals(reals)
    preprocessing = recipe.preprocessing
    # The source signs before tracing bakes and replaces its parts, so that those steps are verified too.
    say(f"signing {len(held)} held-back images with PyTorch")
    source_engine = TorchEngine(detector)
    source = {s.sha256: s.signatures for s in sign(held, source_engine, preprocessing) if s.signatures is not None}
    if len(source) < _HELD_BACK[0]:
        raise UsageError(
            f"--reals: only {len(source)} of {len(held)} held-back images are readable; expected 8, add more"
        )
    probes = probe_crops(preprocessing.crop)
    probe_signatures = sign_crops(probes, source_engine, preprocessing)
    sigma = detector.sigma
    destination.parent.mkdir(parents=True, exist_ok=True)
    # Beside the destination, so that gigabytes of weights are linked into the bundle rather than copied.
    scratch = Path(tempfile.mkdtemp(prefix=f".{destination.name}.export.", dir=destination.parent))
    try:
        say("tracing to ONNX")
        fp32 = trace(detector, recipe, _folder(scratch / "fp32") / MODEL, _graph_metadata(recipe, sigma))
        # From here on the weights are in the graph's file; a ViT-g holds 4.5 GB of them, and the session wants as much.
        detector.to("meta")
        refused: list[Refusal] = []
        for rung in _ladder(recipe, precision):
            graph = _lower(fp32, rung, recipe, banked)
            manifest = _manifest(recipe, destination, sigma, rung, checkpoint_sha256, graph)
            say(f"{rung}: signing {len(banked)} bank images and {len(held)} held-back ones with ONNX Runtime")
            engine = OrtEngine(Bundle(graph.parent, manifest))
            report = build_bank(manifest, engine, banked, recipe.bank.max_signatures)
            verification = _verify(manifest, engine, held, source, report.bank)
            engine.close()
            if verification.passed:
                say(f"{rung}: passed")
                break
            refused.append(Refusal(precision=rung, reason="; ".join(verification.reasons)))
            say(f"{rung}: refused, {refused[-1].reason}")
        else:
            why = "; ".join(f"{refusal.precision}: {refusal.reason}" for refusal in refused)
            raise GateFailed(f"{destination}: not written, the model misses its recipe's limits ({why})")
        manifest = msgspec.structs.replace(manifest, verification=(verification,), refused=tuple(refused))
        files: dict[str, bytes | Path] = {name: graph.parent / name for name in manifest.files}
        files |= {BANK: report.bank.to_bytes(), PROBES: probes_to_bytes(probe_signatures, probes)}
        return Exported(write_bundle(destination, manifest, files), report, verification, tuple(refused))
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


def _lower(fp32: Path, precision: Precision, recipe: Recipe, banked: Sequence[Path]) -> Path:
    if precision == "fp32":
        return fp32
    graph = _folder(fp32.parent.parent / precision) / MODEL
    if precision == "fp16":
        return to_fp16(fp32, graph)
    return to_int8(fp32, graph, _crops(banked[:_INT8_IMAGES], recipe))


def _crops(paths: Sequence[Path], recipe: Recipe) -> NDArray[np.float32]:
    preprocessing = recipe.preprocessing
    crops = []
    for path in paths:
        try:
            crops.append(images.center_crop(images.decode(images.read(path)).pixels, preprocessing.crop).pixels)
        except ImageError:
            continue
    return images.normalise(np.concatenate(crops), preprocessing)


def _verify(
    manifest: Manifest, engine: OrtEngine, held: Sequence[Path], source: dict[str, NDArray[np.float32]], bank: Bank
) -> Verification:
    exported = {s.sha256: s.signatures for s in sign(held, engine, manifest.preprocessing) if s.signatures is not None}
    return compare(
        np.stack(list(source.values())),
        np.stack([exported[sha256] for sha256 in source]),
        bank,
        manifest.limits,
        engine,
        reference=f"PyTorch, {len(source)} real images held back from the bank",
    )


def _graph_metadata(recipe: Recipe, sigma: float) -> dict[str, str]:
    return {
        "mdmf.recipe": msgspec.json.encode(recipe, order="sorted").decode(),
        "mdmf.precision": "fp32",
        "mdmf.sigma": repr(sigma),
        "mdmf.tool": f"mdmf-deploy {mdmf_deploy.__version__}",
    }


def _manifest(
    recipe: Recipe, destination: Path, sigma: float, precision: Precision, checkpoint_sha256: str, graph: Path
) -> Manifest:
    entries = {}
    for name in (MODEL, MODEL_DATA):
        path = graph.parent / name
        if path.exists():
            entries[name] = FileEntry(sha256=file_sha256(path), size=path.stat().st_size)
    return Manifest(
        name=recipe.name,
        model=ModelCard(
            backbone=recipe.backbone.architecture,
            pool=recipe.head.pool,
            signature=recipe.head.signature,
            sigma=sigma,
            precision=precision,
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
        files=entries,
    )
