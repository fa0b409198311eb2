"""`mdmf recipe`: what it lists is what can be trained, and what it shows is a recipe again."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest
from helpers.mdmf import mdmf

from mdmf_deploy.bundle.recipe import Recipe, load_recipe, recipe_names


def test_every_recipe_is_listed_within_80_columns() -> None:
    lines = mdmf("recipe", "list").stdout.splitlines()
    assert max(map(len, lines)) <= 80
    assert [line.split()[0] for line in lines if not line.startswith(" ")] == ["recipe", *recipe_names()]
    words = " ".join(" ".join(lines).split())
    for name in recipe_names():
        recipe = load_recipe(name)
        assert f"{name} {recipe.backbone.architecture} " in words
        assert recipe.summary.split()[-1] in words


def test_the_list_as_json_holds_the_same() -> None:
    found = json.loads(mdmf("recipe", "list", "--json").stdout)
    assert [(row["name"], row["backbone"], row["summary"]) for row in found] == [
        (recipe.name, recipe.backbone.architecture, recipe.summary) for recipe in map(load_recipe, recipe_names())
    ]


@pytest.mark.parametrize("name", recipe_names())
def test_a_recipe_that_is_shown_and_saved_is_the_same_recipe(name: str, tmp_path: Path) -> None:
    mine = tmp_path / "mine.toml"
    mine.write_text(mdmf("recipe", "show", name).stdout, encoding="utf-8")
    assert load_recipe(mine) == load_recipe(name)
    assert mdmf("recipe", "show", mine).stdout == mine.read_text(encoding="utf-8")
    assert msgspec.json.decode(mdmf("recipe", "show", mine, "--json").stdout, type=Recipe) == load_recipe(name)


def test_a_name_that_is_none_and_a_file_that_is_no_recipe_are_one_line(tmp_path: Path) -> None:
    unknown = mdmf("recipe", "show", "nowhere")
    assert (unknown.exit_code, unknown.stdout) == (2, "")
    assert "choose one of dinov2_vitb14, " in unknown.stderr
    (tmp_path / "bad.toml").write_text("name = 3")
    bad = mdmf("recipe", "show", tmp_path / "bad.toml")
    assert (bad.exit_code, bad.stdout) == (2, "")
    assert "bad.toml: Expected `str`" in bad.stderr
