"""The bundle in the package: whole, small, verified on this machine, and giving the scores it always gave.

After a new starter, `python tests/test_starter.py` pins the new scores of examples/.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mdmf_deploy.bundle import Bundle
from mdmf_deploy.detector import Detector
from mdmf_deploy.inputs import expand
from mdmf_deploy.recipe import load_recipe
from mdmf_deploy.rooms import bundled, room
from mdmf_deploy.rows import Row
from mdmf_deploy.runtime import open_engine
from mdmf_deploy.verifying import verify_probes

EXAMPLES = Path(__file__).parent.parent / "examples"
GOLDEN = room("export") / "golden" / "scores.json"


def example_rows() -> list[Row]:
    with Detector("starter", runtime="onnxruntime") as detector:
        return detector.detect(expand([str(EXAMPLES)]).paths)


def test_it_is_small_whole_and_calibrated() -> None:
    bundle = Bundle.open("starter")
    assert sum(path.stat().st_size for path in bundled("starter").iterdir()) <= 12_000_000
    assert bundle.manifest.covers("onnxruntime", bundle.manifest.model.precision)
    assert bundle.calibration is not None
    assert bundle.calibration.thresholds[0].score is not None
    assert not bundle.bank.hashes & set(bundle.calibration.image_sha256)


def test_it_is_what_its_recipe_says() -> None:
    manifest, recipe = Bundle.open("starter").manifest, load_recipe("starter")
    assert manifest.model.backbone == recipe.backbone.architecture
    assert (manifest.model.pool, manifest.model.signature) == (recipe.head.pool, recipe.head.signature)
    assert manifest.preprocessing == recipe.preprocessing


def test_this_machine_gives_its_sources_signatures() -> None:
    bundle = Bundle.open("starter")
    engine = open_engine("onnxruntime", bundle)
    result = verify_probes(bundle, engine)
    engine.close()
    assert result.passed, result.reasons
    assert result.max_signature_error < 1e-4


def test_the_examples_score_as_they_always_did() -> None:
    golden = json.loads(GOLDEN.read_text())
    rows = example_rows()
    assert golden["bundle_id"] == Bundle.open("starter").bundle_id, "a new starter: pin its scores (see above)"
    assert [Path(row.uri).name for row in rows] == list(golden["scores"])
    # Two runs of one graph in float32 on different processors: signatures agree to about 1e-5 of their size.
    assert [row.score for row in rows] == pytest.approx(list(golden["scores"].values()), rel=1e-3, abs=1e-4)


def test_every_example_has_a_verdict() -> None:
    rows = example_rows()
    assert len(rows) == 12
    assert all(row.status == "ok" and row.verdict in ("real", "generated", "uncertain") for row in rows)


if __name__ == "__main__":
    pinned = {Path(row.uri).name: row.score for row in example_rows()}
    GOLDEN.write_text(json.dumps({"bundle_id": Bundle.open("starter").bundle_id, "scores": pinned}, indent=2) + "\n")
