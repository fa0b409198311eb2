"""Recipes load with defaults, every mistake names its file and place, and an image's part never changes."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from helpers.handmade import sha
from hypothesis import given
from hypothesis import strategies as st

from mdmf_deploy.bundle.recipe import Split, load_recipe, part_of, recipe_names, source_of
from mdmf_deploy.errors import RecipeError
from mdmf_deploy.model.architectures import architecture

GOOD = 'name = "x"\nsummary = "y"\n[backbone]\narchitecture = "dinov2_vits14"\n'


def write(folder: Path, text: str) -> Path:
    path = folder / "mine.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_shipped_recipes_are_the_two_bundles_and_every_size_of_dinov2() -> None:
    assert {"dinov2s", "starter", *(f"dinov2_vit{size}14" for size in "sblg")} <= set(recipe_names())


@pytest.mark.parametrize("name", recipe_names())
def test_a_shipped_recipe_loads_and_fits_its_backbone(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name
    backbone = architecture(recipe.backbone.architecture)
    assert recipe.preprocessing.crop % backbone.patch == 0
    assert recipe.head.pool <= recipe.preprocessing.crop // backbone.patch


@pytest.mark.parametrize("size", "sblg")
def test_recipes_of_dinov2_are_those_of_the_paper(size: str) -> None:
    recipe = load_recipe(f"dinov2_vit{size}14")
    assert recipe.backbone.architecture == recipe.name
    assert recipe.preprocessing.crop == 224
    assert (recipe.head.pool, recipe.head.hidden, recipe.head.signature) == (7, (512, 512), 128)


def test_a_recipe_given_by_path_takes_the_defaults(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, GOOD))
    assert recipe.backbone.architecture == "dinov2_vits14"
    assert recipe.head.signature == 128


@pytest.mark.parametrize(
    ("addition", "place"),
    [
        ("[head]\ndepth = 3\n", r"unknown field `depth` - at `\$\.head`"),
        ("[heads]\npool = 3\n", "unknown field `heads`"),
        ('[head]\npool = "seven"\n', r"Expected `int`, got `str` - at `\$\.head\.pool`"),
        ("[head]\npool = 0\n", "must be at least 1"),
        ("[head]\nhidden = [512, 0]\n", "must be at least 1"),
        (
            "[backbone]\narchitecture = 'dinov2_vits14'\nblocks = [0, 3]\n",
            r"counted from 1 .*got \[0, 3\] - at `\$\.backbone`",
        ),
        ("[backbone]\narchitecture = 'dinov2_vits14'\nblocks = [6, 3]\n", r"ascend, such as \[3, 6, 9\]; got \[6, 3\]"),
        ("[backbone]\narchitecture = 'dinov2_vits14'\nblocks = [3, 3]\n", r"got \[3, 3\]"),
        ('[head]\nkernel = "mmd-mp"\n', "kernel = 'mmd-mp' is for a head trained elsewhere; name its keys in key_map"),
        ('[export]\nprecision = "fp8"\n', r"Invalid enum value 'fp8' - at `\$\.export\.precision`"),
        ("[preprocessing]\ncrop = 13\n", "at least one patch of 14"),
        ("[preprocessing]\ncrops = 0\n", "crops must be at least 1"),
        ("[preprocessing]\nstd = [0.2, 0.2, 0.0]\n", "std must be positive"),
        ("[preprocessing]\nmean = [0.5, 0.5]\n", r"at `\$\.preprocessing\.mean`"),
        ("[training.split]\ntrain = 0.9\nvalidation = 0.1\n", "leave something for the test part"),
        (
            "[training.pairs]\nautoencoders = ['a']\nheld_out = 'a'\n",
            "autoencoder 'a' cannot be trained on and held out",
        ),
        ("[training.pairs]\nshare = 1.5\n", r"expected share in \[0, 1\]"),
        ("[training.reals]\nfeatureless = 0.6\n", "at most half of the real class"),
        ("[training.lora]\nblocks = [2, 1]\n", r"ascend, such as \[4, 5, 6\]"),
        ("[training.lora]\nrank = 0\n", "rank must be at least 1"),
        ("[training]\nsigma = [1.0, 0.5]\n", r"two bounds such as \[0.5, 1.0\]"),
        ("[training]\nsigma = 0.0\n", "sigma must be positive"),
        ("[training]\ndropout = 1.0\n", r"dropout in \[0, 1\)"),
        ("[head\n", "is not valid TOML"),
        ("[head]\npool = 3\npool = 4\n", "is not valid TOML"),
    ],
)
def test_a_mistake_names_the_file_and_the_place(addition: str, place: str, tmp_path: Path) -> None:
    path = write(tmp_path, ('name = "x"\nsummary = "y"\n' if "[backbone]" in addition else GOOD) + addition)
    with pytest.raises(RecipeError, match=place) as caught:
        load_recipe(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["name", "summary", "backbone"])
def test_a_missing_field_is_named(name: str, tmp_path: Path) -> None:
    lines = {
        "name": 'name = "x"\n',
        "summary": 'summary = "y"\n',
        "backbone": '[backbone]\narchitecture = "dinov2_vits14"\n',
    }
    del lines[name]
    with pytest.raises(RecipeError, match=f"missing required field `{name}`"):
        load_recipe(write(tmp_path, "".join(lines.values())))


def test_a_file_that_is_not_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_bytes(b"name = \xff\xfe")
    with pytest.raises(RecipeError, match="is not valid TOML"):
        load_recipe(tmp_path / "mine.toml")


def test_an_unknown_recipe_lists_the_known_ones() -> None:
    with pytest.raises(RecipeError, match=r"recipe 'vit' is not known; choose one of .*dinov2_vits14.*starter"):
        load_recipe("vit")


def test_a_missing_path_and_a_folder_are_refused(tmp_path: Path) -> None:
    (tmp_path / "folder.toml").mkdir()
    for name, reason in (("none.toml", "No such file"), ("folder.toml", "Is a directory")):
        with pytest.raises(RecipeError, match=reason):
            load_recipe(tmp_path / name)


def test_an_unknown_backbone_lists_the_known_ones() -> None:
    with pytest.raises(RecipeError, match="backbone 'vit_huge' is not known; choose one of dinov2_vits14"):
        architecture("vit_huge")


SPLIT = Split(train=0.65, validation=0.15, held_out=("LDM",))
CONTENT = st.integers().map(str)


def test_parts_have_the_requested_sizes() -> None:
    counts = Counter(part_of(sha(str(i)), SPLIT, "generated/GLIDE") for i in range(20_000))
    assert counts["train"] / 20_000 == pytest.approx(0.65, abs=0.02)
    assert counts["validation"] / 20_000 == pytest.approx(0.15, abs=0.02)


@pytest.mark.parametrize(
    ("position", "part"),
    [(0.0, "train"), (0.6499, "train"), (0.6501, "validation"), (0.7999, "validation"), (0.8001, "test")],
)
def test_the_start_of_the_hash_is_the_position(position: float, part: str) -> None:
    assert part_of(f"{int(position * 16**13):013x}" + "f" * 51, SPLIT) == part


def test_the_largest_hash_has_a_part() -> None:
    assert part_of("f" * 64, SPLIT) == "test"


@given(content=CONTENT)
def test_a_held_out_source_is_only_for_testing(content: str) -> None:
    whole = Split(train=0.65, validation=0.15, held_out=("real/LDM", "GLIDE"))
    assert part_of(sha(content), SPLIT, "generated/LDM") == part_of(sha(content), SPLIT, "real/LDM") == "test"
    assert part_of(sha(content), whole, "real/LDM") == part_of(sha(content), whole, "real/GLIDE") == "test"
    assert part_of(sha(content), whole, "generated/LDM") == part_of(sha(content), whole)
    assert part_of(sha(content), SPLIT) == part_of(sha(content), SPLIT, "generated/GLIDE")


def test_the_source_is_the_generator_or_the_folder_of_a_photograph() -> None:
    assert source_of(Path("real/cameras/a.jpg")) == "real/cameras"
    assert source_of(Path("x/y/a.jpg"), "sdxl") == "generated/sdxl"


@given(content=CONTENT, more=st.floats(0, 0.1))
def test_more_training_data_takes_none_away(content: str, more: float) -> None:
    larger = Split(train=0.65 + more, validation=0.15)
    if part_of(sha(content), SPLIT) == "train":
        assert part_of(sha(content), larger) == "train"
