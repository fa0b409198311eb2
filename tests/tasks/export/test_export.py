from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import msgspec
import numpy as np
import onnx
import pytest
import torch

from mdmf_deploy.bundle.bank import Bank
from mdmf_deploy.bundle.bundle import Bundle
from mdmf_deploy.bundle.manifest import BANK, MODEL, PROBES, Manifest, Verification
from mdmf_deploy.bundle.recipe import Export, GateLimits, Recipe
from mdmf_deploy.errors import BundleError, GateFailed, UsageError
from mdmf_deploy.model.pfs import MdmfModel
from mdmf_deploy.runtime import ENGINES, Engine, installed
from mdmf_deploy.runtime.ort import OrtEngine
from mdmf_deploy.tasks.export import export as exporting
from mdmf_deploy.tasks.export import ladder as trials
from mdmf_deploy.tasks.export.restore import Restorable

# What two layers of int8 on a model of random weights keep to, and a coarse layer does not.
LOOSE = GateLimits(max_score_change=1.0, min_rank_correlation=0.0, max_flipped_verdicts=1.0, max_fpr_change=1.0)


def coarsened(model: onnx.ModelProto, fp32: Path, layers: set[str], folder: Path) -> onnx.ModelProto:
    """The same with these layers' activations rounded to steps three hundred times as wide."""
    same, model = model, onnx.ModelProto()
    model.CopyFrom(same)
    (folder / "names").mkdir(exist_ok=True)
    owners = Restorable(fp32, model, folder / "names")._owners
    made_by = {output: node for node in model.graph.node for output in node.output}
    for node in model.graph.node:
        if owners.get(node.name) in layers and node.op_type == "MatMul":
            scale = made_by[node.input[0]].input[1]
            (tensor,) = (tensor for tensor in model.graph.initializer if tensor.name == scale)
            tensor.CopyFrom(onnx.numpy_helper.from_array(300 * onnx.numpy_helper.to_array(tensor), scale))
    return model


def numbered(folder: Path, count: int) -> list[Path]:
    """Files that are no images, each with bytes of its own."""
    paths = [folder / f"{i}.jpg" for i in range(count)]
    for i, path in enumerate(paths):
        path.write_bytes(b"%d" % i)
    return paths


@pytest.fixture
def detector(tiny_bundle: Path, tiny_recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> MdmfModel:
    """The tiny bundle's, whose graph is taken from there: tracing has tests of its own, and takes seconds."""
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
    detector: MdmfModel, tiny_bundle: Path, tiny_recipe: Recipe, tmp_path: Path
) -> None:
    # Between the rounding of int8 and that of fp32 on this model.
    strict = GateLimits(max_score_change=1e-4)
    recipe = msgspec.structs.replace(tiny_recipe, export=Export(precision="int8"), verification=strict)
    reals = [path for path in tiny_bundle.parent.iterdir() if path.is_file()]
    done = exporting.export_detector(detector, recipe, reals, tmp_path / "b.mdmf")
    manifest = Bundle.open(tmp_path / "b.mdmf").manifest
    assert manifest.model.precision == "fp32"
    assert manifest.refused == done.refused
    assert done.refused[0].precision == "int8"
    assert done.refused[0].reason.startswith(
        "more than half of its 24 layers would have to stay in fp32; with 12 it misses max_score_change"
    )
    assert manifest.limits == strict


