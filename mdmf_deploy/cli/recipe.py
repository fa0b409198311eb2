"""`mdmf recipe`: the recipes in the package, and one as a file to start from."""

from __future__ import annotations

import textwrap
from typing import Annotated

import typer

from mdmf_deploy.cli.console import print_file, print_json, print_lines
from mdmf_deploy.cli.options import AsJson, complete_recipe

app = typer.Typer(no_args_is_help=True, help="List recipes and show one.")
_WIDTH = 80


@app.command("list")
def list_recipes(as_json: AsJson = False) -> None:
    """List the recipes in the package: name, backbone and summary.

    Example: mdmf recipe list
    """
    from mdmf_deploy.bundle.recipe import load_recipe, recipe_names

    recipes = [load_recipe(name) for name in recipe_names()]
    rows = [(recipe.name, recipe.backbone.architecture, recipe.summary) for recipe in recipes]
    if as_json:
        print_json([dict(zip(("name", "backbone", "summary"), row, strict=True)) for row in rows])
        return
    rows.insert(0, ("recipe", "backbone", "summary"))
    names, backbones = (max(len(row[column]) for row in rows) + 2 for column in (0, 1))
    for name, backbone, summary in rows:
        first, *more = textwrap.wrap(summary, _WIDTH - names - backbones) or [""]
        print_lines([f"{name:<{names}}{backbone:<{backbones}}{first}"])
        print_lines(" " * (names + backbones) + line for line in more)


@app.command()
def show(
    recipe: Annotated[str, typer.Argument(help="A recipe's name, or a .toml file.", autocompletion=complete_recipe)],
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON of every value, those that the file leaves to defaults, too.")
    ] = False,
) -> None:
    """Print a recipe's file as it is.

    Redirect it to a file, change that, and give it to `mdmf train --recipe`. The file is checked before it is printed.

    Example: mdmf recipe show starter > mine.toml
    """
    from mdmf_deploy.bundle.recipe import load_recipe, recipe_path

    loaded = load_recipe(recipe)
    if as_json:
        print_json(loaded)
    else:
        print_file(recipe_path(recipe).read_text(encoding="utf-8"))
