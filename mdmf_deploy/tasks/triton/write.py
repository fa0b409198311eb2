"""Write a bundle as a model repository: four models, a README, and a list of the files with their hashes."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from string import Template

import msgspec

import mdmf_deploy
from mdmf_deploy.bundle.bundle import Bundle
from mdmf_deploy.bundle.calibration import Calibration, Group
from mdmf_deploy.bundle.conformal import threshold
from mdmf_deploy.bundle.manifest import MODEL, MODEL_DATA, Manifest
from mdmf_deploy.errors import UsageError
from mdmf_deploy.files import atomic_folder, failure, file_sha256
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
_WITHHELD = "There is no threshold, and so no verdict: $caveat."
_VERDICTS = """Thresholds depend on the size of the whole image, width x height:

| size | `generated` if the score exceeds | `uncertain` if it exceeds |
|---|---|---|
$groups

Any other image is `real`, which means "not told apart from real photographs". The false positive rate is at most $fpr,
and $review for both columns together, on average over draws of the $count real photographs that the thresholds come
from. With these photographs it may be higher (`mdmf inspect` says how much). The rates hold for photographs like those,
scored with $runtime $precision, which `mdmf verify` has passed$version. They say nothing about other photographs:
calibrate with your own, and write this repository again. The thresholds are those of calibration
`$calibration_id`. Keep that id beside the verdicts, as `mdmf detect` does.

**An image without texture is `uncertain` whatever its score**: a flat, a sky, a wall, a page of text. The models do not
measure this. `mdmf_deploy.images.evidence.evidence(crops(path))` does. Below $least there is too little."""
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
    metadata = {"mdmf.bundle_id": bundle.bundle_id, "mdmf.tool": f"mdmf-deploy {mdmf_deploy.__version__}"}
    preprocessing = preprocessing_graph(manifest.preprocessing, metadata)
    reduction = reduction_graph(bundle.bank, manifest.model.pool**2, metadata)
    parameters = _parameters(bundle, serving, calibration, why)
    messages = configs(name, manifest, serving, parameters)
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
        raise UsageError(failure(destination, error, "choose a folder you can write to")) from error
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
    groups = [
        {
            "above_megapixels": group.above,
            "up_to_megapixels": group.up_to,
            "images": len(group.scores),
            "threshold": group.decides,
            # Without a threshold all images of this size are uncertain, also those below the review rate's.
            "review_threshold": None if group.decides is None else threshold(group.scores, calibration.review),
        }
        for group in calibration.groups
    ]
    return facts | {
        "calibration_id": str(bundle.calibration_id),
        "fpr": repr(calibration.fpr),
        "review": repr(calibration.review),
        "least_evidence": repr(calibration.least_evidence),
        "size_groups": msgspec.json.encode(groups).decode(),
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
            groups="\n".join(_row(group, calibration.review) for group in calibration.groups),
            fpr=f"{calibration.fpr:g}",
            review=f"{calibration.review:g}",
            least=f"{calibration.least_evidence:g}",
            count=len(calibration.scores),
            calibration_id=manifest.calibration_id,
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
        decoder=manifest.provenance.decoder,
        patches=model.pool**2,
        pool=model.pool,
        verdicts=verdicts,
    )


def _row(group: Group, review: float) -> str:
    """Return a size group's line of the table of thresholds."""
    suspect = threshold(group.scores, review)
    if group.decides is None or suspect is None:
        return f"| {group.name} | never | always: too few calibration photographs of this size |"
    return f"| {group.name} | {group.decides:.6g} | {suspect:.6g} |"


def _verified_version(manifest: Manifest, runtime: str) -> str:
    for record in reversed(manifest.verification):
        if (record.runtime, record.precision) == (runtime, manifest.model.precision) and runtime in record.environment:
            return f" in version {record.environment[runtime]}"
    return ""


def _listing(folder: Path, parameters: dict[str, str]) -> bytes:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    files = {path.relative_to(folder).as_posix(): file_sha256(path) for path in paths}
    return msgspec.json.format(msgspec.json.encode({**parameters, "sha256": files}), indent=2) + b"\n"
