"""`mdmf benchmark` from end to end, on a tiny bundle and tiny budgets."""

from __future__ import annotations

import csv
import inspect
import json
import shutil
from functools import partial
from pathlib import Path

import pytest
from helpers.mdmf import mdmf
from typer.testing import Result

from mdmf_deploy.bundle.bundle import Bundle
from mdmf_deploy.cli.benchmark import benchmark as command
from mdmf_deploy.cli.detect import detect
from mdmf_deploy.detection.detector import Detector
from mdmf_deploy.tasks.benchmark import cold_start, results, samples
from mdmf_deploy.tasks.benchmark.results import ColdStart, Settings
from mdmf_deploy.tasks.benchmark.statistics import spread
from mdmf_deploy.tasks.benchmark.subjects import opened

# What processes would give that a test does not need.
START = ColdStart(process=spread([900.0]), importing=1.0, opening=2.0, first_row=3.0, peak_mib=100.0, peak_images=13)


def benchmark(*arguments: str) -> Result:
    runtime = [] if "--runtime" in arguments else ["--runtime", "onnxruntime"]
    return mdmf("benchmark", *arguments, *runtime)


@pytest.fixture(autouse=True)
def one_cold_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """Start each configuration once, because each start is a process, and repeat nothing until it varies little."""
    monkeypatch.setattr(results, "Settings", partial(Settings, cold_starts=1, cv_limit=1.0))


