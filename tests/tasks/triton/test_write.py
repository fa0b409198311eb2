"""A written repository gives a stock client our scores, and its README and parameters state what they are worth."""

from __future__ import annotations

import importlib
import json
import re
import shutil
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest
from fakes.stock_server import StockServer
from helpers.crop_plans import planned
from helpers.float32_mmd import EPS
from helpers.handmade import GRAPH, PAIR, make_bundle
from helpers.triton_plans import write_plan
from PIL import Image

from mdmf_deploy.bundle.bundle import Bundle
from mdmf_deploy.bundle.calibration import LEAST_EVIDENCE, Calibration, Scored
from mdmf_deploy.cli import COMMANDS
from mdmf_deploy.detection.detector import Detector
from mdmf_deploy.detection.rows import Row
from mdmf_deploy.errors import GateFailed, UsageError
from mdmf_deploy.images.crops import boxes, center_crop, grid
from mdmf_deploy.images.inputs import expand
from mdmf_deploy.tasks.calibrate import write_calibration
from mdmf_deploy.tasks.triton import Serving, Written, write, write_repository
from mdmf_deploy.tasks.triton.graphs import reduction_graph

EXAMPLES = Path(__file__).parents[3] / "examples"


def client_of(repository: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The functions of the README's example, talking to a server of this repository."""
    package, http = ModuleType("tritonclient"), StockServer(repository).client()
    package.http = http  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "tritonclient", package)
    monkeypatch.setitem(sys.modules, "tritonclient.http", http)
    (code,) = re.findall(r"```python\n(.*?)```", (repository / "README.md").read_text(), re.DOTALL)
    names: dict[str, Any] = {}
    exec(code, names)
    return names


def assert_ours(answer: list[dict[str, Any]], rows: list[Row]) -> None:
    """Hold a client's scores and contributions to those of our rows."""
    assert [one["score"] for one in answer] == pytest.approx([row.score for row in rows], abs=4 * EPS)
    for one, row in zip(answer, rows, strict=True):
        assert one["contributions"].ravel() == pytest.approx(row.contributions, abs=4 * EPS)


@pytest.fixture(scope="module")
def unverified(tmp_path_factory: pytest.TempPathFactory) -> Written:
    """The starter on a runtime that it is not verified for."""
    return write_repository(Bundle.open("starter"), tmp_path_factory.mktemp("unverified") / "models", Serving("gpu"))


