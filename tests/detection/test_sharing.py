"""One detector for many threads and processes: rows as from one thread, and a line where it cannot be used."""

from __future__ import annotations

import copy
import pickle
import shutil
from pathlib import Path

import pytest
from helpers.rows import timeless

from mdmf_deploy import DetectorSpec
from mdmf_deploy.detection.detector import Detector
from mdmf_deploy.errors import BundleError, UsageError
from mdmf_deploy.images.decode import ReadLimits


def test_a_spec_opens_an_equal_detector_wherever_it_is_unpickled(
    bundle_copy: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(bundle_copy.parent)
    with Detector("copy.mdmf", threads=1, batch_size=3, crops=4, limits=ReadLimits(max_pixels=10_000)) as detector:
        monkeypatch.chdir(photos)
        spec = detector.spec()
        rows = timeless(detector.detect(sorted(photos.iterdir())))
    data = pickle.dumps(spec)
    assert len(data) < 1000
    assert (spec.bundle, spec.runtime, spec.reduction) == (str(bundle_copy), "onnxruntime", "cpu")
    assert {row.status for row in rows} == {"ok", "error"}  # the limits hold there, too
    loaded = pickle.loads(data)
    assert isinstance(loaded, DetectorSpec)
    with loaded.open() as same:
        assert same.spec() == spec
        assert timeless(same.detect(sorted(photos.iterdir()))) == rows


def test_a_spec_of_a_shipped_bundle_holds_its_name() -> None:
    with Detector("starter") as detector:
        assert detector.spec().bundle == "starter"


def test_a_spec_does_not_open_another_bundle(bundle_copy: Path, tiny_bundle: Path) -> None:
    with Detector(bundle_copy) as detector:
        spec = detector.spec()
    shutil.rmtree(bundle_copy)
    with pytest.raises(BundleError, match="not a folder"):
        spec.open()
    shutil.copytree(Path(__file__).parents[2] / "mdmf_deploy/bundle/shipped/starter.mdmf", bundle_copy)
    with pytest.raises(BundleError, match=f"copy.mdmf: bundle_id is .*, and {spec.bundle_id[:12]} in the spec; give"):
        spec.open()


def test_a_detector_that_is_pickled_or_copied_names_its_spec(tiny_bundle: Path) -> None:
    with Detector(tiny_bundle) as detector:
        for copied in (pickle.dumps, copy.copy, copy.deepcopy):
            with pytest.raises(UsageError, match=r"cannot be pickled or copied; give the worker Detector\.spec\(\)"):
                copied(detector)