def test_everything_at_once(tiny_bundle: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The processes of one bundle are enough. Those of the other are as many again.
    measure = cold_start.measure
    monkeypatch.setattr(
        cold_start, "measure", lambda subject, *rest: START if subject.about.derived else measure(subject, *rest)
    )
    page = tmp_path / "report.html"
    arguments = ["--images", str(photos), "--precision", "fp32,fp16", "--batch-size", "4"]
    result = benchmark(str(tiny_bundle), *arguments, "--seconds", "0.05", "--json", "-o", str(page))
    assert result.exit_code == 0, result.stderr
    report = json.loads(result.stdout)
    assert [one["configuration"]["name"] for one in report["results"]] == ["onnxruntime fp32", "onnxruntime fp16"]
    assert report["images"] == [
        {**report["images"][0], "images": 12, "unreadable": 0, "origin": "the files of --images"}
    ]
    first, second = report["results"]
    for one in report["results"]:
        names = [stage["name"] for stage in one["stages"][0]["stages"]]
        assert names == ["read", "decode", "crop", "engine", "reduction", "write"]
        assert all(stage["ms"]["median"] > 0 for stage in one["stages"][0]["stages"])
        latency = one["single_stream"]["latency"]
        known = [latency[name] for name in ("p50", "p90", "p99", "max") if latency[name] is not None]
        assert known == sorted(known)
        assert one["offline"]["images_per_second"]["median"] > 0
        assert one["offline"]["energy"]
        assert one["server"]["rate"] is not None or one["server"]["note"]
        assert one["start"]["process"]["median"] > one["start"]["first_row"]
    assert first["drift"] is None
    assert 0 < second["drift"]["score_change"] < 0.5
    assert second["drift"]["flipped"] == 0
    assert first["configuration"]["derived"] is None
    assert "fp32 graph" in second["configuration"]["derived"]
    assert {ratio["figure"] for ratio in report["ratios"]} == {"single-stream", "offline"}
    assert all(ratio["times"]["low"] <= ratio["times"]["value"] for ratio in report["ratios"])
    assert report["environment"]["machine"]["cores"] >= 1
    assert "onnxruntime" in report["environment"]["libraries"]
    assert isinstance(report["noise"]["warnings"], list)
    assert page.read_text().startswith("<!doctype html>")


def test_help_names_the_bundles_whose_precision_can_be_lowered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    text = " ".join(mdmf("benchmark", "--help").stdout.split())
    assert "only from a bundle exported with --precision fp32, which the starter is not" in text
    assert Bundle.open("starter").manifest.model.precision != "fp32"
    assert f"Of more than {samples.MOST}, {samples.MOST} are taken." in text


def test_batches_have_the_size_that_detect_uses() -> None:
    defaults = [inspect.signature(one).parameters["batch_size"].default for one in (Detector, detect, command)]
    assert [*defaults, Settings().batch_size] == [Settings().batch_size] * 4


def test_generated_images_have_two_sizes(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(samples, "SIZES", {"0.1 MP": (408, 306, 2), "0.2 MP": (600, 450, 1)})
    monkeypatch.setattr(cold_start, "measure", lambda *_: START)
    table = tmp_path / "report.csv"
    arguments = ["--scenario", "single-stream", "--seconds", "0.05", "--batch-size", "2", "-o", str(table)]
    result = benchmark(str(tiny_bundle), *arguments)
    assert result.exit_code == 0, result.stderr
    assert result.stderr.splitlines()[-1] == f"mdmf: wrote the report to {table}"
    assert "generated: JPEGs" in result.stdout
    assert "stages of onnxruntime fp32, 0.1 MP" in result.stdout
    assert "stages of onnxruntime fp32, 0.2 MP" in result.stdout
    assert "offline" not in result.stdout
    rows = list(csv.DictReader(table.read_text().splitlines()))
    assert {row["section"] for row in rows} == {"stages", "single-stream", "cold start", "memory", "noise"}


def test_bundles_without_thresholds_are_compared_too(
    tiny_bundle: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cold_start, "measure", lambda *_: None)  # eight processes that this test does not need
    other = tmp_path / "other.mdmf"
    shutil.copytree(tiny_bundle, other)
    arguments = ["--images", str(photos), "--scenario", "offline", "--seconds", "0.05", "--json"]
    result = benchmark(str(tiny_bundle), str(other), *arguments)
    assert result.exit_code == 0, result.stderr
    _, second = json.loads(result.stdout)["results"]
    assert second["configuration"]["name"] == "other onnxruntime fp32"
    assert (second["drift"]["score_change"], second["drift"]["flipped"]) == (0, 0)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (
            ["--scenario", "offline,sideways"],
            "--scenario sideways: not known; choose from single-stream, offline, server",
        ),
        (["--scenario", ","], "not known"),
        (["--rate", "0"], "--rate must be a number above 0, got 0"),
        (["--rate", "-3"], "--rate must be a number above 0"),
        (["--rate", "nan"], "--rate must be a number above 0"),
        (["--rate", "5", "--scenario", "offline"], "--rate is the server scenario's"),
        (["--p99-bound", "0"], "--p99-bound must be a number above 0"),
        (["--seconds", "0"], "--seconds must be a number above 0"),
        (["--batch-size", "0"], "--batch-size must be a number above 0"),
        (["--batch-wait", "-1"], "--batch-wait must be"),
        (["-o", "report.pdf"], "no format ends in '.pdf'; choose one of .json, .csv, .html"),
        (["-o", "."], "-o . is a folder; give the name of a file that ends in one of .json, .csv, .html"),
        (["-o", "nowhere/report.csv"], "cannot be written there"),
        (["--images", "nowhere.jpg"], "none of 1 inputs tried is a readable image"),
        (["--precision", "int4"], "--precision int4: not known"),
        (["--runtime", ","], "give at least one bundle and one --runtime"),
        (["--runtime", "abacus"], "runtime 'abacus' is not known"),
    ],
)
def test_wrong_arguments_are_one_line(arguments: list[str], text: str, tiny_bundle: Path, photos: Path) -> None:
    images = [] if "--images" in arguments else ["--images", str(sorted(photos.iterdir())[0])]
    result = benchmark(str(tiny_bundle), *images, *arguments)
    assert result.exit_code == 2
    assert text in result.stderr
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""


def test_the_same_bundle_twice_is_refused(tiny_bundle: Path, photos: Path) -> None:
    result = benchmark(str(tiny_bundle), str(tiny_bundle), "--images", str(photos))
    assert result.exit_code == 2
    assert "measured twice" in result.stderr


def test_a_configuration_names_its_bundle_and_its_calibration(tmp_path: Path) -> None:
    with opened(["starter"], ["onnxruntime"], [], Settings(), [], tmp_path) as [subject]:
        about = subject.about
    shipped = Bundle.open("starter")
    assert shipped.calibration_id
    assert (about.bundle_id, about.calibration_id) == (shipped.bundle_id, shipped.calibration_id)


def test_bundles_with_the_same_file_name_are_named_by_their_paths(tiny_bundle: Path, tmp_path: Path) -> None:
    same, other = tmp_path / "new" / tiny_bundle.name, tmp_path / "other.mdmf"
    (tmp_path / "lowered").mkdir()
    for copy in (same, other):
        shutil.copytree(tiny_bundle, copy)
    names = [str(bundle) for bundle in (tiny_bundle, same, other)]
    with opened(names, ["onnxruntime"], [], Settings(), [], tmp_path / "lowered") as subjects:
        labels = [subject.about.name for subject in subjects]
    assert labels == [f"{name} onnxruntime fp32" for name in (*names[:2], "other")]
