from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import msgspec
import onnx
import pytest
import torch

from mdmf_deploy import exporting
from mdmf_deploy.bundle import BANK, MODEL, PROBES, Bundle
from mdmf_deploy.errors import BundleError, GateFailed, UsageError
from mdmf_deploy.model.pfs import Detector
from mdmf_deploy.recipe import Export, Limits, Recipe


def numbered(folder: Path, count: int) -> list[Path]:
    """Files that are no images, each with bytes of its own."""
    paths = [folder / f"{i}.jpg" for i in range(count)]
    for i, path in enumerate(paths):
        path.write_bytes(b"%d" % i)
    return paths


@pytest.fixture
def detector(tiny_bundle: Path, tiny_recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> Detector:
    """The tiny bundle's, whose graph is taken from there: tracing has tests of its own, and takes seconds."""
    monkeypatch.setattr(exporting, "trace", lambda d, r, path, m: Path(shutil.copy(tiny_bundle / MODEL, path)))
    torch.manual_seed(0)
    detector = Detector(tiny_recipe)
    torch.nn.init.trunc_normal_(detector.backbone.pos_embed, std=0.02)
    return detector


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_bundle_is_whole_and_verified(tiny_bundle: Path) -> None:
    bundle = Bundle.open(tiny_bundle)
    assert set(bundle.manifest.files) == {MODEL, BANK, PROBES}
    assert bundle.manifest.covers("onnxruntime", "fp32")
    (gate,) = bundle.manifest.verification
    assert 0 < gate.max_signature_error < 1e-5
    assert gate.rank_correlation == 1
    assert gate.images == 8
    assert bundle.calibration is None


def test_no_scratch_folder_is_left_beside_the_bundle(tiny_bundle: Path) -> None:
    assert [path.name for path in tiny_bundle.parent.iterdir() if path.is_dir()] == [tiny_bundle.name]


def test_the_bank_holds_none_of_the_images_held_back(tiny_bundle: Path) -> None:
    reals = sorted(path for path in tiny_bundle.parent.iterdir() if path.is_file())
    banked, held = exporting.split_reals(reals)
    hashes = Bundle.open(tiny_bundle).bank.hashes
    assert hashes == {digest(path) for path in banked}
    assert not hashes & {digest(path) for path in held}


@pytest.mark.parametrize(("count", "held"), [(16, 8), (41, 8), (100, 20), (1000, 128)])
def test_a_fifth_is_held_back_whatever_the_order(tmp_path: Path, count: int, held: int) -> None:
    paths = numbered(tmp_path, count)
    banked, held_back = exporting.split_reals(paths)
    assert len(held_back) == held
    assert sorted(banked + held_back) == sorted(paths)
    assert exporting.split_reals(paths[::-1]) == (banked, held_back)


def test_copies_count_once_and_too_few_images_are_an_error(tmp_path: Path) -> None:
    paths = numbered(tmp_path, 15)
    with pytest.raises(UsageError, match="15 distinct images; expected at least 16"):
        exporting.split_reals(paths * 2)


def test_an_unreadable_file_goes_to_the_bank_whose_report_names_it(tmp_path: Path) -> None:
    banked, _ = exporting.split_reals([tmp_path / "missing.jpg", *numbered(tmp_path, 16)])
    assert tmp_path / "missing.jpg" in banked


def test_auto_is_the_recipes_precision_then_fp32(tiny_recipe: Recipe) -> None:
    int8 = msgspec.structs.replace(tiny_recipe, export=Export(precision="int8"))
    assert exporting._ladder(int8, "auto") == ["int8", "fp32"]
    assert exporting._ladder(tiny_recipe, "auto") == ["fp32"]
    assert exporting._ladder(int8, "fp16") == ["fp16"]


def test_the_graph_says_what_it_is(tiny_bundle: Path, tiny_recipe: Recipe) -> None:
    model = onnx.load(tiny_bundle / MODEL)
    found = {entry.key: entry.value for entry in model.metadata_props}
    assert msgspec.json.decode(found["mdmf.recipe"], type=Recipe) == tiny_recipe
    assert float(found["mdmf.sigma"]) == 1.0
    assert found["mdmf.precision"] == "fp32"


def test_a_refused_rung_falls_back_and_says_why(
    detector: Detector, tiny_bundle: Path, tiny_recipe: Recipe, tmp_path: Path
) -> None:
    # Between the rounding of int8 and that of fp32 on this model.
    strict = Limits(max_score_change=1e-4)
    recipe = msgspec.structs.replace(tiny_recipe, export=Export(precision="int8"), verification=strict)
    reals = [path for path in tiny_bundle.parent.iterdir() if path.is_file()]
    done = exporting.export_detector(detector, recipe, reals, tmp_path / "b.mdmf")
    manifest = Bundle.open(tmp_path / "b.mdmf").manifest
    assert manifest.model.precision == "fp32"
    assert manifest.refused == done.refused
    assert done.refused[0].precision == "int8"
    assert "max_score_change" in done.refused[0].reason
    assert manifest.limits == strict


def test_nothing_is_written_when_no_rung_passes(
    detector: Detector, tiny_bundle: Path, tiny_recipe: Recipe, tmp_path: Path
) -> None:
    recipe = msgspec.structs.replace(tiny_recipe, verification=Limits(max_score_change=0.0))
    reals = [path for path in tiny_bundle.parent.iterdir() if path.is_file()]
    with pytest.raises(GateFailed, match=r"not written.*fp32: max_score_change") as failure:
        exporting.export_detector(detector, recipe, reals, tmp_path / "b.mdmf")
    assert failure.value.exit_code == 1
    assert list(tmp_path.iterdir()) == []


def test_what_is_not_a_bundle_is_not_replaced(tiny_recipe: Recipe, tmp_path: Path) -> None:
    (tmp_path / "keep.txt").write_text("mine")
    with pytest.raises(BundleError, match="not a bundle"):
        exporting.export_detector(Detector(tiny_recipe), tiny_recipe, [], tmp_path)
