"""`mdmf train` end to end on tiny data: what it writes, that it learns, and that an interruption changes nothing."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
import torch
from helpers.training_data import generated, paths
from safetensors.torch import load_file

from mdmf_deploy.bundle.recipe import Pairs, Recipe
from mdmf_deploy.errors import CheckpointError, UsageError
from mdmf_deploy.model.checkpoints import load_model
from mdmf_deploy.model.dinov2 import DinoV2
from mdmf_deploy.model.pfs import MdmfModel
from mdmf_deploy.tasks.train.loop import STATE, Cadence
from mdmf_deploy.tasks.train.train import Plan, fit

EVERY = Cadence(log=1, validate=4, save=4)


def run(folder: Path, plan: Plan) -> Path:
    return fit(plan, paths(folder / "real"), generated(folder))


def test_a_resumed_run_ends_where_an_uninterrupted_one_ends(
    training_folder: Path, training_recipe: Recipe, tmp_path: Path
) -> None:
    whole = run(training_folder, Plan(training_recipe, tmp_path / "a", train_backbone=True, cadence=EVERY))
    torch.manual_seed(99)  # whatever state the process is in must not matter
    cut = Plan(training_recipe, tmp_path / "b", train_backbone=True, cadence=EVERY, stop_after=5)
    run(training_folder, cut)
    torch.manual_seed(7)
    again = run(training_folder, replace(cut, resume=True, stop_after=None))
    first, second = load_file(whole), load_file(again)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert (tmp_path / "a/history.csv").read_text() == (tmp_path / "b/history.csv").read_text()


def test_a_run_leaves_a_checkpoint_a_history_a_plot_and_the_split(
    training_folder: Path, training_recipe: Recipe, tmp_path: Path
) -> None:
    checkpoint = run(training_folder, Plan(training_recipe, tmp_path, train_backbone=True, cadence=EVERY))
    load_model(checkpoint, training_recipe)
    with (tmp_path / "history.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == [str(step) for step in range(1, 9)]
    assert {"loss", "power", "mmd2", "sigma", "auroc_checker", "auroc_mean"} <= rows[-1].keys()
    assert "auroc_other" not in rows[-1]  # held out: never looked at while training
    assert (tmp_path / "history.png").read_bytes().startswith(b"\x89PNG")
    lists = {path.stem: path.read_text().splitlines() for path in (tmp_path / "split").iterdir()}
    assert len(lists["test-other"]) == 12
    assert "train-other" not in lists
    assert len({line for lines in lists.values() for line in lines}) == sum(map(len, lists.values())) == 60


def test_resuming_with_other_data_is_refused(training_folder: Path, training_recipe: Recipe, tmp_path: Path) -> None:
    plain = msgspec.structs.replace(
        training_recipe, training=msgspec.structs.replace(training_recipe.training, steps=1, pairs=Pairs(views=0))
    )
    plan = Plan(plain, tmp_path, train_backbone=True, cadence=EVERY)
    fit(plan, paths(training_folder / "real"), generated(training_folder))
    real = paths(training_folder / "real")
    for other in (real[1:], real[::-1]):  # the order decides what is drawn
        with pytest.raises(CheckpointError, match="other images"):
            fit(replace(plan, resume=True), other, generated(training_folder))
    with pytest.raises(CheckpointError, match="--resume"):
        fit(plan, real, generated(training_folder))
    with pytest.raises(CheckpointError, match="without --resume"):
        fit(replace(plan, folder=tmp_path / "elsewhere", resume=True), real, generated(training_folder))


@pytest.fixture
def frozen(training_recipe: Recipe, tmp_path: Path) -> Plan:
    """A frozen backbone whose weights are a file; 60 steps of the head alone."""
    torch.manual_seed(3)
    detector = MdmfModel(training_recipe)
    weights = tmp_path / "backbone.pth"
    torch.save(detector.backbone.state_dict(), weights)
    training = msgspec.structs.replace(training_recipe.training, steps=60, learning_rate=3e-3, warmup=5)
    recipe = msgspec.structs.replace(training_recipe, training=training)
    return Plan(recipe, tmp_path / "run", backbone_weights=weights, cadence=Cadence(log=20, validate=60, save=60))


@pytest.mark.parametrize("objective", ["image", "pooled"])
def test_training_raises_the_test_power_on_a_frozen_backbone(
    training_folder: Path, frozen: Plan, objective: str
) -> None:
    training = msgspec.structs.replace(frozen.recipe.training, objective=objective)
    plan = replace(frozen, recipe=msgspec.structs.replace(frozen.recipe, training=training))
    history: list[dict[str, float]] = []
    checkpoint = fit(plan, paths(training_folder / "real"), generated(training_folder), watch=history.append)
    assert history[-1]["power"] > history[0]["power"] + 0.1
    state, source = load_file(checkpoint), torch.load(plan.backbone_weights, weights_only=True)
    assert all(torch.equal(state[f"backbone.{key}"], value) for key, value in source.items())
    assert not [name for name in load_file(plan.folder / STATE) if "backbone." in name]
    again = replace(plan, resume=True)
    assert load_file(run(training_folder, again)).keys() == state.keys()


def test_features_are_computed_once(training_folder: Path, frozen: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    quick = msgspec.structs.replace(frozen.recipe.training, steps=1)
    plan = replace(frozen, recipe=msgspec.structs.replace(frozen.recipe, training=quick))
    run(training_folder, plan)
    (plan.folder / STATE).unlink()

    def refuse(*_: object) -> None:
        raise AssertionError("the backbone ran again")

    monkeypatch.setattr(DinoV2, "forward", refuse)
    run(training_folder, plan)


def test_a_frozen_backbone_without_weights_is_refused(
    training_folder: Path, training_recipe: Recipe, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="--backbone-weights"):
        run(training_folder, Plan(training_recipe, tmp_path))
