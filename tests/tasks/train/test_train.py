"""`mdmf train` end to end on tiny data: what it writes, that it learns, and that an interruption changes nothing."""

from __future__ import annotations

import csv
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from unittest.mock import create_autospec

import msgspec
import pytest
import torch
from helpers.training_data import generated, paths
from safetensors.torch import load_file

from mdmf_deploy.bundle.recipe import Adapters, BankGate, Pairs, Recipe
from mdmf_deploy.errors import CheckpointError, TrainingFailed, UsageError
from mdmf_deploy.files import file_sha256, only_writer
from mdmf_deploy.model.checkpoints import backbone_source, load_model
from mdmf_deploy.model.dinov2 import DinoV2
from mdmf_deploy.model.pfs import MdmfModel
from mdmf_deploy.model.recipes import recipe_of
from mdmf_deploy.tasks.train.history import write_plot
from mdmf_deploy.tasks.train.loop import STATE, Cadence
from mdmf_deploy.tasks.train.phases import Reports
from mdmf_deploy.tasks.train.smoke import FULL
from mdmf_deploy.tasks.train.train import CHECKPOINT, FAILED, TrainingRun, fit

# The backbone of every run is a small one, and so are its other sizes.
pytestmark = pytest.mark.usefixtures("small_model", "small_sizes")
EVERY = Cadence(log=1, validate=2, save=2)


def run(folder: Path, plan: TrainingRun) -> Path:
    return fit(plan, paths(folder / "real"), generated(folder))


def with_training(plan: TrainingRun, **changes: object) -> TrainingRun:
    training = msgspec.structs.replace(plan.recipe.training, **changes)
    return replace(plan, recipe=msgspec.structs.replace(plan.recipe, training=training))


@pytest.fixture(scope="module")
def small_sizes() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mdmf_deploy.tasks.train.train.FULL", replace(FULL, featureless=4, largest=64))
        yield


@pytest.fixture(scope="module")
def whole(
    training_folder: Path, training_recipe: Recipe, autoencoders: Path, tmp_path_factory: pytest.TempPathFactory
) -> TrainingRun:
    """A finished run that also trained the backbone. Never change its folder."""
    pairs = Pairs(autoencoders=("plain",), held_out="grouped", share=0.5)
    recipe = msgspec.structs.replace(
        training_recipe, training=msgspec.structs.replace(training_recipe.training, pairs=pairs, steps=4)
    )
    folder = tmp_path_factory.mktemp("whole")
    plan = TrainingRun(recipe, folder, train_backbone=True, autoencoders=autoencoders, cadence=EVERY)
    with pytest.MonkeyPatch.context() as patch:
        # Drawing takes seconds. test_history.py tests it.
        drawn = create_autospec(write_plot, side_effect=lambda path, *_: path.write_bytes(b"drawn"))
        patch.setattr("mdmf_deploy.tasks.train.train.write_plot", drawn)
        run(training_folder, plan)
    return plan


