"""`mdmf evaluate` on every layout, against scikit-learn on the rows that it writes, and on bad data sets."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from helpers.data_layouts import LAYOUTS, scikit_figures
from helpers.mdmf import mdmf
from helpers.synthetic_photos import write_photos
from typer.testing import Result


def evaluate(dataset: Path, bundle: Path, *arguments: object) -> Result:
    # Looking for leaks takes longer than everything else. test_evaluate_evidence.py tests it.
    return mdmf("evaluate", dataset, "--bundle", bundle, "--no-leaks", *arguments)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> dict[str | None, list[Path]]:
    """24 real images and 8 of each of two generators."""
    folder = tmp_path_factory.mktemp("labelled")
    write_photos(folder, 40, first_seed=500)
    files = sorted(folder.iterdir())
    return {None: files[:24], "a": files[24:32], "b": files[32:]}


@pytest.fixture(scope="module")
def calibrated(tiny_bundle: Path, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    bundle = tmp_path_factory.mktemp("calibrated") / "b.mdmf"
    assert mdmf("calibrate", tiny_bundle, photos, "--fpr", 0.2, "-o", bundle).exit_code == 0
    return bundle


@pytest.mark.parametrize("layout", LAYOUTS)
def test_figures_are_those_of_scikit_learn_in_every_layout(
    layout: str, images: dict[str | None, list[Path]], calibrated: Path, tmp_path: Path
) -> None:
    dataset = LAYOUTS[layout](images, tmp_path / "set")
    rows = tmp_path / "rows.jsonl"
    result = evaluate(dataset, calibrated, "-o", rows, "--json")
    assert result.exit_code == 0, result.stderr
    [table] = json.loads(result.stdout)["tables"]
    written = [json.loads(line) for line in rows.read_text().splitlines()]
    assert len(written) == 40
    expected = scikit_figures(written)
    found = {
        name: {figure: figures[figure]["value"] for figure in ("auroc", "ap", "acc")}
        for name, figures in table["generators"].items()
    }
    assert found == {name: pytest.approx(figures, abs=1e-9) for name, figures in expected.items()}
    for figure in ("auroc", "ap", "acc"):
        mean = sum(figures[figure] for figures in expected.values()) / 2
        assert table["mean"][figure]["value"] == pytest.approx(mean, abs=1e-9)
    assert table["real_images"] == 24
    own = {row["compared_with"] for row in written if row["generator"] is None}
    assert own == ({"a", "b"} if layout in ("0_real, 1_fake", "nature, ai") else {None})


def test_images_of_the_bundle_are_refused_unless_they_may_be_left_out(
    images: dict[str | None, list[Path]], calibrated: Path, photos: Path, tmp_path: Path
) -> None:
    dataset = LAYOUTS["real, generated"](images, tmp_path / "set")
    for path in sorted(photos.iterdir())[:2]:
        shutil.copy(path, dataset / "real")
    refused = evaluate(dataset, calibrated)
    assert refused.exit_code == 2
    assert "2 images of the data set made this bundle (0 are in its bank, 2 in its calibration)" in refused.stderr
    allowed = evaluate(dataset, calibrated, "--allow-overlap", "--json")
    assert allowed.exit_code == 0, allowed.stderr
    assert "left out, in its calibration: 2" in allowed.stderr
    assert json.loads(allowed.stdout)["tables"][0]["real_images"] == 24


def test_another_data_set_gives_the_threshold(
    images: dict[str | None, list[Path]], tiny_bundle: Path, tmp_path: Path
) -> None:
    halves = [{name: files[n::2] for name, files in images.items()} for n in (0, 1)]
    first, second = (LAYOUTS["CSV"](half, tmp_path / str(n)) for n, half in enumerate(halves))
    rows = tmp_path / "rows.jsonl"
    result = evaluate(first, tiny_bundle, "--tune-on", second, "--json", "-o", rows)
    assert result.exit_code == 0, result.stderr
    [table] = json.loads(result.stdout)["tables"]
    [threshold] = table["best_thresholds"]
    written = [json.loads(line) for line in rows.read_text().splitlines()]
    assert len(written) == 20
    flagged = [dict(row, verdict="generated" if row["score"] > threshold else "real") for row in written]
    for name, figures in scikit_figures(flagged).items():
        assert table["generators"][name]["best_acc"]["value"] == pytest.approx(figures["acc"], abs=1e-9)
    shared = evaluate(first, tiny_bundle, "--tune-on", first)
    assert shared.exit_code == 2
    assert "20 of its images are judged too" in shared.stderr


def test_plots_are_drawn_and_a_wrong_folder_fails_before_anything_is_scored(
    images: dict[str | None, list[Path]], calibrated: Path, tmp_path: Path
) -> None:
    dataset = LAYOUTS["real, generated"](images, tmp_path / "set")
    plots = tmp_path / "deep/plots"
    result = evaluate(dataset, calibrated, "--plots", plots)
    assert result.exit_code == 0, result.stderr
    assert sorted(path.name for path in plots.iterdir()) == ["generators.svg", "roc.svg", "scores.svg"]
    (tmp_path / "file").touch()
    result = evaluate(dataset, calibrated, "--plots", tmp_path / "file", "--json")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "--plots" in result.stderr


def test_unreadable_and_missing_files_are_counted_and_named_in_rows(
    images: dict[str | None, list[Path]], tiny_bundle: Path, tmp_path: Path
) -> None:
    listed = LAYOUTS["CSV"](images, tmp_path / "set")
    with listed.open("a") as file:
        file.write("files/gone.jpg,1,a\nfiles/broken.jpg,0,\n")
    (tmp_path / "set/files/broken.jpg").write_bytes(b"\xff\xd8\xff")
    rows = tmp_path / "rows.jsonl"
    result = evaluate(listed, tiny_bundle, "-o", rows, "--json")
    assert result.exit_code == 3
    assert len(json.loads(result.stdout)["tables"][0]["unreadable"]) == 2
    codes = [json.loads(line)["error_code"] for line in rows.read_text().splitlines()]
    assert [code for code in codes if code] == ["missing", "truncated"]


def test_one_image_of_a_generator_is_warned_of(
    images: dict[str | None, list[Path]], tiny_bundle: Path, tmp_path: Path
) -> None:
    few = {None: images[None], "many": [*images["a"], *images["b"]], "one": images["b"][:0]}
    dataset = LAYOUTS["real, generated"](few | {"one": few["many"][:1], "many": few["many"][1:]}, tmp_path / "set")
    result = evaluate(dataset, tiny_bundle)
    assert result.exit_code == 0, result.stderr
    assert "mdmf: warning: fewer than 10 images, so figures say little: one" in result.stderr


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("set.csv", "file,class\na.jpg,0\n", "expected the columns path and label, found 'file', 'class'"),
        ("set.csv", "path,label\na.jpg,0\n", "no image is labelled generated"),
        ("set.json", '[{"path": "a.jpg"}]', "expected the columns path and label, found 'path'"),
        ("set.txt", "a.jpg", "no such folder, and no .csv or .json list"),
    ],
)
def test_a_wrong_list_is_one_line(name: str, text: str, message: str, tiny_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    result = evaluate(tmp_path / name, tiny_bundle)
    assert (result.exit_code, result.stdout) == (2, "")
    assert message in result.stderr
    assert result.stderr.splitlines()[-1].startswith("mdmf: ")
