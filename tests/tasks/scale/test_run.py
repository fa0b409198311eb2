"""Runs on a Ray of this machine: rows equal a local run's, and each input is in the output exactly once."""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.parquet
import pytest
from helpers.clips import write_clip
from helpers.mdmf import mdmf
from helpers.rows import timeless_lines
from typer.testing import Result

from mdmf_deploy.detection.rows import COLUMNS, TIMINGS
from mdmf_deploy.interrupts import Interrupted, raised
from mdmf_deploy.tasks.scale import blocks, cluster, run
from mdmf_deploy.tasks.scale.cluster import connected


@pytest.fixture(scope="module", autouse=True)
def ray(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One Ray for all runs of this file, which leaves nothing in the home or in Ray's usual place.

    A run that finds itself connected keeps the connection. The processes that show a dashboard, hand on logs and rent
    machines have no part in a run, and take seconds to start. Workers stay for the next run.
    """
    home = tmp_path_factory.mktemp("home")
    before = set(Path("/tmp").glob("ray*"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(home))
        patch.setenv("RAY_idle_worker_killing_time_threshold_ms", "600000")
        patch.setattr(cluster, "_start", partial(start_with_few_processes, patch, cluster._start))
        with connected():
            yield
    assert not list(home.iterdir())
    assert set(Path("/tmp").glob("ray*")) == before
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0"


def start_with_few_processes(
    patch: pytest.MonkeyPatch, start: Callable[[Any, str], None], ray: Any, folder: str
) -> None:
    for name in ("start_monitor", "start_log_monitor", "start_api_server"):
        patch.setattr(f"ray._private.node.Node.{name}", lambda *_, **__: None)
    start(ray, folder)


def inputs_in(folder: Path, photos: list[Path]) -> Path:
    """Make a folder of inputs of every kind: good ones, broken ones, other files, and names that are not UTF-8."""
    (folder / "below").mkdir(parents=True)
    for photo in photos:
        (folder / photo.name).write_bytes(photo.read_bytes())
    good = (folder / "photo00.jpg").read_bytes()
    (folder / "below" / "cut.jpg").write_bytes(good[:400])
    (folder / "empty.png").touch()
    (folder / "suffixless").write_bytes(good)
    (folder / "notes.txt").write_text("no image")
    Path(os.fsdecode(os.fsencode(folder) + b"/caf\xe9.jpg")).write_bytes(good)
    (folder / "away.jpg").symlink_to(folder / "nowhere")
    os.mkfifo(folder / "pipe.jpg")
    if find_spec("cv2"):
        write_clip(folder / "clip.mp4", 12)
    return folder


@pytest.fixture
def few_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let one worker read at a time. Each is a process that imports Ray Data for seconds."""
    monkeypatch.setattr(run, "READ_CPUS", 1.0)


class Finished(NamedTuple):
    """A run that is done: its inputs, the folders of its rows and signatures, and what it printed."""

    folder: Path
    output: Path
    signatures: Path
    done: Result


@pytest.fixture(scope="module")
def finished(tiny_bundle: Path, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """A run of several groups, the last of which is not full, into several parts."""
    folder = inputs_in(tmp_path_factory.mktemp("finished") / "inputs", sorted(photos.iterdir()))
    output = folder.parent / "rows"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "GROUP", 3)
        patch.setattr(run, "BLOCK", 8)  # blocks of one input, and parts of 8
        patch.setattr(run, "READ_CPUS", 0.5)  # two workers that read, beside the actors, on two cores
        kept = folder.parent / "signatures"
        done = on_ray(*run_on(folder), "-o", output, "--keep-signatures", kept, "--bundle", tiny_bundle)
    assert done.exit_code == 3, done.output
    return Finished(folder, output, kept, done)


def run_on(folder: Path) -> tuple[Path, ...]:
    """The inputs of a run: a folder, a file of it once more, and a file that is missing."""
    return folder, folder / "photo03.png", folder.parent / "gone.jpg"


def on_ray(*arguments: object) -> Result:
    return mdmf("detect", *arguments, "--engine", "ray")


def rows_of(part: Path) -> list[dict[str, Any]]:
    """The rows of a part, without their times."""
    return [row | dict.fromkeys(TIMINGS) for row in pyarrow.parquet.read_table(part).to_pylist()]


def inputs_of(part: Path) -> list[str]:
    return pyarrow.parquet.read_table(part)["input"].to_pylist()


def rows_in(output: Path) -> list[dict[str, Any]]:
    """The rows of a folder of parts, by uri."""
    rows = [row for part in output.glob("part-*.parquet") for row in rows_of(part)]
    return sorted(rows, key=lambda row: (row["uri"], row["input_copy"]))


def plain(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: row[name] for name in COLUMNS} for row in rows]


