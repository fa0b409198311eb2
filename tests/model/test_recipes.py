"""The recipe of a checkpoint: its own, whatever was trained, and no other that describes another model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from safetensors.torch import save_file

from mdmf_deploy.bundle.recipe import Export, GateLimits, Recipe, load_recipe
from mdmf_deploy.errors import CheckpointError
from mdmf_deploy.files import room
from mdmf_deploy.model.checkpoints import load_model, save_model
from mdmf_deploy.model.pfs import MdmfModel
from mdmf_deploy.model.recipes import recipe_of

TOML = """
name = "{name}"
summary = "Another text."
backbone = {{ architecture = "starter_vit14"{backbone} }}
preprocessing = {{ crop = 56{preprocessing} }}
head = {{ pool = 2, hidden = [16], signature = 8{head} }}
"""


def write_recipe(folder: Path, name: str = "tiny", more: str = "", **tables: str) -> str:
    filled = dict.fromkeys(("backbone", "preprocessing", "head"), "") | tables
    path = folder / f"{name}.toml"
    path.write_text(TOML.format(name=name, **filled) + more)
    return str(path)


def with_head(recipe: Recipe, **changes: Any) -> Recipe:
    return msgspec.structs.replace(recipe, head=msgspec.structs.replace(recipe.head, **changes))


@pytest.fixture
def trained(model: MdmfModel, tiny_recipe: Recipe, tmp_path: Path) -> Path:
    """A checkpoint of a recipe with options that no file has."""
    training = msgspec.structs.replace(tiny_recipe.training, steps=50, sigma=(0.5, 1 / 3 + 1), seed=7)
    save_model(tmp_path / "c.safetensors", model, {"recipe": msgspec.structs.replace(tiny_recipe, training=training)})
    return tmp_path / "c.safetensors"


def test_a_checkpoint_holds_its_whole_recipe(model: MdmfModel, tmp_path: Path) -> None:
    for name in ("dinov2s", "dinov2_vitl14"):
        save_model(tmp_path / "c.safetensors", model, {"recipe": load_recipe(name)})
        assert recipe_of(tmp_path / "c.safetensors", None) == load_recipe(name)


@pytest.mark.parametrize("name", ["dinov2s", "starter"])
def test_the_checkpoints_in_the_repository_name_their_recipes(name: str) -> None:
    checkpoint = room("export") / "checkpoints" / f"{name}.safetensors"
    assert recipe_of(checkpoint, None) == load_recipe(name)
    assert recipe_of(checkpoint, name) == load_recipe(name)
    other = "starter" if name == "dinov2s" else "dinov2s"
    with pytest.raises(CheckpointError, match=f"trained by recipe '{name}', and recipe '{other}' describes another"):
        recipe_of(checkpoint, other)


@pytest.mark.parametrize(
    ("table", "change", "named"),
    [
        ("backbone", ', position_resampling = "transformers"', "backbone.position_resampling (official in"),
        ("head", ', activation = "relu"', "head.activation (gelu in the checkpoint, not relu)"),
        ("head", ", normalise = true", "head.normalise (False in the checkpoint, not True)"),
        ("preprocessing", ", mean = [0.5, 0.5, 0.5]", "preprocessing.mean ("),
    ],
)
def test_a_recipe_of_another_model_is_refused_by_the_keys_that_differ(
    table: str, change: str, named: str, trained: Path, tmp_path: Path
) -> None:
    """The tensors fit all of these."""
    given = write_recipe(tmp_path, **{table: change})
    for refusing in (lambda: recipe_of(trained, given), lambda: load_model(trained, load_recipe(given))):
        with pytest.raises(CheckpointError) as caught:
            refusing()
        assert named in str(caught.value)
        assert str(trained) in str(caught.value)
        assert "training.steps" not in str(caught.value)
        assert "\n" not in str(caught.value)


def test_other_choices_are_taken_over_and_told_but_for_the_training(
    trained: Path, tiny_recipe: Recipe, tmp_path: Path
) -> None:
    more = '[export]\nprecision = "int8"\n[verification]\nmax_score_change = 0.2\n[training]\nsteps = 9\n'
    given = write_recipe(tmp_path, "mine", more, preprocessing=", crops = 4")
    lines: list[str] = []
    chosen = recipe_of(trained, given, lines.append)
    own = recipe_of(trained, None)
    assert chosen.training == own.training != tiny_recipe.training
    assert (chosen.name, chosen.preprocessing.crops) == ("mine", 4)
    assert (chosen.export, chosen.verification) == (Export(precision="int8"), GateLimits(max_score_change=0.2))
    (line,) = lines
    for key in ("name", "preprocessing.crops", "export.precision", "verification.max_score_change", "training.steps"):
        assert f"{key} (" in line
    assert "summary" not in line
    load_model(trained, chosen)


def test_the_same_recipe_is_told_nothing(model: MdmfModel, tmp_path: Path) -> None:
    given = write_recipe(tmp_path)
    save_model(tmp_path / "c.safetensors", model, {"recipe": load_recipe(given)})
    assert recipe_of(tmp_path / "c.safetensors", given, lambda line: pytest.fail(line)) == load_recipe(given)


def test_a_key_map_is_no_difference_to_a_file_that_holds_our_own_keys(
    model: MdmfModel, tiny_recipe: Recipe, tmp_path: Path
) -> None:
    mapped = with_head(tiny_recipe, kernel="mmd-mp", key_map={"sigma": "bandwidth"})
    save_model(tmp_path / "c.safetensors", model, {"recipe": mapped})
    assert recipe_of(tmp_path / "c.safetensors", write_recipe(tmp_path)).head == tiny_recipe.head


def test_a_name_alone_needs_a_file_of_that_name(model: MdmfModel, tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    save_model(path, model, {"recipe": "tiny"})
    with pytest.raises(CheckpointError, match=r"'tiny', which is not in the package; give its file with --recipe FILE"):
        recipe_of(path, None)
    assert recipe_of(path, write_recipe(tmp_path)).name == "tiny"
    with pytest.raises(CheckpointError, match="trained by recipe 'tiny', not 'other'"):
        recipe_of(path, write_recipe(tmp_path, "other"))


def test_a_file_from_elsewhere_needs_a_recipe(model: MdmfModel, tmp_path: Path) -> None:
    given = write_recipe(tmp_path)
    save_file(dict(model.state_dict()), tmp_path / "theirs.safetensors")
    torch.save(model.state_dict(), tmp_path / "theirs.pth")
    for name in ("theirs.safetensors", "theirs.pth"):
        with pytest.raises(CheckpointError, match=r"does not say which recipe .* --recipe NAME or FILE\.toml"):
            recipe_of(tmp_path / name, None)
        assert recipe_of(tmp_path / name, given) == load_recipe(given)
    with pytest.raises(CheckpointError, match=r"gone\.pth: no such file"):
        recipe_of(tmp_path / "gone.pth", given)


@pytest.mark.parametrize("recipe", [{"name": "tiny"}, {"name": "tiny", "flavour": 1}, 7, ["starter"]])
def test_a_recipe_that_this_version_cannot_read_is_refused(recipe: object, model: MdmfModel, tmp_path: Path) -> None:
    save_model(tmp_path / "c.safetensors", model, {"recipe": recipe})
    with pytest.raises(CheckpointError, match="the recipe in it is not one of this version") as caught:
        recipe_of(tmp_path / "c.safetensors", None)
    assert "\n" not in str(caught.value)
