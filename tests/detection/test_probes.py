"""An engine that does not give the signatures of the bundle's own probe images judges nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest
from helpers.mdmf import mdmf

from mdmf_deploy.bundle.bundle import Bundle, write_bundle
from mdmf_deploy.bundle.manifest import PROBES
from mdmf_deploy.bundle.probe_images import probe_crops, probes_to_bytes
from mdmf_deploy.detection.detector import Detector
from mdmf_deploy.detection.probes import COUNT, check_probes
from mdmf_deploy.errors import BundleError, OutOfMemory
from mdmf_deploy.images.crops import normalise
from mdmf_deploy.runtime.ort import OrtEngine

Change = Callable[[np.ndarray], np.ndarray]


class Changing:
    """ONNX Runtime's engine, with its signatures changed."""

    name = "onnxruntime"
    precision = "fp32"

    def __init__(self, bundle: Bundle, change: Change) -> None:
        self._inner, self._change, self.batches = OrtEngine(bundle), change, list[int]()

    def __call__(self, images: np.ndarray) -> np.ndarray:
        self.batches.append(len(images))
        return self._change(self._inner(images))

    def close(self) -> None:
        self._inner.close()


def refusal(bundle: Bundle, change: Change) -> str | None:
    try:
        check_probes(bundle, Changing(bundle, change))
    except BundleError as error:
        refused = str(error)
    else:
        return None
    assert refused.startswith(f"{bundle.model_path} on onnxruntime: ")
    assert "\n" not in refused
    return refused


def raising(error: Exception) -> Change:
    def change(signatures: np.ndarray) -> np.ndarray:
        raise error

    return change


def with_probes(bundle: Bundle, signatures: np.ndarray) -> Bundle:
    crops = probe_crops(bundle.manifest.preprocessing.crop)
    data = probes_to_bytes(signatures.astype(np.float32), crops)
    return write_bundle(bundle.path, bundle.manifest, {**bundle.files(), PROBES: data})


def unit(signatures: np.ndarray) -> np.ndarray:
    return signatures / np.linalg.norm(signatures, axis=2, keepdims=True)


def test_the_bundles_own_engine_passes_after_one_small_batch(tiny_bundle: Path) -> None:
    bundle = Bundle.open(tiny_bundle)
    engine = Changing(bundle, lambda signatures: signatures)
    check_probes(bundle, engine)
    assert engine.batches == [COUNT]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s[:, :-1], r"expected signatures (2, 4, 8), got (2, 3, 8)"),
        (lambda s: s[0], r"got (4, 8)"),
        (lambda s: np.where(np.arange(8) == 3, np.nan, s), "are not finite"),
        (lambda s: np.where(np.arange(8) == 3, np.inf, s), "are not finite"),
        (lambda s: np.zeros_like(s), "away from those in probes.safetensors"),
        (lambda s: s[::-1] + 1, "away from those in probes.safetensors"),
        (lambda s: -s, "away from those in probes.safetensors"),
        (lambda s: np.full_like(s, 3.4e38), "away from those in probes.safetensors"),
        (raising(RuntimeError("Non-zero status\ncode")), "it fails (Non-zero status code)"),
    ],
)
def test_signatures_that_are_no_such_models_are_refused(tiny_bundle: Path, change: Change, message: str) -> None:
    assert message in (refusal(Bundle.open(tiny_bundle), change) or "passes")


def test_a_drift_that_only_costs_the_verification_passes(tiny_bundle: Path) -> None:
    """The gate's own limits are the gate's business: a tenth of the signatures' spread changes verdicts."""
    noise = np.random.default_rng(0).standard_normal((COUNT, 4, 8)).astype(np.float32)
    assert refusal(Bundle.open(tiny_bundle), lambda s: s + 0.1 * s.std() * noise) is None


def test_a_head_on_the_unit_sphere_gives_lengths_of_one(bundle_copy: Path) -> None:
    bundle = Bundle.open(bundle_copy)
    crops = probe_crops(bundle.manifest.preprocessing.crop)
    engine = OrtEngine(bundle)
    own = engine(normalise(crops, bundle.manifest.preprocessing))
    assert refusal(bundle, lambda s: 1.05 * s) is None
    sphere = with_probes(bundle, unit(own))
    assert refusal(sphere, unit) is None
    assert "lengths 1.05 to 1.05, expected 1" in (refusal(sphere, lambda s: 1.05 * unit(s)) or "passes")


def test_too_little_memory_is_no_fault_of_the_bundle(tiny_bundle: Path) -> None:
    bundle = Bundle.open(tiny_bundle)
    for error in (OutOfMemory("the GPU is full"), MemoryError()):
        with pytest.raises(type(error)):
            check_probes(bundle, Changing(bundle, raising(error)))


def test_probes_that_cannot_be_are_refused(bundle_copy: Path) -> None:
    bundle = Bundle.open(bundle_copy)
    good = np.ones((16, 4, 8))
    for signatures in (good[:1], good[:, :3], good[0], np.where(good, np.nan, 0)):
        with pytest.raises(BundleError, match=PROBES):
            check_probes(with_probes(bundle, signatures), Changing(bundle, lambda s: s))
    broken = write_bundle(bundle.path, bundle.manifest, {**bundle.files(), PROBES: b"no probes"})
    with pytest.raises(BundleError, match=f"{PROBES} does not hold probe signatures"):
        check_probes(broken, Changing(bundle, lambda s: s))


def test_a_bundle_without_probes_is_not_checked(bundle_copy: Path) -> None:
    bundle = Bundle.open(bundle_copy)
    files = {name: path for name, path in bundle.files().items() if name != PROBES}
    without = write_bundle(bundle.path, msgspec.structs.replace(bundle.manifest, files={}), files)
    assert refusal(without, np.zeros_like) is None


def test_a_detector_does_not_open_and_closes_its_engine(bundle_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = with_probes(Bundle.open(bundle_copy), np.random.default_rng(0).standard_normal((16, 4, 8)))
    closed: list[bool] = []
    monkeypatch.setattr(OrtEngine, "close", lambda engine: closed.append(True))
    with pytest.raises(BundleError, match="on onnxruntime: of the bundle's own probe images"):
        Detector(bundle.path, "onnxruntime")
    assert closed == [True]


def test_detect_says_so_in_a_line_and_verify_still_measures(bundle_copy: Path, photos: Path) -> None:
    bundle = with_probes(Bundle.open(bundle_copy), np.random.default_rng(0).standard_normal((16, 4, 8)))
    result = mdmf("detect", photos / "photo00.jpg", "--bundle", bundle.path, "--runtime", "onnxruntime")
    assert (result.exit_code, len(result.stderr.splitlines())) == (2, 1)
    assert mdmf("verify", bundle.path, "--runtime", "onnxruntime").exit_code == 1