def test_a_stock_client_gets_our_scores(starter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = expand([str(EXAMPLES)]).paths[::2]
    answer = client_of(starter, monkeypatch)["detect"](paths)
    with Detector("starter", "onnxruntime") as detector:
        rows = detector.detect(paths)
    assert len(rows) == 6
    assert_ours(answer, rows)


def test_small_and_rotated_photos_get_our_scores_too(
    tiny_bundle: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "photos"
    shutil.copytree(photos, folder)
    for n, size in enumerate([(40, 90), (30, 20), (57, 56), (1, 200)]):
        turned = Image.Exif()
        turned[0x0112] = 6
        Image.open(folder / "photo00.jpg").resize(size).save(folder / f"small{n}.png", exif=turned)
    paths = sorted(folder.iterdir())
    repository = write_repository(Bundle.open(tiny_bundle), tmp_path / "models").path
    answer = client_of(repository, monkeypatch)["detect"](paths)
    with Detector(tiny_bundle, "onnxruntime") as detector:
        rows = detector.detect(paths)
    assert {row.crop for row in rows} == {"center", "reflected"}
    assert_ours(answer, rows)
    assert set(answer[0]) == {"score", "contributions"}


@pytest.mark.parametrize("shape", [(300, 400), (224, 224), (225, 223), (100, 300), (3, 500), (1, 1), (2, 1)])
def test_the_readmes_crop_is_ours(
    starter: Path, shape: tuple[int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    cut = client_of(starter, monkeypatch)["crops"](tmp_path / "photo.png")
    assert np.array_equal(cut, center_crop(pixels, 224).pixels)


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory, tiny_bundle: Path) -> Path:
    """The repository of a calibrated bundle with a plan of four crops, beside that bundle."""
    folder = tmp_path_factory.mktemp("several")
    bundle = planned(tiny_bundle, 4, folder / "planned.mdmf")
    images = [Scored(f"{n:064}", n / 10, 10_000, LEAST_EVIDENCE) for n in range(19)]
    # Too few for the deciding rate, but enough for the review rate.
    images += [Scored(f"{n:064}", n / 10, 1_000_000, 0.9) for n in range(19, 24)]
    pairs = {"measured_on": PAIR, "holds_for": [PAIR]}
    calibration = Calibration.from_images(images, [0.1], 0.5, bundle_id=bundle.bundle_id, bounds=[0.5], **pairs)
    return write_repository(write_calibration(bundle, calibration, bundle.path), folder / "models").path


def test_an_image_of_several_crops_gets_our_score(
    several: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.open(photos / "photo00.jpg").resize((300, 60)).save(tmp_path / "wide.png")
    Image.open(photos / "photo00.jpg").resize((40, 60)).save(tmp_path / "small.png")
    paths = [*sorted(photos.iterdir())[:3], tmp_path / "wide.png", tmp_path / "small.png"]
    answer = client_of(several, monkeypatch)["detect"](paths)
    with Detector(several.parent / "planned.mdmf", "onnxruntime") as detector:
        rows = detector.detect(paths)
    assert [row.crop for row in rows[2:]] == ["grid 2x2", "grid 1x4", "reflected"]
    assert_ours(answer, rows)


def test_the_readmes_places_are_ours(several: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    client = client_of(several, monkeypatch)
    for height, width in np.random.default_rng(0).integers(56, 400, (200, 2)).tolist():
        for most in (2, 4, 6, 12):
            shape = client["grid"](height, width, most)
            assert shape == grid(height, width, 56, most)
            tops, lefts = ([at[0] for at in client["places"](*one)] for one in zip((height, width), shape, strict=True))
            assert [(top, left) for top in tops for left in lefts] == [
                (top, left) for left, top, _, _ in boxes(height, width, 56, most)
            ]


def test_each_size_has_its_thresholds(several: Path) -> None:
    """With 19 images, p <= 0.1 above the second highest score, and p <= 0.5 above the tenth."""
    stated = parameters(several)
    small, large = json.loads(stated["size_groups"])
    assert small == {
        "above_megapixels": 0.0,
        "up_to_megapixels": 0.5,
        "images": 19,
        "threshold": 1.7,
        "review_threshold": 0.9,
    }
    assert (large["above_megapixels"], large["up_to_megapixels"], large["images"]) == (0.5, None, 5)
    assert (large["threshold"], large["review_threshold"]) == (None, None)
    readme = (several / "README.md").read_text()
    assert "| up to 0.5 MP | 1.7 | 0.9 |\n| above 0.5 MP | never | always" in readme
    assert "The false positive rate is at most 0.1,\nand 0.5 for both" in readme
    assert "Below 0.25 there is too little" in readme
    calibration_id = Bundle.open(several.parent / "planned.mdmf").calibration_id
    assert stated["calibration_id"] == calibration_id
    assert f"`{calibration_id}`" in readme


def test_the_repository_has_its_own_copy_of_the_bundles_graph(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "handmade.mdmf")
    repository = write_repository(bundle, tmp_path / "models").path
    graph = repository / "handmade_signatures/1/model.onnx"
    assert graph.read_bytes() == GRAPH
    graph.write_bytes(b"changed")
    assert Bundle.open(bundle.path).bundle_id == bundle.bundle_id


def test_weights_beside_the_graph_come_along(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "handmade.mdmf")
    files = {**bundle.manifest.files, "model.onnx.data": bundle.manifest.files["model.onnx"]}
    (bundle.path / "model.onnx.data").write_bytes(b"weights")
    large = Bundle(bundle.path, msgspec.structs.replace(bundle.manifest, files=files))
    large.__dict__["bank"] = bundle.bank
    folder = write_repository(large, tmp_path / "models").path / "handmade_signatures/1"
    assert sorted(path.name for path in folder.iterdir()) == ["model.onnx", "model.onnx.data"]


def test_a_plan_takes_the_graphs_place(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "handmade.mdmf")
    plan = write_plan(tmp_path / "engine.plan", bundle)
    written = write_repository(bundle, tmp_path / "models", Serving("gpu", 8, plan))
    folder = written.path / "handmade_signatures/1"
    assert [(path.name, path.read_bytes()) for path in folder.iterdir()] == [("model.plan", plan.read_bytes())]
    assert written.runtime == "tensorrt"
    readme = (written.path / "README.md").read_text()
    assert "--gpus=all" in readme
    assert "TensorRT 10.13.2 for NVIDIA L4, compute capability 8.9" in readme


def parameters(repository: Path) -> dict[str, str]:
    name = json.loads((repository / "mdmf.json").read_text())["name"]
    found = StockServer(repository).configs[name].parameters
    return {key: value.string_value for key, value in found.items()}


def test_thresholds_are_stated_where_they_hold(starter: Path) -> None:
    bundle = Bundle.open("starter")
    assert bundle.calibration is not None
    stated = parameters(starter)
    assert stated["bundle_id"] == bundle.bundle_id
    assert (stated["runtime"], stated["precision"]) == ("onnxruntime", "int8")
    stated_groups, groups = json.loads(stated["size_groups"]), bundle.calibration.groups
    assert [group["threshold"] for group in stated_groups] == [group.decides for group in groups]
    assert [group["images"] for group in stated_groups] == [len(group.scores) for group in groups]
    assert float(stated["least_evidence"]) == bundle.calibration.least_evidence
    assert float(stated["fpr"]) == bundle.calibration.fpr
    assert float(stated["review"]) == bundle.calibration.review
    readme = (starter / "README.md").read_text()
    assert all(f"| {group.name} | {group.decides:.6g} |" in readme for group in groups if group.decides is not None)
    verified = [record for record in bundle.manifest.verification if record.runtime == "onnxruntime"]
    assert f"in version {verified[-1].environment['onnxruntime']}." in readme
    assert "VNNI" in readme


def test_an_unverified_runtime_gets_no_thresholds(unverified: Written) -> None:
    assert unverified.caveat is not None
    assert "cuda int8 is not verified" in unverified.caveat
    stated = parameters(unverified.path)
    assert not {"size_groups", "fpr", "review"} & set(stated)
    assert stated["verdicts"] == f"withheld: {unverified.caveat}"
    readme = (unverified.path / "README.md").read_text()
    assert unverified.caveat in readme


def test_an_uncalibrated_bundle_gets_no_thresholds(tiny_bundle: Path, tmp_path: Path) -> None:
    written = write_repository(Bundle.open(tiny_bundle), tmp_path / "models")
    assert written.caveat is not None
    assert "mdmf calibrate" in written.caveat


def test_the_listing_has_the_hash_of_every_other_file(starter: Path) -> None:
    listed = json.loads((starter / "mdmf.json").read_text())["sha256"]
    there = {path.relative_to(starter).as_posix() for path in starter.rglob("*") if path.is_file()}
    assert set(listed) == there - {"mdmf.json"}
    assert listed["starter_signatures/1/model.onnx"] == Bundle.open("starter").manifest.files["model.onnx"].sha256


def test_the_same_bundle_gives_the_same_bytes_and_reports_its_rounding(starter: Path, tmp_path: Path) -> None:
    again = write_repository(Bundle.open("starter"), tmp_path / "models")
    assert (again.path / "mdmf.json").read_bytes() == (starter / "mdmf.json").read_bytes()
    assert 0 < again.rounding < 4 * EPS


def test_only_an_older_repository_is_replaced_and_only_with_force(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "handmade.mdmf")
    theirs, ours, empty = (tmp_path / name for name in ("theirs", "ours", "empty"))
    (theirs / "resnet").mkdir(parents=True)
    empty.mkdir()
    for force in (False, True):
        with pytest.raises(UsageError, match="was not written by"):
            write_repository(bundle, theirs, force=force)
    write_repository(bundle, empty)
    write_repository(bundle, ours)
    (ours / "stale").touch()
    with pytest.raises(UsageError, match="--force"):
        write_repository(bundle, ours)
    assert (ours / "stale").exists()
    write_repository(bundle, ours, force=True)
    assert not (ours / "stale").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "handmade.mdmf", "ours", "theirs"]


def test_bundle_and_repository_may_not_contain_each_other(tmp_path: Path) -> None:
    """Each is replaced as a whole, with everything in it."""
    bundle = make_bundle(tmp_path / "models/handmade.mdmf")
    (tmp_path / "models/mdmf.json").touch()
    for place in (bundle.path, bundle.path / "models", tmp_path / "models"):
        with pytest.raises(UsageError, match="must lie apart"):
            write_repository(bundle, place, force=True)
    assert Bundle.open(bundle.path).bundle_id == bundle.bundle_id


def test_a_file_is_no_place_for_a_repository(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "handmade.mdmf")
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="was not written by"):
        write_repository(bundle, tmp_path / "file", force=True)
    with pytest.raises(UsageError, match="choose a folder"):
        write_repository(bundle, tmp_path / "file" / "models")


@pytest.mark.parametrize("name", ["my detector", "a/b", "", "..", "-x"])
def test_a_bundle_whose_name_no_model_can_have_is_refused(name: str, tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "handmade.mdmf", name=name)
    with pytest.raises(UsageError, match="folders and parts of addresses"):
        write_repository(bundle, tmp_path / "models")
    assert not (tmp_path / "models").exists()


@pytest.mark.parametrize(
    "wrong", [{"weights": -1.0}, {"weights": 1.001}, {"self_term": 0.999}, {"sigma": 1.001}, {"self_term": np.nan}]
)
def test_nothing_is_written_if_the_graph_does_not_give_our_scores(
    wrong: dict[str, float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = make_bundle(tmp_path / "handmade.mdmf")
    (field, factor), fields = next(iter(wrong.items())), bundle.bank
    other = SimpleNamespace(**{name: getattr(fields, name) for name in ("signatures", "weights", "sigma", "self_term")})
    setattr(other, field, factor * getattr(other, field))
    monkeypatch.setattr(write, "reduction_graph", lambda bank, *rest: reduction_graph(other, *rest))  # type: ignore[arg-type]
    with pytest.raises(GateFailed, match="not written"):
        write_repository(bundle, tmp_path / "models")
    assert [path.name for path in tmp_path.iterdir()] == ["handmade.mdmf"]


def test_no_placeholder_is_left_and_the_readme_names_things_that_exist(
    starter: Path, unverified: Written, tmp_path: Path
) -> None:
    bundle = make_bundle(tmp_path / "handmade.mdmf")
    serving = Serving("gpu", 8, write_plan(tmp_path / "engine.plan", bundle))
    planned = write_repository(bundle, tmp_path / "models", serving)
    for repository in (starter, unverified.path, planned.path):
        readme = (repository / "README.md").read_text()
        assert not re.search(r"\$(?!PWD)|\$?\{[a-z_]+\}", readme)
        name = json.loads((repository / "mdmf.json").read_text())["name"]
        named = set(re.findall(rf"`({name}(?:_\w+)?)`", readme))
        assert named == {path.name for path in repository.iterdir() if path.is_dir()}
        commands = set(re.findall(r"`mdmf (\w+)", readme))
        assert commands
        assert commands <= set(COMMANDS)
        (package,) = set(re.findall(r"`(mdmf_deploy[\w.]+)`", readme))
        for module, function in (("crops", "crops"), ("decode", "decode"), ("decode", "read")):
            assert f"{module}.{function}(" in readme
            assert callable(getattr(importlib.import_module(f"{package}.{module}"), function))