def are_those_of_a_local_run(done: Result, output: Path, folder: Path, *options: object) -> None:
    """Compare rows and messages with those of a run without Ray."""
    local = mdmf("detect", *run_on(folder), "--json", *options)
    assert local.exit_code == done.exit_code == 3, done.output
    rows = rows_in(output)
    assert plain(rows) == sorted(timeless_lines(local.stdout), key=lambda row: row["uri"])
    twice = (folder / "photo03.png").as_posix()
    assert [row["input_copy"] for row in rows if row["input"] == twice] == [0, 1]
    assert {row["error_code"] for row in rows} >= {None, "truncated", "empty", "missing", "not_a_file"}
    # The same words, but for the time.
    assert [line for line in local.stderr.splitlines() if " images" in line and "images/s" not in line] == [
        line for line in done.stderr.splitlines() if " images" in line and "images/s" not in line
    ]
    assert "1 other files in folders skipped (.txt 1)" in done.stderr


def test_rows_are_those_of_a_local_run(tiny_bundle: Path, finished: Finished) -> None:
    are_those_of_a_local_run(finished.done, finished.output, finished.folder, "--bundle", tiny_bundle)
    give_the_rows_again(finished.signatures, finished.output, tiny_bundle)


def give_the_rows_again(signatures: Path, output: Path, bundle: Path, besides: Collection[str] = ()) -> None:
    """Judge signatures, and compare with the rows that were written beside them, but for these inputs."""
    again = mdmf("rescore", signatures, "--bundle", bundle, "--json")
    assert again.exit_code == 3, again.output
    judged = sorted(timeless_lines(again.stdout), key=lambda row: row["uri"])
    kept = [[row for row in rows if row["uri"] not in besides] for rows in (judged, plain(rows_in(output)))]
    assert kept[0] == kept[1]


def test_rows_of_relative_paths_and_of_frames_are_those_of_a_local_run(
    tiny_bundle: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, few_workers: None
) -> None:
    inputs_in(tmp_path / "inputs", [photos / "photo00.jpg", photos / "photo03.png"])
    monkeypatch.chdir(tmp_path)  # workers must not take relative paths from where they started
    options = ("--bundle", tiny_bundle, "--crops", 2, "--each-frame")
    done = on_ray(*run_on(Path("inputs")), "-o", "rows", *options)
    are_those_of_a_local_run(done, Path("rows"), Path("inputs"), *options)


