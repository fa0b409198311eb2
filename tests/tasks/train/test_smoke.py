"""A smoke run: the same model and the same parts as the real one, on a few images of every source."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import msgspec
import pytest
from helpers.training_data import generated, paths
from safetensors.torch import load_file

from mdmf_deploy.bundle.recipe import BankGate, Pairs, Recipe, Split, load_recipe, part_of, recipe_names, source_of
from mdmf_deploy.model.architectures import architecture
from mdmf_deploy.model.checkpoints import is_of_a_smoke_run, load_model
from mdmf_deploy.tasks.train.loop import STATE
from mdmf_deploy.tasks.train.phases import Phase, Reports
from mdmf_deploy.tasks.train.smoke import few, smoke
from mdmf_deploy.tasks.train.train import TrainingRun, fit


@pytest.mark.parametrize("name", recipe_names())
def test_a_smoked_recipe_keeps_the_model_and_every_part_of_a_batch(name: str) -> None:
    recipe = load_recipe(name)
    small = smoke(recipe)
    for field in ("name", "backbone", "head"):
        assert getattr(small, field) == getattr(recipe, field)
    before, after = recipe.training, small.training
    assert after.steps <= 5
    assert after.batch <= 8
    assert small.preprocessing.crop // architecture(recipe.backbone.architecture).patch >= recipe.head.pool
    for field in ("objective", "patch_cross_entropy", "sigma", "lora", "split", "seed", "average"):
        assert getattr(after, field) == getattr(before, field)
    assert after.pairs.autoencoders == before.pairs.autoencoders
    shares = (before.pairs.share, after.pairs.share), (before.reals.featureless, after.reals.featureless)
    for old, new in (*shares, (before.reals.enlarged, after.reals.enlarged)):
        assert round(new * after.batch) == (1 if old else 0)
    assert smoke(small) == small


def test_few_images_are_of_every_source_and_both_parts(training_folder: Path) -> None:
    split = Split(train=0.5, validation=0.4, held_out=("other",))
    real, made = few(paths(training_folder / "real"), generated(training_folder), split)
    assert set(made) == {"checker"}
    for chosen, folder, generator in (
        (real, "real", None),
        (made["checker"], "generated/checker", "checker"),
    ):
        there, found = (
            Counter(
                part_of(hashlib.sha256(path.read_bytes()).hexdigest(), split, source_of(path, generator))
                for path in some
            )
            for some in (paths(training_folder / folder), chosen)
        )
        assert found == {"train": min(6, there["train"]), "validation": min(3, there["validation"])}


def test_few_images_are_readable_and_distinct_and_no_more_are_read(training_folder: Path, tmp_path: Path) -> None:
    photos = paths(training_folder / "real")
    (tmp_path / "a").mkdir()
    (tmp_path / "broken.png").write_bytes(b"no image")
    copy = tmp_path / "a" / "copy.png"
    copy.write_bytes(photos[0].read_bytes())
    missing = tmp_path / "never read.png"
    kept, _ = few([tmp_path / "broken.png", copy, *photos, missing], {}, Split(train=0.5, validation=0.4))
    assert copy in kept
    assert not {photos[0], missing, tmp_path / "broken.png"} & {*kept}


@pytest.mark.usefixtures("small_model")
def test_a_smoke_run_goes_through_every_phase_and_marks_its_checkpoint(
    training_folder: Path, training_recipe: Recipe, autoencoders: Path, tmp_path: Path
) -> None:
    pairs = Pairs(autoencoders=("plain",))
    training = msgspec.structs.replace(
        training_recipe.training, steps=10_000, batch=500, pairs=pairs, gate=BankGate(min_kernel=1.0)
    )
    recipe = msgspec.structs.replace(training_recipe, training=training)
    plan = TrainingRun(recipe, tmp_path, train_backbone=True, autoencoders=autoencoders, smoke=True)
    lines: list[str] = []
    phases: list[Phase] = []
    records: list[dict[str, float]] = []
    reports = Reports(lines.append, records.append, phases.append)
    checkpoint = fit(plan, paths(training_folder / "real"), generated(training_folder), reports)
    load_model(checkpoint, recipe)
    assert is_of_a_smoke_run(checkpoint)
    assert "worth nothing" in lines[0]
    # A gate that no detector passes is reported, and does not fail.
    assert any(line.startswith("gate: ") and "at least 1.0" in line for line in lines)
    assert not (tmp_path / STATE).exists()
    names = ["reading images", "cutting crops", "pairs for validation", "training", "validation"]
    assert list(dict.fromkeys(phase.name for phase in phases)) == names
    for name in names:
        own = [phase for phase in phases if phase.name == name]
        assert own[0].done == 0
        assert own[-1].done == own[-1].total
        assert all(later.done - phase.done <= phase.total for phase, later in pairwise(own))
    assert [record["step"] for record in records if "auroc_mean" in record] == [2, 4]
    assert load_file(checkpoint)["backbone.patch_embed.proj.weight"].isfinite().all()


def test_a_checkpoint_of_a_real_run_is_not_marked(tiny_recipe: Recipe, tmp_path: Path) -> None:
    from mdmf_deploy.model.checkpoints import save_model
    from mdmf_deploy.model.pfs import MdmfModel

    save_model(tmp_path / "real.safetensors", MdmfModel(tiny_recipe), {"recipe": "tiny"})
    assert not is_of_a_smoke_run(tmp_path / "real.safetensors")
    assert replace(TrainingRun(tiny_recipe, tmp_path), smoke=True).sizes != TrainingRun(tiny_recipe, tmp_path).sizes
