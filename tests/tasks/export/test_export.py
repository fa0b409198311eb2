"""A bundle is written whole and verified, or not at all."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import msgspec
import onnx
import pytest
import torch
from fakes.failing_engines import BrokenEngine, CountedEngine

from mdmf_deploy.bundle.bundle import Bundle
from mdmf_deploy.bundle.manifest import BANK, MODEL, PROBES
from mdmf_deploy.bundle.recipe import Export, GateLimits, Recipe
from mdmf_deploy.errors import BundleError, GateFailed, UsageError
from mdmf_deploy.model.pfs import MdmfModel
from mdmf_deploy.runtime import ENGINES
from mdmf_deploy.tasks.export import export as exporting
from mdmf_deploy.tasks.export.export import export_detector, rungs, split_reals, verify_everywhere
from mdmf_deploy.tasks.export.ladder import Candidate, Ladder

MakeLadder = Callable[..., Ladder]


def numbered(folder: Path, count: int) -> list[Path]:
    """Files that are no images, each with bytes of its own."""
    paths = [folder / f"{i}.jpg" for i in range(count)]
    for i, path in enumerate(paths):
        path.write_bytes(b"%d" % i)
    return paths


@pytest.fixture
def detector(tiny_bundle: Path, tiny_recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> MdmfModel:
    """The tiny bundle's detector. Its graph is copied from there: tracing takes seconds and has its own tests."""
    monkeypatch.setattr(exporting, "trace", lambda d, r, path, m: Path(shutil.copy(tiny_bundle / MODEL, path)))
    torch.manual_seed(0)
    detector = MdmfModel(tiny_recipe)
    torch.nn.init.trunc_normal_(detector.backbone.pos_embed, std=0.02)
    return detector


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_bundle_is_whole_and_verified(tiny_bundle: Path) -> None:
    bundle = Bundle.open(tiny_bundle)
    assert set(bundle.manifest.files) == {MODEL, BANK, PROBES}
    assert bundle.covers("onnxruntime", "fp32")
    (gate,) = bundle.manifest.verification
    assert 0 < gate.max_signature_error < 1e-5
    assert gate.rank_correlation == 1
    assert gate.images == 8
    assert bundle.calibration is None


def test_no_scratch_folder_is_left_beside_the_bundle(tiny_bundle: Path) -> None:
    assert [path.name for path in tiny_bundle.parent.iterdir() if path.is_dir()] == [tiny_bundle.name]


def test_the_bank_holds_none_of_the_images_held_back(tiny_bundle: Path, reals: list[Path]) -> None:
    banked, held = split_reals(reals)
    hashes = Bundle.open(tiny_bundle).bank.hashes
    assert hashes == {digest(path) for path in banked}
    assert not hashes & {digest(path) for path in held}


@pytest.mark.parametrize(("count", "held"), [(16, 8), (41, 8), (100, 20), (1000, 128)])
def test_a_fifth_is_held_back_whatever_the_order(tmp_path: Path, count: int, held: int) -> None:
    paths = numbered(tmp_path, count)
    banked, held_back = split_reals(paths)
    assert len(held_back) == held
    assert sorted(banked + held_back) == sorted(paths)
    assert split_reals(paths[::-1]) == (banked, held_back)


def test_copies_count_once_and_too_few_images_are_an_error(tmp_path: Path) -> None:
    paths = numbered(tmp_path, 15)
    with pytest.raises(UsageError, match="15 distinct images; expected at least 16"):
        split_reals(paths * 2)


def test_an_unreadable_file_goes_to_the_bank_whose_report_names_it(tmp_path: Path) -> None:
    banked, _ = split_reals([tmp_path / "missing.jpg", *numbered(tmp_path, 16)])
    assert tmp_path / "missing.jpg" in banked


def test_auto_is_the_recipes_precision_then_fp32(tiny_recipe: Recipe) -> None:
    int8 = msgspec.structs.replace(tiny_recipe, export=Export(precision="int8"))
    assert rungs(int8, "auto") == ["int8", "fp32"]
    assert rungs(tiny_recipe, "auto") == ["fp32"]
    assert rungs(int8, "fp16") == ["fp16"]


def test_the_graph_names_its_recipe_bandwidth_and_precision(tiny_bundle: Path, tiny_recipe: Recipe) -> None:
    model = onnx.load(tiny_bundle / MODEL)
    found = {entry.key: entry.value for entry in model.metadata_props}
    assert msgspec.json.decode(found["mdmf.recipe"], type=Recipe) == tiny_recipe
    assert float(found["mdmf.sigma"]) == 1.0
    assert found["mdmf.precision"] == "fp32"


