"""The recipe that a checkpoint's model follows: the one it was trained by, whole or by its name.

Checkpoints of `mdmf train` hold their whole recipe, because options such as --backbone change the one that was named.
Older ones hold its name. A file from elsewhere holds neither.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from mdmf_deploy.bundle.recipe import Recipe, load_recipe, recipe_names
from mdmf_deploy.errors import CheckpointError
from mdmf_deploy.model.tensors import listed, read_facts

_SHAPING = ("backbone.", "head.", "preprocessing.")
# How many crops are scored is chosen at export. A key map and its kernel are for files that hold no recipe.
_FREE = ("preprocessing.crops", "head.key_map", "head.kernel")
_UNCOMPARED = "summary"


def recipe_of(checkpoint: Path, given: str | None, log: Callable[[str], None] = lambda line: None) -> Recipe:
    """Return the recipe of a checkpoint: the one it was trained by, with the choices of a given one that are free.

    given: the name or file of a recipe, or None. It decides the name, the crop plan, and the tables export, bank and
        verification. The table training stays the checkpoint's.
    log: receives one line on the differences that were taken over.
    Raises CheckpointError if the given recipe describes another model, and if the file names no recipe that is known
    here and none is given. Raises RecipeError if the given one cannot be read.
    """
    if not checkpoint.is_file():
        raise CheckpointError(f"{checkpoint}: no such file; give the path of a checkpoint")
    own = _recorded(checkpoint)
    if given is None:
        if isinstance(own, Recipe):
            return own
        if own is None:
            raise CheckpointError(
                f"{checkpoint} does not say which recipe it was trained by; give that with --recipe NAME or FILE.toml"
            )
        raise CheckpointError(
            f"{checkpoint} was trained by recipe {own!r}, which is not in the package; give its file with --recipe FILE"
        )
    chosen = load_recipe(given)
    check_recipe(checkpoint, chosen)
    if not isinstance(own, Recipe):
        return chosen
    if found := _differences(own, chosen):
        log(
            f"{checkpoint} was trained by recipe {own.name!r}; --recipe {given} differs in {listed(found)}; its "
            "training stays the checkpoint's, the rest is taken from --recipe"
        )
    return msgspec.structs.replace(chosen, training=own.training)


def check_recipe(checkpoint: Path, recipe: Recipe) -> None:
    """Raise CheckpointError, naming the keys that differ, if a checkpoint says that another recipe describes its model.

    Its tensors alone would not show another crop, pool, activation or normalisation.
    """
    own = _recorded(checkpoint)
    if own is None or own == recipe.name:
        return
    if isinstance(own, str):
        raise CheckpointError(
            f"{checkpoint} was trained by recipe {own!r}, not {recipe.name!r}; give the file of that recipe"
        )
    shaping = [line for line in _differences(own, recipe) if line.startswith(_SHAPING) and not line.startswith(_FREE)]
    if shaping:
        raise CheckpointError(
            f"{checkpoint} was trained by recipe {own.name!r}, and recipe {recipe.name!r} describes another model: "
            f"{listed(shaping)}; leave out --recipe"
        )


def _recorded(checkpoint: Path) -> Recipe | str | None:
    """Return the recipe in the file, or that of the package it names, or the name if the package has none, or None."""
    found = read_facts(checkpoint).get("recipe")
    if found is None:
        return None
    if isinstance(found, str):
        return load_recipe(found) if found in recipe_names() else found
    try:
        return msgspec.convert(found, Recipe)
    except msgspec.ValidationError as error:
        raise CheckpointError(
            f"{checkpoint}: the recipe in it is not one of this version ({error}); upgrade mdmf-deploy, or train again"
        ) from error


def _differences(own: Recipe, other: Recipe) -> list[str]:
    """Return each key whose values differ, with both values."""
    ours, theirs = (dict(_flat(msgspec.to_builtins(recipe))) for recipe in (own, other))
    return [
        f"{key} ({ours.get(key)} in the checkpoint, not {theirs.get(key)})"
        for key in sorted(ours.keys() | theirs.keys())
        if key != _UNCOMPARED and ours.get(key) != theirs.get(key)
    ]


def _flat(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
