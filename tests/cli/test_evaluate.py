"""`mdmf evaluate` from end to end, on a tiny bundle."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pyarrow.parquet
import pytest
from helpers.mdmf import mdmf
from typer.testing import Result

from mdmf_deploy.detection.rows import COLUMNS


def evaluate(dataset: Path, bundle: Path, *arguments: str) -> Result:
    # Looking for leaks takes longer than everything else. test_evaluate_evidence.py tests it.
    return mdmf("evaluate", dataset, "--bundle", bundle, "--no-leaks", *arguments)


@pytest.fixture
def dataset(photos: Path, tmp_path: Path) -> Path:
    """6 real images and 3 of each of two generators."""
    root = tmp_path / "data"
    for i, file in enumerate(sorted(photos.iterdir())):
        folder = root / ("real" if i < 6 else "generated/a" if i < 9 else "generated/b")
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, folder)
    return root


def test_a_table_for_each_condition_and_a_row_for_each_image(dataset: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    arguments = ["--condition", "as is", "--condition", "resize:0.9,jpeg:60"]
    result = evaluate(dataset, tiny_bundle, *arguments, "--json", "-o", str(rows))
    assert result.exit_code == 0, result.stderr
    report = json.loads(result.stdout)
    assert [table["condition"] for table in report["tables"]] == ["as is", "resize:0.9,jpeg:60"]
    assert report["audit"]["judged"] == 12
    for table in report["tables"]:
        areas = [figures["auroc"]["value"] for figures in table["generators"].values()]
        assert areas == sorted(areas)
        assert set(table["generators"]) == {"a", "b"}
    lines = [json.loads(line) for line in rows.read_text().splitlines()]
    assert len(lines) == 24
    assert [line["uri"] for line in lines[:12]] == [line["uri"] for line in lines[12:]]
    assert [line["generator"] for line in lines[:12]] == [None] * 6 + ["a"] * 3 + ["b"] * 3
    assert all(before["score"] != after["score"] for before, after in zip(lines[:12], lines[12:], strict=True))
    text = evaluate(dataset, tiny_bundle, *arguments).stdout
    assert [line.split()[0] for line in text.splitlines() if line.strip()].count("mean") == 8
    assert f"{report['tables'][0]['pooled']['auroc']['value']:.3f}" in text


def test_the_gate_is_the_worst_auroc(dataset: Path, tiny_bundle: Path) -> None:
    report = json.loads(evaluate(dataset, tiny_bundle, "--json").stdout)
    worst = min(figures["auroc"]["value"] for figures in report["tables"][0]["generators"].values())
    assert worst < 0.999
    assert evaluate(dataset, tiny_bundle, "--min-auroc", str(worst)).exit_code == 0
    failed = evaluate(dataset, tiny_bundle, "--min-auroc", str(worst + 0.001))
    assert failed.exit_code == 1
    assert "below --min-auroc" in failed.stderr
    assert "pooled" in failed.stdout


def test_a_gate_without_images_of_a_generator_does_not_pass(dataset: Path, tiny_bundle: Path) -> None:
    for file in (dataset / "generated/b").iterdir():
        shutil.copy(dataset / "generated/a/photo06.jpg", file)
    result = evaluate(dataset, tiny_bundle, "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["audit"]["left_out"] == ["b"]
    assert "mdmf: warning: no image is left of: b" in result.stderr.splitlines()
    failed = evaluate(dataset, tiny_bundle, "--min-auroc", "0")
    assert failed.exit_code == 1
    assert failed.stderr.splitlines()[-1] == "mdmf: --min-auroc cannot be judged, for no image is left of: b"


def test_an_older_file_stays_until_the_new_one_is_whole(dataset: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("older")
    (dataset / "real/twin.png").write_bytes((dataset / "generated/a/photo07.png").read_bytes())
    result = evaluate(dataset, tiny_bundle, "-o", str(rows))
    assert result.exit_code == 2
    assert "are the same bytes" in result.stderr
    assert rows.read_text() == "older"
    (dataset / "real/twin.png").unlink()
    assert evaluate(dataset, tiny_bundle, "-o", str(rows)).exit_code == 0
    assert len(rows.read_text().splitlines()) == 12
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "rows.jsonl"]


def test_unreadable_images_are_counted_and_exit_with_3(dataset: Path, tiny_bundle: Path) -> None:
    (dataset / "real/broken.jpg").write_bytes((dataset / "real/photo00.jpg").read_bytes()[:200])
    result = evaluate(dataset, tiny_bundle, "--condition", "jpeg:80")
    assert result.exit_code == 3
    assert "1 unreadable, left out" in result.stdout


def test_images_trained_on_are_left_out(dataset: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "r.toml"
    recipe.write_text(
        'name = "r"\nsummary = "s"\n[backbone]\narchitecture = "starter_vit14"\n'
        '[training.split]\ntrain = 0.4\nvalidation = 0.1\nheld_out = ["b"]\n'
    )
    result = evaluate(dataset, tiny_bundle, "--split", str(recipe), "--json")
    assert result.exit_code == 0, result.stderr
    report = json.loads(result.stdout)
    assert report["audit"]["other_parts"] > 0
    assert report["audit"]["judged"] + report["audit"]["other_parts"] == 12
    assert report["tables"][0]["generators"]["b"]["images"] == 3
    assert "other parts of the split" in result.stderr


@pytest.mark.parametrize("name", ["tiny", "other"])
def test_the_split_of_another_recipe_is_said_to_prove_nothing(
    name: str, dataset: Path, tiny_bundle: Path, tmp_path: Path
) -> None:
    recipe = tmp_path / "r.toml"
    recipe.write_text(
        f'name = "{name}"\nsummary = "s"\n[backbone]\narchitecture = "starter_vit14"\n'
        "[training.split]\ntrain = 0.01\nvalidation = 0.01\n"
    )
    lines = evaluate(dataset, tiny_bundle, "--split", str(recipe), "--json").stderr.splitlines()
    warnings = [line for line in lines if line.startswith("mdmf: warning: --split")]
    said = f"mdmf: warning: --split {recipe} is recipe 'other', but this bundle was trained by 'tiny'; "
    assert warnings == ([] if name == "tiny" else [f"{said}images that it was trained on may be judged"])


@pytest.mark.parametrize("ending", ["json", "csv", "parquet"])
def test_rows_are_written_in_the_formats_of_detect(
    dataset: Path, tiny_bundle: Path, tmp_path: Path, ending: str
) -> None:
    path = tmp_path / f"rows.{ending}"
    result = evaluate(dataset, tiny_bundle, "-o", str(path))
    assert result.exit_code == 0, result.stderr
    following = f"mdmf detect photos/ --bundle {tiny_bundle}"
    assert result.stderr.splitlines()[-1] == f"mdmf: wrote 12 rows to {path}; next: {following}"
    if ending == "json":
        rows = json.loads(path.read_text())
    elif ending == "csv":
        rows = list(csv.DictReader(path.read_text().splitlines()))
    else:
        rows = pyarrow.parquet.read_table(path).to_pylist()
    assert [row["generator"] or None for row in rows] == [None] * 6 + ["a"] * 3 + ["b"] * 3
    assert list(rows[0]) == ["condition", "generator", "kind", "compared_with", *COLUMNS]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--condition", "smear:3"], "condition 'smear:3'"),
        (["--part", "train"], "needs --split"),
        (["-o", "rows.txt"], "no format ends in '.txt'; choose one of .jsonl, .json, .csv, .parquet"),
        (["-o", "."], "-o . is a folder; give the name of a file that ends in one of .jsonl, .json"),
        (["--split", "no-such-recipe"], "recipe 'no-such-recipe' is not known"),
    ],
)
def test_wrong_arguments_are_one_line(arguments: list[str], text: str, dataset: Path, tiny_bundle: Path) -> None:
    result = evaluate(dataset, tiny_bundle, *arguments)
    assert result.exit_code == 2
    assert text in result.stderr
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""