@pytest.fixture(scope="module")
def frozen(training_folder: Path, training_recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> TrainingRun:
    """A finished run of one step on a frozen backbone. Never change its folder."""
    folder = tmp_path_factory.mktemp("frozen")
    torch.manual_seed(3)
    weights = folder / "backbone.pth"
    torch.save(MdmfModel(training_recipe).backbone.state_dict(), weights)
    plan = TrainingRun(training_recipe, folder / "run", weights, cadence=Cadence(log=20, validate=60, save=60))
    plan = with_training(plan, steps=1, learning_rate=3e-3, warmup=5)
    run(training_folder, plan)
    return plan


def afresh(plan: TrainingRun, folder: Path) -> TrainingRun:
    """The same run in another folder, with the features that are computed already."""
    shutil.copytree(plan.folder / "features", folder / "features")
    return replace(plan, folder=folder)


def hashes(folder: Path) -> dict[Path, str]:
    return {path: file_sha256(path) for path in folder.rglob("*") if path.is_file()}


def test_a_resumed_run_ends_where_an_uninterrupted_one_ends(
    training_folder: Path, whole: TrainingRun, tmp_path: Path
) -> None:
    torch.manual_seed(99)  # the state of the process must not matter
    cut = replace(whole, folder=tmp_path, stop_after=3)
    run(training_folder, cut)
    torch.manual_seed(7)
    run(training_folder, replace(cut, resume=True, stop_after=None))
    first, second = load_file(whole.folder / CHECKPOINT), load_file(tmp_path / CHECKPOINT)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert (whole.folder / "history.csv").read_text() == (tmp_path / "history.csv").read_text()


def test_a_run_leaves_a_checkpoint_a_history_a_plot_and_the_split(training_folder: Path, whole: TrainingRun) -> None:
    load_model(whole.folder / CHECKPOINT, whole.recipe)
    assert recipe_of(whole.folder / CHECKPOINT, None) == whole.recipe
    with (whole.folder / "history.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == [str(step) for step in range(1, 5)]
    assert {"loss", "power", "mmd2", "sigma", "auroc_checker", "auroc_mean"} <= rows[-1].keys()
    gates = {"auroc_swapped", "mean_kernel", "self_rank", "fpr_flat", "fpr_gradient", "fpr_text", "fpr_double"}
    assert gates | {"pairs_plain", "pairs_grouped"} <= rows[-1].keys()
    assert "auroc_other" not in rows[-1]  # held out: never looked at while training
    assert (whole.folder / "history.png").read_bytes() == b"drawn"
    lists = {path.stem: path.read_text().splitlines() for path in (whole.folder / "split").iterdir()}
    assert len(lists["test-other"]) == 4
    assert "train-other" not in lists
    listed = [line for lines in lists.values() for line in lines]
    assert sorted(listed) == sorted(map(str, paths(training_folder)))


def test_resuming_with_other_data_is_refused(training_folder: Path, frozen: TrainingRun, tmp_path: Path) -> None:
    plan = replace(frozen, folder=Path(shutil.copytree(frozen.folder, tmp_path / "run")))
    real = paths(training_folder / "real")
    before = hashes(plan.folder)
    for other in (real[1:], real[::-1]):  # the order decides what is drawn
        with pytest.raises(CheckpointError, match="other images"):
            fit(replace(plan, resume=True), other, generated(training_folder))
    assert hashes(plan.folder) == before
    with pytest.raises(CheckpointError, match="--resume"):
        run(training_folder, plan)
    with pytest.raises(CheckpointError, match="without --resume"):
        run(training_folder, replace(plan, folder=tmp_path / "elsewhere", resume=True))


@pytest.mark.skipif(os.name != "posix", reason="no such locks on Windows")
def test_a_second_run_in_one_folder_is_refused(training_folder: Path, frozen: TrainingRun, tmp_path: Path) -> None:
    plan = replace(frozen, folder=tmp_path)
    with (
        only_writer(tmp_path / CHECKPOINT),
        pytest.raises(UsageError, match="another process is writing it"),
    ):
        run(training_folder, plan)
    assert not list(tmp_path.iterdir())


def test_a_run_removes_what_a_killed_one_left(training_folder: Path, frozen: TrainingRun, tmp_path: Path) -> None:
    plan = afresh(frozen, tmp_path)
    for folder in (tmp_path, tmp_path / "features"):
        (folder / ".state.safetensors.0123456789abcdef.mdmf-tmp").touch()
    run(training_folder, plan)
    assert not list(tmp_path.rglob("*.mdmf-tmp"))


@pytest.mark.parametrize("objective", ["image", "pooled"])
def test_training_raises_the_test_power_on_a_frozen_backbone(
    training_folder: Path, frozen: TrainingRun, objective: str, tmp_path: Path
) -> None:
    plan = with_training(afresh(frozen, tmp_path), objective=objective, steps=60)
    history: list[dict[str, float]] = []
    checkpoint = fit(plan, paths(training_folder / "real"), generated(training_folder), Reports(watch=history.append))
    assert history[-1]["power"] > history[0]["power"] + 0.1
    state, source = load_file(checkpoint), torch.load(plan.backbone_weights, weights_only=True)
    assert all(torch.equal(state[f"backbone.{key}"], value) for key, value in source.items())
    assert not [name for name in load_file(plan.folder / STATE) if "backbone." in name]
    assert not torch.equal(state["head.mean"], torch.zeros_like(state["head.mean"]))
    assert load_file(run(training_folder, replace(plan, resume=True))).keys() == state.keys()


def test_features_are_computed_once(
    training_folder: Path, frozen: TrainingRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("the backbone ran again")

    monkeypatch.setattr(DinoV2, "forward", refuse)
    run(training_folder, afresh(frozen, tmp_path))


def test_a_frozen_backbone_without_weights_is_refused(
    training_folder: Path, training_recipe: Recipe, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="--backbone-weights"):
        run(training_folder, TrainingRun(training_recipe, tmp_path))


def test_adapters_are_saved_without_the_backbone_and_resume(
    training_folder: Path, frozen: TrainingRun, tmp_path: Path
) -> None:
    assert frozen.backbone_weights is not None
    lora = Adapters(blocks=(3, 4), rank=2)
    plan = with_training(replace(frozen, folder=tmp_path / "whole"), lora=lora, steps=3)
    whole = load_file(run(training_folder, plan))
    cut = replace(plan, folder=tmp_path / "cut", stop_after=2)
    run(training_folder, cut)
    again = run(training_folder, replace(cut, resume=True, stop_after=None))
    assert all(torch.equal(value, whole[key]) for key, value in load_file(again).items())
    assert not [key for key in whole if key.startswith("backbone.")]
    assert sum(key.startswith("lora.blocks.") for key in whole) == 2 * 4 * 2
    assert any(value.abs().max() > 0 for key, value in whole.items() if key.endswith(".B"))
    assert not [key for key in load_file(plan.folder / STATE) if "original" in key or "patch_embed" in key]
    load_model(again, plan.recipe, plan.backbone_weights)
    source = backbone_source(again)
    assert source is not None
    assert (source.sha256, source.origin) == (file_sha256(plan.backbone_weights), "unknown")
    assert backbone_source(frozen.folder / CHECKPOINT) == source
    with pytest.raises(UsageError, match="leave out --train-backbone"):
        run(training_folder, replace(plan, folder=tmp_path / "both", train_backbone=True))


def test_a_detector_that_ignores_its_bank_fails_and_is_kept_under_another_name(
    training_folder: Path, frozen: TrainingRun, tmp_path: Path
) -> None:
    plan = with_training(afresh(frozen, tmp_path), gate=BankGate(min_kernel=1.0))
    with pytest.raises(TrainingFailed, match=f"the bank does not matter .*{FAILED}"):
        run(training_folder, plan)
    assert not (tmp_path / CHECKPOINT).exists()
    load_model(tmp_path / FAILED, plan.recipe)