def test_layers_that_change_decisions_stay_in_fp32(
    detector: MdmfModel,
    tiny_bundle: Path,
    tiny_recipe: Recipe,
    tiny_quantised: onnx.ModelProto,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two layers are quantised far too coarsely; the search must find those two, and no other."""
    bad = {"blocks.3.attn.proj", "head.layers.0"}
    coarse = coarsened(tiny_quantised, tiny_bundle / MODEL, bad, tmp_path)
    monkeypatch.setattr(trials, "quantise", lambda fp32, crops: coarse)
    recipe = msgspec.structs.replace(tiny_recipe, verification=LOOSE)
    reals = [path for path in tiny_bundle.parent.iterdir() if path.is_file()]
    said: list[str] = []
    done = exporting.export_detector(detector, recipe, reals, tmp_path / "b.mdmf", "int8", log=said.append)
    manifest = Bundle.open(tmp_path / "b.mdmf").manifest
    assert set(manifest.model.kept) == bad, said
    assert manifest.model.precision == "int8"
    assert [(gate.runtime, gate.passed) for gate in done.verification] == [(name, True) for name in installed()]
    assert all(gate.images_per_second > 0 for gate in done.verification)
    assert all(gate.reference.endswith("; the layers in fp32 were chosen on them") for gate in done.verification)
    assert any("ranking 24 layers" in line for line in said)
    assert any(line.startswith("int8: 2 of 24 layers in fp32") and line.endswith("passes") for line in said)


def test_what_the_search_passed_and_its_own_bank_does_not_gets_more_layers(
    detector: MdmfModel,
    tiny_bundle: Path,
    tiny_recipe: Recipe,
    tiny_quantised: onnx.ModelProto,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(trials, "quantise", lambda fp32, crops: tiny_quantised)
    gate = trials.Trials._gate

    def strict(self: trials.Trials, engine: Engine, manifest: Manifest, bank: Bank) -> Verification:
        found = gate(self, engine, manifest, bank)
        too_few = manifest.model.precision == "int8" and len(manifest.model.kept) < 3
        return msgspec.structs.replace(found, passed=False, reasons=("strict",)) if too_few else found

    monkeypatch.setattr(trials.Trials, "_gate", strict)
    recipe = msgspec.structs.replace(tiny_recipe, verification=LOOSE)
    reals = [path for path in tiny_bundle.parent.iterdir() if path.is_file()]
    exporting.export_detector(detector, recipe, reals, tmp_path / "b.mdmf", "int8", runtimes=[])
    assert len(Bundle.open(tmp_path / "b.mdmf").manifest.model.kept) == 3


def test_where_int8_passes_at_once_nothing_is_ranked(
    detector: MdmfModel,
    tiny_bundle: Path,
    tiny_recipe: Recipe,
    tiny_quantised: onnx.ModelProto,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(trials, "quantise", lambda fp32, crops: tiny_quantised)
    recipe = msgspec.structs.replace(tiny_recipe, verification=LOOSE)
    reals = [path for path in tiny_bundle.parent.iterdir() if path.is_file()]
    said: list[str] = []
    exporting.export_detector(detector, recipe, reals, tmp_path / "b.mdmf", "int8", log=said.append, runtimes=[])
    manifest = Bundle.open(tmp_path / "b.mdmf").manifest
    assert manifest.model.kept == (), said
    assert [gate.runtime for gate in manifest.verification] == ["onnxruntime"]
    assert manifest.verification[0].reference.endswith("held back from the bank")
    assert not any("ranking" in line for line in said)


def test_a_runtime_that_cannot_be_opened_costs_only_its_own_record(
    detector: MdmfModel, tiny_bundle: Path, tiny_recipe: Recipe, tmp_path: Path
) -> None:
    reals = [path for path in tiny_bundle.parent.iterdir() if path.is_file()]
    said: list[str] = []
    runtimes = ["quantum", "onnxruntime"]
    done = exporting.export_detector(
        detector, tiny_recipe, reals, tmp_path / "b.mdmf", log=said.append, runtimes=runtimes
    )
    assert [gate.runtime for gate in done.verification] == ["onnxruntime"]
    assert any(line.startswith("quantum: not verified, runtime 'quantum' is not known") for line in said)


class Counted:
    """ONNX Runtime's engine under another name; broken: it opens, and raises as it runs."""

    precision = "fp32"
    broken = False
    open: ClassVar[list[str]] = []

    def __init__(self, bundle: Bundle, threads: int | None = None) -> None:
        self._engine = OrtEngine(bundle, threads)
        self.name = "broken" if self.broken else "onnxruntime"
        self.open.append(self.name)

    def __call__(self, images: np.ndarray) -> np.ndarray:
        if self.broken:
            raise RuntimeError("Exception from src/core.cpp:97:\nno memory")
        return self._engine(images)

    def close(self) -> None:
        self.open.remove(self.name)
        self._engine.close()


class Broken(Counted):
    broken = True


@pytest.fixture
def _counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Both runtimes count their engines, all of which must have been closed in the end."""
    monkeypatch.setattr(trials, "OrtEngine", Counted)
    monkeypatch.setitem(ENGINES, "onnxruntime", (__name__, "Counted", "cpu"))
    monkeypatch.setitem(ENGINES, "broken", (__name__, "Broken", "cpu"))
    yield
    assert Counted.open == []


@pytest.mark.usefixtures("_counted")
def test_a_runtime_that_raises_while_it_runs_costs_only_its_own_record(
    detector: MdmfModel, tiny_bundle: Path, tiny_recipe: Recipe, tmp_path: Path
) -> None:
    reals = [path for path in tiny_bundle.parent.iterdir() if path.is_file()]
    said: list[str] = []
    runtimes = ["broken", "onnxruntime"]
    exporting.export_detector(detector, tiny_recipe, reals, tmp_path / "b.mdmf", log=said.append, runtimes=runtimes)
    assert [gate.runtime for gate in Bundle.open(tmp_path / "b.mdmf").manifest.verification] == ["onnxruntime"]
    assert "broken: not verified, Exception from src/core.cpp:97: no memory" in said


@pytest.mark.usefixtures("_counted")
def test_where_onnxruntime_raises_nothing_is_written(
    detector: MdmfModel, tiny_bundle: Path, tiny_recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Counted, "broken", True)
    reals = [path for path in tiny_bundle.parent.iterdir() if path.is_file()]
    with pytest.raises(RuntimeError, match="no memory"):
        exporting.export_detector(detector, tiny_recipe, reals, tmp_path / "b.mdmf", runtimes=[])
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_written_when_no_rung_passes(
    detector: MdmfModel, tiny_bundle: Path, tiny_recipe: Recipe, tmp_path: Path
) -> None:
    recipe = msgspec.structs.replace(tiny_recipe, verification=GateLimits(max_score_change=0.0))
    reals = [path for path in tiny_bundle.parent.iterdir() if path.is_file()]
    with pytest.raises(GateFailed, match=r"not written.*fp32: max_score_change") as failure:
        exporting.export_detector(detector, recipe, reals, tmp_path / "b.mdmf")
    assert failure.value.exit_code == 1
    assert list(tmp_path.iterdir()) == []


def test_what_is_not_a_bundle_is_not_replaced(tiny_recipe: Recipe, tmp_path: Path) -> None:
    (tmp_path / "keep.txt").write_text("mine")
    with pytest.raises(BundleError, match="not a bundle"):
        exporting.export_detector(MdmfModel(tiny_recipe), tiny_recipe, [], tmp_path)