def test_a_second_run_does_what_is_new_changed_or_worth_another_try(
    tiny_bundle: Path, finished: Finished, few_workers: None
) -> None:
    folder, output, signatures, _ = finished
    options = ("-o", output, "--keep-signatures", signatures, "--bundle", tiny_bundle)
    *inputs, gone = run_on(folder)
    changed, new, away = folder / "photo01.png", folder / "new.png", folder / "away.jpg"
    parts = {part: part.read_bytes() for part in output.glob("part-*")}
    before = rows_in(output)
    away.unlink()
    again = on_ray(*inputs, *options)
    assert again.exit_code == 3, again.output
    assert f"nothing to do: {len(before) - 2} inputs are in {output}" in again.stderr
    assert {part: part.read_bytes() for part in output.glob("part-*")} == parts

    refused = on_ray(*inputs, *options, "--crops", 3)
    assert refused.exit_code == 2
    assert "crops 1 there, 3 now" in refused.stderr

    # A part of rows that is lost with its signatures, and signatures that are lost alone, as after a kill between two.
    no_longer = {path.as_posix() for path in (away, gone)}
    each = {part: {*inputs_of(part)} - no_longer for part in signatures.glob("part-*")}
    lost = next(part for part, held in each.items() if changed.as_posix() not in held)
    halved = next(part for part in each if part != lost)
    next(part for part in parts if {*inputs_of(part)} - no_longer == each[lost]).unlink()
    lost.unlink()
    halved.unlink()
    changed.write_bytes((folder / "photo05.png").read_bytes())
    new.write_bytes(changed.read_bytes())
    third = on_ray(*inputs, *options, "--actors", 1)
    assert third.exit_code == 3, third.output
    redone = each[halved] | {changed.as_posix()}
    told = f", {len(redone)} changed or could not be read and are done again; {1 + len(each[lost])} are new"
    assert told in third.stderr
    after = rows_in(output)
    [one] = [row for row in after if row["uri"] == changed.as_posix()]
    [other] = [row for row in after if row["uri"] == new.as_posix()]
    assert one["score"] == other["score"] is not None
    others = {path.as_posix() for path in (changed, new, away, gone)}
    assert [row for row in before if row["uri"] not in others] == [row for row in after if row["uri"] not in others]
    give_the_rows_again(signatures, output, tiny_bundle, no_longer)


def test_a_bundle_that_is_nowhere_else_travels_as_bytes(tiny_bundle: Path, photos: Path, tmp_path: Path) -> None:
    from mdmf_deploy.bundle.bundle import Bundle
    from mdmf_deploy.tasks.scale.shipment import Shipment

    shipment = Shipment.of(Bundle.open(tiny_bundle), as_bytes=True)
    elsewhere = Shipment(str(tmp_path / "elsewhere.mdmf"), None, shipment.manifest, shipment.files)
    with elsewhere.unpacked() as made:
        assert Bundle.open(made).bundle_id == Bundle.open(tiny_bundle).bundle_id
        assert made.parent != tiny_bundle.parent
    assert not made.exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "writes a folder of parts; name it"),
        (("-o", "rows.jsonl"), "writes a folder of Parquet parts"),
        (("-o", "rows", "--heatmaps", "maps"), "--heatmaps is for runs on this machine"),
        (("-o", "rows", "--json"), "--json is for runs on this machine"),
        (("-o", "rows", "--verify", "--resume"), "--verify is for runs on this machine"),
    ],
)
def test_options_that_make_no_sense_are_refused(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    done = on_ray(photos, *options)
    assert done.exit_code == 2
    assert message in done.stderr
    assert not list(tmp_path.iterdir())


def test_an_interrupt_keeps_its_signal() -> None:
    """Ray's native code turns SIGTERM into a KeyboardInterrupt."""

    def as_ray_does() -> None:
        try:
            signal.raise_signal(signal.SIGTERM)
        except Interrupted:
            raise KeyboardInterrupt from None

    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Interrupted) as caught, raised(pytest.fail), connected():
        as_ray_does()
    assert caught.value.number == signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) == handler


def test_errors_of_workers_are_one_line(tiny_bundle: Path, photos: Path, tmp_path: Path, few_workers: None) -> None:
    output = tmp_path / "rows"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mdmf_deploy.tasks.scale.run.__version__", "0.0.0")
        done = on_ray(photos / "photo00.jpg", "-o", output, "--bundle", tiny_bundle)
    assert done.exit_code == 2
    [line] = [line for line in done.stderr.splitlines() if "0.0.0" in line]
    assert "install the same one" in line
    assert "Traceback" not in done.output
    assert Counter(path.suffix for path in output.iterdir())[".parquet"] == 0