def test_where_int8_passes_at_once_nothing_is_ranked(
    detector: MdmfModel, tiny_recipe: Recipe, reals: list[Path], loose: GateLimits, tmp_path: Path
) -> None:
    recipe = msgspec.structs.replace(tiny_recipe, verification=loose)
    lines: list[str] = []
    export_detector(detector, recipe, reals, tmp_path / "b.mdmf", "int8", log=lines.append, runtimes=[])
    manifest = Bundle.open(tmp_path / "b.mdmf").manifest
    assert manifest.model.precision == "int8"
    assert manifest.model.kept == (), lines
    assert [gate.runtime for gate in manifest.verification] == ["onnxruntime"]
    assert manifest.verification[0].reference.endswith("held back from the bank")
    assert not any("ranking" in line for line in lines)


def test_a_bundle_keeps_its_limits_and_the_reason_of_a_refusal(
    detector: MdmfModel, tiny_recipe: Recipe, reals: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crooked(fp32: Path, crops: object) -> onnx.ModelProto:
        return onnx.ModelProto()

    monkeypatch.setattr(exporting, "Ladder", partial(Ladder, quantise=crooked))
    strict = GateLimits(max_score_change=1e-4)
    recipe = msgspec.structs.replace(tiny_recipe, export=Export(precision="int8"), verification=strict)
    done = export_detector(detector, recipe, reals, tmp_path / "b.mdmf", runtimes=[])
    manifest = Bundle.open(tmp_path / "b.mdmf").manifest
    assert manifest.model.precision == "fp32"
    assert manifest.limits == strict
    assert manifest.refused == done.refused
    (refusal,) = done.refused
    assert refusal.precision == "int8"
    assert "can no longer be restored to fp32" in refusal.reason


def test_a_runtime_that_cannot_be_opened_costs_only_its_own_record(
    make_ladder: MakeLadder, candidate: Candidate
) -> None:
    lines: list[str] = []
    ladder = make_ladder(GateLimits(), log=lines.append)
    records = verify_everywhere(ladder, candidate, ["quantum", "onnxruntime"])
    assert [record.runtime for record in records] == ["onnxruntime"]
    assert any(line.startswith("quantum: not verified, runtime 'quantum' is not known") for line in lines)


@pytest.fixture
def _counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Both runtimes count their engines. All of them must be closed in the end."""
    monkeypatch.setitem(ENGINES, "onnxruntime", (CountedEngine.__module__, "CountedEngine", "cpu"))
    monkeypatch.setitem(ENGINES, "broken", (BrokenEngine.__module__, "BrokenEngine", "cpu"))
    yield
    assert CountedEngine.open == []


@pytest.mark.usefixtures("_counted")
def test_a_runtime_that_raises_while_it_runs_costs_only_its_own_record(
    make_ladder: MakeLadder, candidate: Candidate
) -> None:
    lines: list[str] = []
    ladder = make_ladder(GateLimits(), log=lines.append)
    records = verify_everywhere(ladder, candidate, ["broken", "onnxruntime"])
    assert [record.runtime for record in records] == ["onnxruntime"]
    assert "broken: not verified, Exception from src/core.cpp:97: no memory" in lines


@pytest.mark.usefixtures("_counted")
def test_where_onnxruntime_raises_nothing_is_written(
    detector: MdmfModel, tiny_recipe: Recipe, reals: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mdmf_deploy.tasks.export.ladder.OrtEngine", BrokenEngine)
    with pytest.raises(RuntimeError, match="no memory"):
        export_detector(detector, tiny_recipe, reals, tmp_path / "b.mdmf", runtimes=[])
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_written_when_no_rung_passes(
    detector: MdmfModel, tiny_recipe: Recipe, reals: list[Path], tmp_path: Path
) -> None:
    recipe = msgspec.structs.replace(tiny_recipe, verification=GateLimits(max_score_change=0.0))
    with pytest.raises(GateFailed, match=r"not written.*fp32: max_score_change") as failure:
        export_detector(detector, recipe, reals, tmp_path / "b.mdmf")
    assert failure.value.exit_code == 1
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_no_bundle_is_not_replaced(tiny_recipe: Recipe, tmp_path: Path) -> None:
    (tmp_path / "keep.txt").write_text("mine")
    with pytest.raises(BundleError, match="not a bundle"):
        export_detector(MdmfModel(tiny_recipe), tiny_recipe, [], tmp_path)
