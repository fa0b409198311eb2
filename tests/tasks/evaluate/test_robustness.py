"""The robustness sweep: its axes, what a stopped run leaves behind, and its table."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from fakes.hashing_detector import HashingDetector, Stopped
from helpers.libraries import needed

from mdmf_deploy.detection.detector import Detector
from mdmf_deploy.detection.outputs.resumable import journal_of, open_resumable
from mdmf_deploy.errors import UsageError
from mdmf_deploy.tasks.evaluate.conditions import AS_IS, Condition
from mdmf_deploy.tasks.evaluate.datasets import KnownImage, find_images
from mdmf_deploy.tasks.evaluate.evaluate import judge, tabulate
from mdmf_deploy.tasks.evaluate.robustness import AXES, Axis, Step, SweepResult, lines, rows_file, sweep

SMALL = (
    Axis("jpeg", "JPEG quality", (Step(AS_IS, AS_IS, 0.9565), Step("50", "jpeg:50", 0.915)), in_paper=True),
    Axis("noise", "Noise", (Step(AS_IS, AS_IS), Step("0.1", "noise:0.1"))),
)
CONDITIONS = (AS_IS, "jpeg:50", "noise:0.1")


@pytest.fixture
def images(dataset: Path) -> list[KnownImage]:
    return find_images(dataset)


def run(detector: HashingDetector | Detector, images: list[KnownImage], folder: Path, **options: Any) -> SweepResult:
    return sweep(detector, images, folder, **{"axes": SMALL, "resamples": 20} | options)  # type: ignore[arg-type]


def test_every_step_of_every_axis_is_a_condition() -> None:
    for axis in AXES:
        assert axis.steps
        for step in axis.steps:
            assert Condition.parse(step.condition).name == step.condition
            assert len(step.label) <= 5
    assert len({axis.name for axis in AXES}) == len(AXES)


def test_the_papers_axes_have_the_papers_range_and_figures() -> None:
    found = {axis.name: {step.condition: step.paper for step in axis.steps} for axis in AXES if axis.in_paper}
    assert {name: (list(steps)[1], list(steps)[-1]) for name, steps in found.items()} == {
        "jpeg": ("jpeg:100", "jpeg:50"),
        "blur": ("blur:1", "blur:5"),
        "noise": ("noise:0.05", "noise:0.25"),
    }
    assert [steps[AS_IS] for steps in found.values()] == [0.9565] * 3
    assert [list(steps.values())[-1] for steps in found.values()] == [0.915, 0.81, 0.82]
    assert all(step.paper is None for axis in AXES if not axis.in_paper for step in axis.steps)


def test_a_condition_that_axes_share_is_judged_once(images: list[KnownImage], tmp_path: Path) -> None:
    detector = HashingDetector()
    result = run(detector, images, tmp_path / "rows")
    assert tuple(result.tables) == CONDITIONS
    assert detector.scored == len(images) * len(CONDITIONS)
    for name in CONDITIONS:
        condition = Condition.parse(name)
        expected = tabulate(name, judge(HashingDetector(), images, condition), 20)  # type: ignore[arg-type]
        assert result.tables[name] == expected


@pytest.mark.parametrize("after", [0, 1, 11, 12, 20, 35])
def test_a_stopped_sweep_ends_like_one_that_was_not(images: list[KnownImage], tmp_path: Path, after: int) -> None:
    whole = run(HashingDetector(), images, tmp_path / "whole")
    with pytest.raises(Stopped) as stopped:
        run(HashingDetector(stop_after=after), images, tmp_path / "rows")
    assert stopped.value.__notes__ == [f"finished rows are in {tmp_path / 'rows'}; the same command goes on there"]
    detector = HashingDetector()
    assert run(detector, images, tmp_path / "rows") == whole
    assert detector.scored == len(images) * len(CONDITIONS) - after
    again = HashingDetector(stop_after=0)
    assert run(again, images, tmp_path / "rows") == whole


def test_a_row_that_a_kill_cut_short_is_judged_again(images: list[KnownImage], tmp_path: Path) -> None:
    whole = run(HashingDetector(), images, tmp_path / "whole")
    with pytest.raises(Stopped):
        run(HashingDetector(stop_after=20), images, tmp_path / "rows")
    cut = rows_file(tmp_path / "rows", "jpeg:50")
    journal = cut.with_name(f"{cut.name}.resume")
    # A process that is killed leaves no mark that the file was closed.
    journal.write_bytes(b"".join(journal.read_bytes().splitlines(keepends=True)[:-1]))
    with cut.open("ab") as file:
        file.write(b'{"uri": "half')
    detector = HashingDetector()
    assert run(detector, images, tmp_path / "rows") == whole
    assert detector.scored == 16


def test_only_new_and_changed_images_are_judged_in_a_second_sweep(
    dataset: Path, images: list[KnownImage], tmp_path: Path
) -> None:
    few = [image for image in images if image.generator != "b"]
    run(HashingDetector(), few, tmp_path / "rows")
    detector = HashingDetector()
    run(detector, images, tmp_path / "rows")
    assert detector.scored == 2 * len(CONDITIONS)
    assert run(HashingDetector(stop_after=0), few, tmp_path / "rows") == run(
        HashingDetector(), few, tmp_path / "few"
    )  # rows of other images do not count
    shutil.copy(images[0].path, images[-1].path)
    changed = find_images(dataset)
    detector = HashingDetector()
    assert run(detector, changed, tmp_path / "rows") == run(HashingDetector(), changed, tmp_path / "anew")
    assert detector.scored == len(CONDITIONS)


def test_the_content_of_a_file_says_whether_it_changed(dataset: Path, images: list[KnownImage], tmp_path: Path) -> None:
    first = images[0].path
    before = first.stat()
    result = run(HashingDetector(), images, tmp_path / "rows")
    os.utime(first, (1, 1))
    assert run(HashingDetector(stop_after=0), images, tmp_path / "rows") == result
    data = bytearray(first.read_bytes())
    data[-1] ^= 1
    first.write_bytes(data)
    os.utime(first, ns=(before.st_atime_ns, before.st_mtime_ns))
    detector = HashingDetector()
    run(detector, find_images(dataset), tmp_path / "rows")
    assert detector.scored == len(CONDITIONS)
    # The row of the old content is gone.
    rows = rows_file(tmp_path / "rows", "jpeg:50").read_text().splitlines()
    assert len(rows) == len({json.loads(row)["uri"] for row in rows}) == len(images)


def test_a_sweep_over_other_axes_shares_the_folder(images: list[KnownImage], tmp_path: Path) -> None:
    folder = tmp_path / "rows"
    run(HashingDetector(), images, folder)
    blur = Axis("blur", "Blur", (Step("2", "blur:2"),))
    detector = HashingDetector()
    assert list(run(detector, images, folder, axes=(blur,)).tables) == ["blur:2"]
    assert detector.scored == len(images)
    run(HashingDetector(stop_after=0), images, folder, axes=(*SMALL, blur))


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        ({"bundle_id": "d" * 64}, "bundle_id bbbbbbbbbbbb there, dddddddddddd now"),
        ({"calibration_id": None}, "calibration_id cccccccccccc there, none now"),
        ({"runtime": "openvino", "precision": "int8"}, "runtime onnxruntime there, openvino now; precision"),
        ({"tool": "2"}, "tool 1 there, 2 now"),
    ],
)
def test_other_settings_are_refused_before_anything_is_judged(
    images: list[KnownImage], tmp_path: Path, change: dict[str, Any], difference: str
) -> None:
    with pytest.raises(Stopped):
        run(HashingDetector(stop_after=20), images, tmp_path / "rows")
    rows_file(tmp_path / "rows", AS_IS).unlink()  # so that only a later condition has settings
    other = HashingDetector(**change)
    with pytest.raises(UsageError) as raised:
        run(other, images, tmp_path / "rows")
    text = str(raised.value)
    assert text.startswith(f"--robustness {tmp_path / 'rows'}: {rows_file(tmp_path / 'rows', 'jpeg:50')} was begun")
    assert difference in text
    assert text.endswith("give the same ones, or another folder")
    assert other.scored == 0


def a_file(folder: Path) -> Path:
    folder.write_text("x")
    return folder


def below_a_file(folder: Path) -> Path:
    return a_file(folder) / "rows"


def other_files(folder: Path) -> Path:
    folder.mkdir()
    (folder / "photo.jpg").touch()
    return folder


def rows_without_a_journal(folder: Path) -> Path:
    folder.mkdir()
    rows_file(folder, AS_IS).write_text("{}\n")
    return folder


def a_journal_that_is_no_file(folder: Path) -> Path:
    folder.mkdir()
    rows_file(folder, AS_IS).touch()
    journal_of(rows_file(folder, AS_IS)).mkdir()
    return folder


def a_url(folder: Path) -> Path:
    return Path("s3://bucket/rows")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (a_file, "is a file; give a folder, which may be new"),
        (below_a_file, "choose a folder you can write to"),
        (other_files, "holds no rows of a sweep, but other files; give a new or an empty folder"),
        (rows_without_a_journal, "to go on from; choose another folder, or remove it"),
        (a_journal_that_is_no_file, "asis.jsonl: Is a directory; choose a place you can read and write"),
        (a_url, "is a URL; give a folder of this machine"),
    ],
)
def test_a_folder_that_cannot_hold_a_sweep_is_refused_in_one_line(
    images: list[KnownImage],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    make: Callable[[Path], Path],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    detector = HashingDetector()
    with pytest.raises(UsageError) as raised:
        run(detector, images, make(tmp_path / "rows"))
    text = str(raised.value)
    assert text.startswith("--robustness ")
    assert text.endswith(message)
    assert "-o " not in text
    assert len(text.splitlines()) == 1
    assert detector.scored == 0


def test_rows_that_somebody_changed_are_refused(images: list[KnownImage], tmp_path: Path) -> None:
    run(HashingDetector(), images, tmp_path / "rows")
    path = rows_file(tmp_path / "rows", "jpeg:50")
    path.write_text(path.read_text().replace('"real"', '"fake"'))
    with pytest.raises(UsageError, match=r"--robustness .*jpeg-50\.jsonl was changed after mdmf wrote it"):
        run(HashingDetector(), images, tmp_path / "rows")


def test_two_sweeps_do_not_write_one_file(images: list[KnownImage], tmp_path: Path) -> None:
    folder = tmp_path / "rows"
    run(HashingDetector(), images, folder)
    held = open_resumable(rows_file(folder, "jpeg:50"), HashingDetector().settings())
    with held, pytest.raises(UsageError, match="another process is writing it"):
        run(HashingDetector(), images, folder)


def test_the_sweep_says_what_is_left_and_how_long_it_takes(images: list[KnownImage], tmp_path: Path) -> None:
    told: list[str] = []
    with pytest.raises(Stopped):
        run(HashingDetector(stop_after=20), images, tmp_path / "rows", report=told.append)
    assert told == ["robustness: 12 images under 3 conditions", "as is is done; the other conditions take about 0 s"]
    told.clear()
    run(HashingDetector(), images, tmp_path / "rows", report=told.append)
    assert told == [
        f"robustness: 12 images under 3 conditions; 20 of 36 rows are in {tmp_path / 'rows'}",
        "jpeg:50 is done; the other conditions take about 0 s",
    ]
    told.clear()
    run(HashingDetector(), images, tmp_path / "rows", report=told.append)
    assert told == [f"robustness: 12 images under 3 conditions; 36 of 36 rows are in {tmp_path / 'rows'}"]


def test_a_bar_follows_each_condition(images: list[KnownImage], tmp_path: Path) -> None:
    bars: list[tuple[str, int, int]] = []

    @contextmanager
    def bar(items: Iterable[Any], description: str, total: int) -> Iterator[Iterator[Any]]:
        seen = list(items)
        yield iter(seen)
        bars.append((description, total, len(seen)))

    run(HashingDetector(), images, tmp_path / "rows", progress=bar)
    assert bars == [(name, 12, 12) for name in CONDITIONS]


def test_an_image_that_is_gone_is_counted_and_tried_again(images: list[KnownImage], tmp_path: Path) -> None:
    lost = images[0].path
    data = lost.read_bytes()
    lost.unlink()
    result = run(HashingDetector(), images, tmp_path / "rows")
    assert all(table.unreadable == (str(lost),) for table in result.tables.values())
    assert lines(result)[-1] == "1 unreadable under at least one condition, left out there"
    lost.write_bytes(data)
    detector = HashingDetector()
    assert run(detector, images, tmp_path / "rows") == run(HashingDetector(), images, tmp_path / "whole")
    assert detector.scored == len(CONDITIONS)


def test_a_generator_without_a_scored_image_is_named(images: list[KnownImage], tmp_path: Path) -> None:
    for image in images:
        if image.generator == "b":
            image.path.unlink()
    assert run(HashingDetector(), images, tmp_path / "rows").unscored == ("b",)


def test_the_table_shows_the_papers_figures_beside_ours(images: list[KnownImage], tmp_path: Path) -> None:
    result = run(HashingDetector(), images, tmp_path / "rows")
    listed = lines(result)
    assert listed[0] == "JPEG quality (an axis of the paper)"
    assert listed[5] == "Noise"
    clean, jpeg = (line.split() for line in (listed[2].replace("as is", "as_is"), listed[3]))
    assert (clean[0], clean[4], jpeg[0], jpeg[4]) == ("as_is", "0.957", "50", "0.915")
    table = result.tables["jpeg:50"]
    mean, tpr = table.mean["auroc"], table.mean["tpr"]
    assert mean is not None
    assert tpr is not None
    assert table.fpr is not None
    assert jpeg[1:4] == [f"{mean.value:.3f}", f"[{mean.low:.3f},", f"{mean.high:.3f}]"]
    assert (jpeg[5], jpeg[8], jpeg[9]) == (f"{table.fpr.value:.3f}", f"{tpr.value:.3f}", "0")
    worst = min(table.generators, key=lambda name: table.generators[name].auroc.value)
    assert jpeg[10:] == [f"{table.generators[worst].auroc.value:.3f}", worst]
    lowest = min(CONDITIONS, key=lambda name: result.tables[name].mean["auroc"].value)  # type: ignore[union-attr]
    assert any(line.startswith("lowest AUROC: ") and f" under {lowest};" in line for line in listed)
    rates = {name: table.fpr.value for name, table in result.tables.items() if table.fpr}
    [highest] = [line for line in listed if line.startswith("highest FPR: ")]
    assert f": {max(rates.values()):.3f} [" in highest
    assert highest.endswith(f"; {rates[AS_IS]:.3f} as is")


def test_without_verdicts_the_table_has_no_rates(images: list[KnownImage], tmp_path: Path) -> None:
    listed = lines(run(HashingDetector(calibrated=False), images, tmp_path / "rows"))
    assert listed[3].split()[5:8] == ["-", "-", "-"]
    assert not any("FPR:" in line or "TPR:" in line for line in listed)


def test_a_result_is_a_json_document_that_reads_back(images: list[KnownImage], tmp_path: Path) -> None:
    result = run(HashingDetector(), images, tmp_path / "rows")
    assert msgspec.json.decode(msgspec.json.encode(result), type=SweepResult) == result


def test_a_sweep_of_a_bundle_has_the_areas_of_scikit_learn(
    images: list[KnownImage], tiny_bundle: Path, tmp_path: Path
) -> None:
    roc_auc_score = needed("sklearn.metrics").roc_auc_score
    axes = (Axis("x", "x", tuple(Step(name[:4], name) for name in ("blur:2", "noise:0.1", "webp:50", AS_IS))),)
    with Detector(tiny_bundle, frames=None) as detector:
        result = run(detector, images, tmp_path / "rows", axes=axes)
    assert result.settings.bundle_id == detector.bundle.bundle_id
    scores = {}
    generator_of = {str(image.path): image.generator for image in images}
    for name, table in result.tables.items():
        rows = [json.loads(line) for line in rows_file(tmp_path / "rows", name).read_text().splitlines()]
        scores[name] = [row["score"] for row in rows]
        areas = []
        for generator in ("a", "b"):
            pairs = [(generator_of[row["uri"]], row["score"]) for row in rows]
            truth, found = zip(
                *((label is not None, s) for label, s in pairs if label in (None, generator)), strict=True
            )
            areas.append(roc_auc_score(truth, found))
        mean = table.mean["auroc"]
        assert mean is not None
        assert mean.value == pytest.approx(np.mean(areas))
        assert mean.low <= mean.value <= mean.high
    assert len({tuple(one) for one in scores.values()}) == 4
