"""Write a bundle as a model repository: four models, a README, and a list of the files with their hashes."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from string import Template

import msgspec

import mdmf_deploy
from mdmf_deploy.bundle.bundle import Bundle
from mdmf_deploy.bundle.calibration import Calibration, threshold
from mdmf_deploy.bundle.manifest import MODEL, MODEL_DATA, Manifest
from mdmf_deploy.errors import UsageError
from mdmf_deploy.files import atomic_folder, file_sha256
from mdmf_deploy.runtime.building.plans import PlanCard
from mdmf_deploy.tasks.triton.config import EXTRACTION, PREPROCESSING, REDUCTION, STEPS, config_text, configs
from mdmf_deploy.tasks.triton.graphs import check_reduction, preprocessing_graph, reduction_graph
from mdmf_deploy.tasks.triton.serving import Serving, caveat, check_plan, model_name, valid_calibration

LISTING = "mdmf.json"
_CONFIG = "config.pbtxt"
_PLAN = "model.plan"
_README = "README.md"

# The parts of README.md.in that depend on the device and the calibration.
_PLAN_ENGINE = (
    "a plan by TensorRT $version for $gpu, compute capability $compute_capability; use a Triton with that version"
)
_P_VALUE_ROW = "| `p_value` | FP64 [batch, 1] | how rarely a real photograph scores as high; NaN where the score is |\n"
_WITHHELD = "There are no p-values and no threshold, and so no verdicts: $caveat."
_BY_P_VALUE = """An image is `generated` if `p_value` is at most $fpr ($threshold), `uncertain` up to $review, and
otherwise `real`,"""
_BY_SCORE = """An image is `generated` if its score exceeds $threshold (a false positive rate of $fpr), `uncertain` if
it exceeds $suspect (a rate of $review), and otherwise `real`,"""
_VERDICTS = """$rule which means "not told apart from real photographs". These rates come from $count real photographs.
They hold for photographs like those, scored with $runtime $precision, which `mdmf verify` has passed$version.
They say nothing about other photographs: calibrate with your own, and write this repository again."""
_INT8 = """

