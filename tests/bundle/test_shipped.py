"""The bundles in the package are whole, small, verified on this machine, and give the scores they always gave.

After a new bundle, `python tests/bundle/test_shipped.py` pins the new scores of examples/.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import pytest

from mdmf_deploy.bundle import SHIPPED_BUNDLES
from mdmf_deploy.bundle.bundle import Bundle, shipped
from mdmf_deploy.bundle.recipe import load_recipe
from mdmf_deploy.detection.detector import Detector
from mdmf_deploy.detection.rows import Row
from mdmf_deploy.files import file_sha256, room
from mdmf_deploy.hardware.host import saturates_int8
from mdmf_deploy.images.inputs import expand
from mdmf_deploy.runtime import open_engine
from mdmf_deploy.tasks.verify import verify_probes

EXAMPLES = Path(__file__).parents[2] / "examples"
GOLDEN = room("export") / "golden" / "scores.json"
MOST_BYTES = {"dinov2s": 25_000_000, "starter": 12_000_000}

every_bundle = pytest.mark.parametrize("name", SHIPPED_BUNDLES)


@lru_cache
def example_rows(name: str) -> Sequence[Row]:
    with Detector(name, runtime="onnxruntime") as detector:
        return detector.detect(expand([str(EXAMPLES)]).paths)


@every_bundle
def test_it_is_small_whole_and_calibrated(name: str) -> None:
    bundle = Bundle.open(name)
    assert sum(path.stat().st_size for path in shipped(name).iterdir()) <= MOST_BYTES[name]
    assert bundle.covers("onnxruntime", bundle.manifest.model.precision)
    assert bundle.covers("openvino", bundle.manifest.model.precision)
    assert bundle.calibration is not None
    assert all(group.decides is not None for group in bundle.calibration.groups)
    assert not bundle.bank.hashes & bundle.calibration.image_sha256


@every_bundle
def test_it_follows_its_recipe(name: str) -> None:
    manifest, recipe = Bundle.open(name).manifest, load_recipe(name)
    assert manifest.model.backbone == recipe.backbone.architecture
    assert manifest.model.blocks == recipe.backbone.blocks
    assert (manifest.model.pool, manifest.model.signature) == (recipe.head.pool, recipe.head.signature)
    assert manifest.preprocessing == recipe.preprocessing
    assert manifest.limits == recipe.verification


@every_bundle
def test_its_checkpoint_is_in_the_repository(name: str) -> None:
    checkpoint = room("export") / "checkpoints" / f"{name}.safetensors"
    assert file_sha256(checkpoint) == Bundle.open(name).manifest.provenance.checkpoint_sha256


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
@every_bundle
def test_this_machine_passes_its_gate(name: str, runtime: str) -> None:
    if runtime == "openvino" and saturates_int8():
        pytest.skip("this processor's int8 sums saturate, so OpenVINO is refused")
    bundle = Bundle.open(name)
    engine = open_engine(runtime, bundle)
    result = verify_probes(bundle, engine)
    engine.close()
    assert result.passed, result.reasons


@every_bundle
def test_the_examples_score_as_they_always_did(name: str) -> None:
    rows, golden = example_rows(name), json.loads(GOLDEN.read_text())[name]
    assert golden["bundle_id"] == Bundle.open(name).bundle_id, "the bundle is new: pin its scores (see above)"
    assert [Path(row.uri).name for row in rows] == list(golden["scores"])
    # Another processor rounds the float32 between two int8 products differently, which can move a value to the next of
    # 255 steps. ONNX Runtime and OpenVINO differ by up to a tenth of this here.
    assert [row.score for row in rows] == pytest.approx(list(golden["scores"].values()), abs=0.05)


@every_bundle
def test_no_photograph_of_the_examples_is_called_generated(name: str) -> None:
    rows = example_rows(name)
    assert len(rows) == 12
    assert all(row.status == "ok" and row.verdict in ("real", "generated", "uncertain") for row in rows)
    assert not any(row.verdict == "generated" for row in rows if "photographs" in row.uri)


if __name__ == "__main__":
    pinned = {
        name: {
            "bundle_id": Bundle.open(name).bundle_id,
            "scores": {Path(row.uri).name: row.score for row in example_rows(name)},
        }
        for name in SHIPPED_BUNDLES
    }
    GOLDEN.write_text(json.dumps(pinned, indent=2) + "\n")
