"""`mdmf demo`: twelve verdicts, one heat map, and an honest count, from whatever folder."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import msgspec
import pytest
from helpers.mdmf import mdmf
from PIL import Image
from typer.testing import Result

from mdmf_deploy.cli.demo import closing, samples
from mdmf_deploy.detection.rows import COLUMNS, Row, Verdict
from mdmf_deploy.files import room

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """A run in an empty folder, and that folder."""
    folder = tmp_path_factory.mktemp("anywhere")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        return folder, mdmf("demo")


def row(kind: str, name: str, verdict: Verdict, score: float | None = 0.5) -> Row:
    return Row(uri=f"{kind}/{name}.jpg", verdict=verdict, score=score)


def test_it_ends_with_a_verdict_on_every_sample_and_their_count(shown: tuple[Path, Result]) -> None:
    _, result = shown
    assert result.exit_code == 0, result.stderr
    table = result.stdout.split("\n\n")[0].splitlines()[1:]
    names = [path.relative_to(room("examples")).as_posix() for path in samples(room("examples"))]
    assert [line.split()[5] for line in table] == names
    verdicts = [line.split()[0] for line in table]
    right = verdicts[:6].count("real") + verdicts[6:].count("generated")
    assert result.stdout.splitlines()[-1].startswith(f"Right: {right} of 12. Wrong: ")
    assert max(map(len, result.stdout.split("\n\n", 1)[1].splitlines())) <= 80


def test_it_draws_the_highest_score_into_a_folder_of_its_own(shown: tuple[Path, Result]) -> None:
    folder, result = shown
    assert [path.name for path in folder.iterdir()] == ["mdmf-demo"]
    (heatmap,) = (folder / "mdmf-demo").iterdir()
    scores = {line.split()[5]: float(line.split()[1]) for line in result.stdout.split("\n\n")[0].splitlines()[1:]}
    assert Path(max(scores, key=lambda name: scores[name])).stem == heatmap.name.partition(".")[0]
    Image.open(heatmap).verify()
    assert f"to {Path('mdmf-demo') / heatmap.name}; next: mdmf detect" in result.stderr.splitlines()[-1]


def test_json_holds_rows_and_counts(shown: tuple[Path, Result], tmp_path: Path) -> None:
    result = mdmf("demo", "--json", "-o", tmp_path / "maps", "--bundle", "starter", "--runtime", "onnxruntime")
    printed = json.loads(result.stdout)
    assert (result.exit_code, printed["runtime"], len(printed["rows"])) == (0, "onnxruntime", 12)
    assert all(tuple(one) == COLUMNS for one in printed["rows"])
    assert Path(printed["heatmap"]).parent == tmp_path / "maps"
    assert Path(printed["samples"], printed["rows"][0]["uri"]).is_file()
    assert all(one[name] == printed[name] for one in printed["rows"] for name in ("bundle_id", "calibration_id"))
    assert {kind: sum(verdicts.values()) for kind, verdicts in printed["counts"].items()} == {
        "photographs": 6,
        "generated": 6,
    }


def test_only_the_heat_map_is_lost_where_it_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.png").write_bytes(b"mine")
    (tmp_path / "file").write_bytes(b"mine")
    for name, reason in (("full", "holds files, which are never overwritten"), ("file", "File exists")):
        result = mdmf("demo", "-o", tmp_path / name, "--color")
        assert result.exit_code == 0
        assert "\033[" in result.stdout
        assert "Right: " in result.stdout
        (line,) = [line for line in result.stderr.splitlines() if "no heat map" in line]
        assert f"{tmp_path / name}" in line
        assert reason in line
        assert "give -o a " in line
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "full", "mine.png"]
    assert (tmp_path / "file").read_bytes() == b"mine"


def test_a_verdict_that_is_neither_counts_as_neither() -> None:
    names = ["a", "b"]
    pairs = [row("photographs", name, "real") for name in names]
    pairs += [row("generated", f"{name}-f4-c12", "generated", 0.6) for name in names]
    assert closing(pairs).splitlines()[-1] == "Right: 4 of 4. Wrong: 0. Neither: 0."
    assert "2 of 2 score higher" in closing(pairs)
    pairs[0] = msgspec.structs.replace(pairs[0], verdict="uncertain", score=0.7)
    pairs[1] = msgspec.structs.replace(pairs[1], verdict="generated")
    pairs[3] = row("generated", "b-f4-c12", "error", None)
    assert closing(pairs).splitlines()[-1] == "Right: 1 of 4. Wrong: 1. Neither: 2."
    assert "0 of 1 score higher" in closing(pairs)
    assert "Photographs: 0 real, 1 generated, 1 uncertain" in closing(pairs)


def test_no_sample_is_named_as_the_count_would_not_understand() -> None:
    photographs = {path.stem for path in samples(room("examples")) if path.parent.name == "photographs"}
    copies = [path.stem for path in samples(room("examples")) if path.parent.name == "generated"]
    assert {name.partition("-")[0] for name in copies} == photographs
    assert len(copies) == len(photographs) == 6


def test_the_wheel_holds_the_samples_and_their_licences() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    included = project["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]
    for source, target in included.items():
        assert (ROOT / source).exists()
        assert target == f"mdmf_deploy/_rooms/{source}"
    needed = {*samples(ROOT / "examples"), ROOT / "examples" / "SOURCES.md"}
    assert all(any(path.is_relative_to(ROOT / source) for source in included) for path in needed)
    assert sum(path.stat().st_size for path in needed) < 1_000_000