Versions of ONNX Runtime round int8 in different places, which moves scores a little, so serve with the verified version
if you can. On x86 the CPU must have VNNI (AVX-512 VNNI or AVX-VNNI). Without it ONNX Runtime saturates int8 sums, and
Triton has no option to prevent that."""


@dataclass(frozen=True, slots=True)
class Written:
    """A model repository that has been written.

    name: the ensemble's.
    models: its steps, in order.
    runtime: extracts the signatures.
    caveat: why there are no verdicts, None if there are.
    rounding: largest difference between the exported reduction and ours, on images made of the bank's signatures.
    """

    path: Path
    name: str
    models: tuple[str, ...]
    runtime: str
    caveat: str | None
    rounding: float


def check_repository(destination: Path, bundle: Path, force: bool) -> None:
    """Raise UsageError unless the destination is free: missing, an empty folder, or with force a repository.

    bundle: where the bundle lies or will lie. Neither may contain the other, since both are replaced as a whole.
    """
    here, there = destination.resolve(), bundle.resolve()
    if here == there or here in there.parents or there in here.parents:
        raise UsageError(f"{destination} and the bundle {bundle} must lie apart; choose another folder for one of them")
    if not destination.exists() or (destination.is_dir() and not any(destination.iterdir())):
        return
    if not (destination / LISTING).is_file():
        raise UsageError(
            f"{destination} exists and was not written by `mdmf export --triton`; give a new folder (Triton takes "
            "--model-repository several times)"
        )
    if not force:
        raise UsageError(f"{destination} exists; give --force to replace it, or another folder")


def write_repository(bundle: Bundle, destination: Path, serving: Serving | None = None, force: bool = False) -> Written:
    """Write a Triton model repository that scores like the bundle. The folder appears only when it is complete.

    destination: the repository, a folder that holds nothing else.
    serving: None for the CPU.
    force: replace an older repository.

    Raises UsageError if something else is there, the folder cannot be written, the plan is not this bundle's, or the
    bundle's name cannot be a model's. Raises GateFailed if the exported reduction does not give our scores, and
    BankError if the bank does not fit into a graph.
    """
    check_repository(destination, bundle.path, force)
    serving = serving or Serving()
    name, manifest = model_name(bundle.manifest.name), bundle.manifest
    plan = None if serving.plan is None else check_plan(serving.plan, bundle, serving.max_batch)
    calibration, why = valid_calibration(bundle, serving), caveat(bundle, serving)
    # A p-value belongs to an image. Triton's batches are crops, and it may join those of several images.
    p_values = calibration if manifest.preprocessing.crops == 1 else None
    metadata = {"mdmf.bundle_id": bundle.bundle_id, "mdmf.tool": f"mdmf-deploy {mdmf_deploy.__version__}"}
    preprocessing = preprocessing_graph(manifest.preprocessing, metadata)
    reduction = reduction_graph(bundle.bank, manifest.model.pool**2, p_values, metadata)
    parameters = _parameters(bundle, serving, calibration, why)
    messages = configs(name, manifest, serving, p_values is not None, parameters)
    readme = _readme(manifest, serving, plan, calibration, why)
    try:
        with atomic_folder(destination) as scratch:
            for model, config in messages.items():
                (scratch / model / "1").mkdir(parents=True)
                (scratch / model / _CONFIG).write_text(config_text(config), encoding="utf-8")
            # An ensemble has no file but needs a version, and many copying tools skip empty folders.
            (scratch / name / "1" / ".keep").touch()
            (scratch / f"{name}_{PREPROCESSING}/1" / MODEL).write_bytes(preprocessing.SerializeToString())
            (scratch / f"{name}_{REDUCTION}/1" / MODEL).write_bytes(reduction.SerializeToString())
            _place_engine(bundle, serving, scratch / f"{name}_{EXTRACTION}/1")
            (scratch / _README).write_text(readme, encoding="utf-8")
            rounding = check_reduction(scratch / f"{name}_{REDUCTION}/1" / MODEL, bundle.bank, manifest.model.pool**2)
            (scratch / LISTING).write_bytes(_listing(scratch, parameters))
    except OSError as error:
        raise UsageError(f"{destination}: {error.strerror}; choose a folder you can write to") from error
    models = tuple(f"{name}_{step}" for step in STEPS)
    return Written(destination, name, models, serving.runtime, why, rounding)


def _place_engine(bundle: Bundle, serving: Serving, folder: Path) -> None:
    # Copy instead of linking: the server's files may get other owners and modes, and the bundle's must not change.
    if serving.plan is not None:
        shutil.copyfile(serving.plan, folder / _PLAN)
        return
    for name in (MODEL, MODEL_DATA):
        if name in bundle.manifest.files:
            shutil.copyfile(bundle.path / name, folder / name)


def _parameters(bundle: Bundle, serving: Serving, calibration: Calibration | None, why: str | None) -> dict[str, str]:
    model = bundle.manifest.model
    facts = {
        "name": bundle.manifest.name,
        "bundle_id": bundle.bundle_id,
        "tool": f"mdmf-deploy {mdmf_deploy.__version__}",
        "runtime": serving.runtime,
        "precision": model.precision,
        "crops": str(bundle.manifest.preprocessing.crops),
        "grid": f"{model.pool} x {model.pool}",
        "decoder": bundle.manifest.provenance.decoder,
    }
    if calibration is None:
        return facts | {"verdicts": f"withheld: {why}"}
    decides, suspect = calibration.thresholds[0].score, threshold(calibration.scores, calibration.review)
    return facts | {
        "fpr": repr(calibration.fpr),
        "threshold": "infinity" if decides is None else repr(decides),
        "review": repr(calibration.review),
        "review_threshold": "infinity" if suspect is None else repr(suspect),
        "calibration_images": str(len(calibration.scores)),
    }


def _readme(
    manifest: Manifest, serving: Serving, plan: PlanCard | None, calibration: Calibration | None, why: str | None
) -> str:
    """Fill README.md.in. Without a calibration, it says why there are no verdicts."""
    model, most = manifest.model, manifest.preprocessing.crops
    if calibration is None:
        verdicts = Template(_WITHHELD).substitute(caveat=why)
    else:
        verdicts = Template(_VERDICTS).substitute(
            rule=_rule(calibration, most),
            count=len(calibration.scores),
            runtime=serving.runtime,
            precision=model.precision,
            version=_verified_version(manifest, serving.runtime),
        )
    if serving.device == "cpu" and model.precision == "int8":
        verdicts += _INT8
    engine = "the bundle's graph, byte for byte"
    if plan is not None:
        engine = Template(_PLAN_ENGINE).substitute(msgspec.structs.asdict(plan.key))
    return Template(Path(__file__).with_name(f"{_README}.in").read_text(encoding="utf-8")).substitute(
        name=manifest.name,
        bundle_id=manifest.bundle_id,
        version=mdmf_deploy.__version__,
        options="--gpus=all " if serving.device == "gpu" else "",
        engine=engine,
        crop=manifest.preprocessing.crop,
        crops=most,
        max_batch=serving.max_batch,
        outputs='"score", "contributions"' + (', "p_value"' if calibration and most == 1 else ""),
        decoder=manifest.provenance.decoder,
        patches=model.pool**2,
        pool=model.pool,
        p_value_row=_P_VALUE_ROW if calibration and most == 1 else "",
        verdicts=verdicts,
    )


def _rule(calibration: Calibration, most: int) -> str:
    """Return the rule for verdicts, for images of at most this many crops."""
    decides, suspect = calibration.thresholds[0].score, threshold(calibration.scores, calibration.review)
    rates = {"fpr": f"{calibration.fpr:g}", "review": f"{calibration.review:g}"}
    if most > 1:
        limits = {
            name: "infinity" if t is None else f"{t:.6g}" for name, t in (("threshold", decides), ("suspect", suspect))
        }
        return Template(_BY_SCORE).substitute(rates | limits)
    reached = "too few photographs to reach this" if decides is None else f"that is, if `score` exceeds {decides:.6g}"
    return Template(_BY_P_VALUE).substitute(rates, threshold=reached)


def _verified_version(manifest: Manifest, runtime: str) -> str:
    for record in reversed(manifest.verification):
        if (record.runtime, record.precision) == (runtime, manifest.model.precision) and runtime in record.environment:
            return f" in version {record.environment[runtime]}"
    return ""


def _listing(folder: Path, parameters: dict[str, str]) -> bytes:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    files = {path.relative_to(folder).as_posix(): file_sha256(path) for path in paths}
    return msgspec.json.format(msgspec.json.encode({**parameters, "sha256": files}), indent=2) + b"\n"
