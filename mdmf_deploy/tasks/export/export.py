"""Turn a checkpoint into a bundle: trace, lower the precision, build the bank, verify, and only then write."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

import msgspec

import mdmf_deploy
from mdmf_deploy.bundle.bundle import Bundle, check_destination, write_bundle
from mdmf_deploy.bundle.manifest import (
    BANK,
    MODEL,
    PROBES,
    Manifest,
    ModelCard,
    Provenance,
    Refusal,
    Verification,
    WeightsSource,
)
from mdmf_deploy.bundle.probe_images import probe_crops, probes_to_bytes
from mdmf_deploy.bundle.recipe import Precision, Recipe
from mdmf_deploy.errors import GateFailed, ImageError, UsageError
from mdmf_deploy.images.decode import decoder_version, read
from mdmf_deploy.model.checkpoints import backbone_source, checkpoint_sha256, is_of_a_smoke_run, load_model
from mdmf_deploy.model.known_weights import described
from mdmf_deploy.model.onnx_weights import weights_source
from mdmf_deploy.model.pfs import MdmfModel, TorchEngine
from mdmf_deploy.runtime import images_per_second, installed, open_engine
from mdmf_deploy.runtime.ort import OrtEngine
from mdmf_deploy.scratch import scratch_folder
from mdmf_deploy.tasks.bank.build import BankReport
from mdmf_deploy.tasks.export.golden import check_golden
from mdmf_deploy.tasks.export.ladder import Candidate, Ladder
from mdmf_deploy.tasks.export.trace import trace
from mdmf_deploy.tasks.verify import SourceSignatures, extract_crops, signatures_by_hash

LEAST_REALS = 16
_LEAST_HELD, _MOST_HELD = 8, 128
_LIBRARIES = ("torch", "onnx", "onnxscript", "onnxruntime", "nncf", "numpy", "pillow")


@dataclass(frozen=True, slots=True)
class TrainedModel:
    """The files of a trained model.

    backbone_weights: the backbone's own file, for a checkpoint that does not hold it.
    golden: scores by the code that trained the head, for a recipe with a key map (golden.py).
    """

    checkpoint: Path
    recipe: Recipe
    backbone_weights: Path | None = None
    golden: Path | None = None


@dataclass(frozen=True, slots=True)
class Origin:
    """The files that a detector was loaded from.

    checkpoint_sha256: "" for a detector of no file.
    backbone: the file that the backbone's weights were read from, if it is known.
    smoke: whether the checkpoint is of a smoke run.
    """

    checkpoint_sha256: str = ""
    backbone: WeightsSource | None = None
    smoke: bool = False


@dataclass(frozen=True, slots=True)
class Exported:
    """The result of an export.

    bank: the report on its bank.
    verification: one record per runtime. The first is ONNX Runtime's, which passed.
    refused: the rungs that failed before it, each with its reason.
    """

    bundle: Bundle
    bank: BankReport
    verification: tuple[Verification, ...]
    refused: tuple[Refusal, ...]


def export(
    model: TrainedModel,
    reals: Sequence[Path],
    destination: Path,
    precision: Literal["auto"] | Precision = "auto",
    log: Callable[[str], None] = lambda text: None,
) -> Exported:
    """Export a trained model to a bundle with a bank of these real images, as export_detector does.

    Raises UsageError for a head trained elsewhere without golden scores. Raises CheckpointError if the checkpoint is
    not of this recipe's model, and the errors of check_golden and export_detector.
    """
    check_destination(destination)
    recipe, weights = model.recipe, model.backbone_weights
    if recipe.head.key_map and model.golden is None:
        raise UsageError(
            f"recipe {recipe.name!r} reads a head that was trained elsewhere (head.key_map); give --golden FILE with "
            "scores by its own code, so that its kernel, activation and norm are checked (docs/training.md)"
        )
    log(f"reading {model.checkpoint}")
    detector = load_model(model.checkpoint, recipe, weights)
    if model.golden is not None:
        engine = TorchEngine(detector)
        worst = check_golden(model.golden, engine, detector.sigma, recipe.head, recipe.preprocessing, reals)
        log(f"golden scores agree to {worst:.2g}")
    backbone = backbone_source(model.checkpoint) if weights is None else weights_source(weights)
    if backbone is not None:
        log(described(backbone))
    smoke = is_of_a_smoke_run(model.checkpoint)
    if smoke:
        log(f"{model.checkpoint} is of a smoke run, so the bundle's verdicts will be worth nothing")
    origin = Origin(checkpoint_sha256(model.checkpoint), backbone, smoke)
    return export_detector(detector, recipe, reals, destination, precision, origin, log)


def export_detector(
    detector: MdmfModel,
    recipe: Recipe,
    reals: Sequence[Path],
    destination: Path,
    precision: Literal["auto"] | Precision = "auto",
    origin: Origin = Origin(),
    log: Callable[[str], None] = lambda text: None,
    runtimes: Sequence[str] | None = None,
) -> Exported:
    """Write a verified bundle. Tracing changes the detector, which cannot be used afterwards.

    reals: image files. By content hash, the last fifth (8 to 128) is held back to verify on. The others become the
        bank and give int8 its ranges.
    precision: "auto" tries the recipe's export.precision, falls back to fp32, and keeps the reason. A named precision
        is tried alone.
    log: called with one line of progress at a time.
    runtimes: the runtimes to verify besides ONNX Runtime, which must pass. None means every installed one.
    Raises UsageError for too few reals, GateFailed if no rung passes, BundleError if the bundle cannot be written.
    Nothing is written unless a rung passes.
    """
    check_destination(destination)
    banked, held_back = split_reals(reals)

    # Tracing bakes and replaces parts of the detector. Extract with it before, so that those steps are verified too.
    log(f"extracting signatures of {len(held_back)} held-back images with PyTorch")
    source = TorchEngine(detector)
    held = SourceSignatures(held_back, signatures_by_hash(held_back, source, recipe.preprocessing))
    if len(held.by_hash) < _LEAST_HELD:
        raise UsageError(
            f"--reals: only {len(held.by_hash)} of {len(held_back)} held-back images are readable; expected 8, add more"
        )
    probes = probe_crops(recipe.preprocessing.crop)
    probe_signatures = extract_crops(probes, source, recipe.preprocessing)
    sigma = detector.sigma

    destination.parent.mkdir(parents=True, exist_ok=True)
    # Beside the destination, because /tmp may be too small for gigabytes of weights.
    with scratch_folder(destination) as scratch:
        log("tracing to ONNX")
        graph = scratch / "fp32" / MODEL
        graph.parent.mkdir()
        trace(detector, recipe, graph, _graph_metadata(recipe, sigma))
        # The graph's file holds the weights now. Free the detector's: a ViT-g has 4.5 GB, and a session needs as much.
        detector.to("meta")

        draft = _draft(recipe, sigma, origin)
        ladder = Ladder(graph, draft, banked, held, recipe.bank.max_signatures, log)
        candidate, refused = ladder.climb(rungs(recipe, precision))
        if candidate is None:
            why = "; ".join(f"{refusal.precision}: {refusal.reason}" for refusal in refused)
            raise GateFailed(f"{destination}: not written, the model misses its recipe's limits ({why})")
        records = verify_everywhere(ladder, candidate, installed() if runtimes is None else runtimes)

        manifest = msgspec.structs.replace(candidate.manifest, verification=records, refused=refused)
        files: dict[str, bytes | Path] = {name: candidate.graph.with_name(name) for name in manifest.files}
        files |= {BANK: candidate.bank.bank.to_bytes(), PROBES: probes_to_bytes(probe_signatures, probes)}
        return Exported(write_bundle(destination, manifest, files), candidate.bank, records, refused)


def split_reals(reals: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """Return the distinct images for the bank, and those held back: the last fifth by content hash, 8 to 128.

    Raises UsageError for fewer than 16 distinct files.
    """
    unique: dict[str, Path] = {}
    unreadable: list[Path] = []
    for path in reals:
        try:
            unique.setdefault(hashlib.sha256(read(path)).hexdigest(), path)
        except ImageError:
            unreadable.append(path)
    if len(unique) < LEAST_REALS:
        raise UsageError(f"--reals: {len(unique)} distinct images; expected at least {LEAST_REALS} real photographs")
    ordered = [unique[sha256] for sha256 in sorted(unique)]
    held = min(max(len(ordered) // 5, _LEAST_HELD), _MOST_HELD)
    # Keep unreadable files for the bank, whose report names them.
    return [*ordered[:-held], *unreadable], ordered[-held:]


def rungs(recipe: Recipe, precision: Literal["auto"] | Precision) -> list[Precision]:
    """Return the precisions to try, in order."""
    if precision != "auto":
        return [precision]
    # No fp16 between int8 and fp32: it only gains on GPUs, and a CPU runs it slower than either.
    return list(dict.fromkeys((recipe.export.precision, "fp32")))


def verify_everywhere(ladder: Ladder, candidate: Candidate, runtimes: Sequence[str]) -> tuple[Verification, ...]:
    """Return the candidate's own record, and one for every other runtime that opens and runs, with their speeds."""
    bundle = Bundle(candidate.graph.parent, candidate.manifest)
    records = [candidate.verification]
    with ExitStack() as stack:
        engines = [stack.enter_context(closing(open_engine(OrtEngine.name, bundle)))]
        for name in runtimes:
            if name == OrtEngine.name:
                continue
            ladder.log(f"verifying on {name}")
            try:
                engine = stack.enter_context(closing(open_engine(name, bundle)))
                record = ladder.judge(engine, candidate.manifest, candidate.bank.bank)
            # Runtimes share no exceptions. None of them may cost the record of ONNX Runtime, which has passed.
            except Exception as error:
                ladder.log(f"{name}: not verified, {' '.join(str(error).split())}")
                continue
            engines.append(engine)
            records.append(record)
            if not record.passed:
                ladder.log(f"{name}: refused, {'; '.join(record.reasons)}")
        rates = images_per_second(engines, candidate.manifest.preprocessing.crop)
    return tuple(
        msgspec.structs.replace(record, images_per_second=rate) for record, rate in zip(records, rates, strict=True)
    )


