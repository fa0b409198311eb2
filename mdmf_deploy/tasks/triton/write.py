"""A bundle -> a model repository: four models, a README, and a list of what is in it."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

import mdmf_deploy
from mdmf_deploy.bundle.bank import Bank
from mdmf_deploy.bundle.bundle import Bundle
from mdmf_deploy.bundle.calibration import Calibration
from mdmf_deploy.bundle.manifest import MODEL, MODEL_DATA
from mdmf_deploy.errors import GateFailed, UsageError
from mdmf_deploy.files import atomic_folder, file_sha256
from mdmf_deploy.mmd.cpu import CpuReduction
from mdmf_deploy.tasks.triton.config import PREPROCESSING, REDUCTION, SIGNING, STEPS, configs, text
from mdmf_deploy.tasks.triton.graphs import CONTRIBUTIONS, SIGNATURES, preprocessing_graph, reduction_graph
from mdmf_deploy.tasks.triton.readme import readme
from mdmf_deploy.tasks.triton.serving import Serving, caveat, check_plan, holding, model_name

LISTING = "mdmf.json"
_CONFIG = "config.pbtxt"
_PLAN = "model.plan"


@dataclass(frozen=True, slots=True)
class Written:
    """What was written.

    name: the ensemble.  models: its steps, in order.  runtime: what signs crops.
    caveat: why there are no p-values; None if there are.
    rounding: how far the reduction is from ours at most, in ONNX Runtime, on images made of the bank's signatures.
    """

    path: Path
    name: str
    models: tuple[str, ...]
    runtime: str
    caveat: str | None
    rounding: float


def check_repository(destination: Path, bundle: Path, force: bool) -> None:
    """Raise UsageError unless there is nothing, an empty folder, or (with force) a repository that this wrote.

    bundle: where the bundle lies or will lie; one may not be part of the other, since both are replaced as a whole.
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
    """Write a Triton model repository that scores as the bundle does; nothing is there before all of it is.

    destination: the repository, a folder that holds nothing else.  serving: None is on the CPU.
    force: replace a repository that this wrote.
    Raises UsageError if something else is there, it cannot be written, the plan is none of this bundle's, or the
    bundle's name cannot be a model's; GateFailed if the exported reduction does not give our scores; BankError if the
    bank does not fit into a graph.
    """
    check_repository(destination, bundle.path, force)
    serving = serving or Serving()
    name, manifest = model_name(bundle.manifest.name), bundle.manifest
    plan = None if serving.plan is None else check_plan(serving.plan, bundle, serving.max_batch)
    calibration, why = holding(bundle, serving), caveat(bundle, serving)
    metadata = {"mdmf.bundle_id": bundle.bundle_id, "mdmf.tool": f"mdmf-deploy {mdmf_deploy.__version__}"}
    preprocessing = preprocessing_graph(manifest.preprocessing, metadata)
    reduction = reduction_graph(bundle.bank, manifest.model.pool**2, calibration, metadata)
    parameters = _parameters(bundle, serving, calibration, why)
    messages = configs(name, manifest, serving, calibration is not None, parameters)
    try:
        with atomic_folder(destination) as scratch:
            for model, config in messages.items():
                (scratch / model / "1").mkdir(parents=True)
                (scratch / model / _CONFIG).write_text(text(config), encoding="utf-8")
            # An ensemble has no file, but must have a version; many a copy leaves empty folders behind.
            (scratch / name / "1" / ".keep").touch()
            (scratch / f"{name}_{PREPROCESSING}/1" / MODEL).write_bytes(preprocessing.SerializeToString())
            (scratch / f"{name}_{REDUCTION}/1" / MODEL).write_bytes(reduction.SerializeToString())
            _place_engine(bundle, serving, scratch / f"{name}_{SIGNING}/1")
            (scratch / "README.md").write_text(
                readme(name, manifest, serving, plan, calibration, why), encoding="utf-8"
            )
            rounding = check_reduction(scratch / f"{name}_{REDUCTION}/1" / MODEL, bundle.bank, manifest.model.pool**2)
            (scratch / LISTING).write_bytes(_listing(scratch, parameters))
    except OSError as error:
        raise UsageError(f"{destination}: {error.strerror}; choose a folder you can write to") from error
    models = tuple(f"{name}_{step}" for step in STEPS)
    return Written(destination, name, models, serving.runtime, why, rounding)


def _place_engine(bundle: Bundle, serving: Serving, folder: Path) -> None:
    # Copied, not linked: a server's files get owners and modes of their own, and a bundle's must stay as they are.
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
        "grid": f"{model.pool} x {model.pool}",
        "decoder": bundle.manifest.provenance.decoder,
    }
    if calibration is None:
        return facts | {"verdicts": f"withheld: {why}"}
    decides = calibration.thresholds[0].score
    return facts | {
        "fpr": repr(calibration.fpr),
        "threshold": "infinity" if decides is None else repr(decides),
        "review": repr(calibration.review),
        "calibration_images": str(len(calibration.scores)),
    }


def _listing(folder: Path, parameters: dict[str, str]) -> bytes:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    files = {path.relative_to(folder).as_posix(): file_sha256(path) for path in paths}
    return msgspec.json.format(msgspec.json.encode({**parameters, "sha256": files}), indent=2) + b"\n"


# Of the sum of all weights' sizes, which no share of a score exceeds: a float32 has 6e-8.
_ROUNDING = 1e-6
_IMAGES = 4


def check_reduction(graph: Path, bank: Bank, patches: int) -> float:
    """Score a few images made of the bank's own signatures both ways; the largest change of a patch's share.

    Raises GateFailed if that is more than rounding.
    """
    import onnxruntime

    signatures = np.resize(bank.signatures, (_IMAGES * patches, bank.signatures.shape[1]))
    # Half of them lie between two points, where kernel values are neither 0 nor 1.
    signatures[::2] = (signatures[::2] + np.roll(signatures, 1, axis=0)[::2]) / 2
    images = signatures.reshape(_IMAGES, patches, -1)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    (shares,) = session.run([CONTRIBUTIONS], {SIGNATURES: images})
    change = float(np.abs(shares - CpuReduction()(images, bank).contributions).max())
    allowed = _ROUNDING * (1.0 + 2.0 * float(np.abs(bank.weights).sum()) + abs(bank.self_term))
    # Written so that a NaN is never good.
    if not change <= allowed:
        raise GateFailed(
            f"Triton repository: not written, its reduction gives scores that differ by {change:.3g} from ours in "
            f"onnxruntime {onnxruntime.__version__} (at most {allowed:.1g} is rounding); try another version"
        )
    return change