def _graph_metadata(recipe: Recipe, sigma: float) -> dict[str, str]:
    return {
        "mdmf.recipe": msgspec.json.encode(recipe, order="sorted").decode(),
        "mdmf.precision": "fp32",
        "mdmf.sigma": repr(sigma),
        "mdmf.tool": f"mdmf-deploy {mdmf_deploy.__version__}",
    }


def _draft(recipe: Recipe, sigma: float, origin: Origin) -> Manifest:
    """Return the fp32 graph's manifest, without files."""
    return Manifest(
        name=recipe.name,
        model=ModelCard(
            backbone=recipe.backbone.architecture,
            pool=recipe.head.pool,
            signature=recipe.head.signature,
            sigma=sigma,
            precision="fp32",
            opset=recipe.export.opset,
            blocks=recipe.backbone.blocks,
        ),
        preprocessing=recipe.preprocessing,
        provenance=Provenance(
            recipe=recipe.name,
            checkpoint_sha256=origin.checkpoint_sha256,
            backbone=origin.backbone,
            smoke=origin.smoke,
            tool=f"mdmf-deploy {mdmf_deploy.__version__}",
            decoder=decoder_version(),
            libraries={name: metadata.version(name) for name in _LIBRARIES},
        ),
        limits=recipe.verification,
    )
