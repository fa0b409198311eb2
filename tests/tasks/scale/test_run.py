"""Runs on a Ray of this machine: rows equal a local run's, and each input is in the output exactly once."""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
from helpers.clips import write_clip
from helpers.mdmf import mdmf
from helpers.rows import timeless_lines
from typer.testing import Result

from mdmf_deploy.detection.rows import COLUMNS, TIMINGS
from mdmf_deploy.interrupts import Interrupted, raised
from mdmf_deploy.tasks.scale import run
from mdmf_deploy.tasks.scale.cluster import connected


@pytest.fixture(scope="module", autouse=True)
def ray(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One Ray for all runs of this file, which leaves nothing in the home or in Ray's usual place.

    A run that finds itself connected keeps the connection.
    """
    home = tmp_path_factory.mktemp("home")
    before = set(Path("/tmp").glob("ray*"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(home))
        with connected():
            yield
    assert not list(home.iterdir())
    assert set(Path("/tmp").glob("ray*")) == before
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0"


@pytest.fixture
def folder(photos: Path, tmp_path: Path) -> Path:
    """Inputs of every kind: good ones, broken ones, other files, and names that are not UTF-8."""
    folder = tmp_path / "inputs"
    (folder / "below").mkdir(parents=True)
    for photo in photos.iterdir():
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


def on_ray(*arguments: object) -> Result:
    return mdmf("detect", *arguments, "--engine", "ray")


def rows_in(output: Path) -> list[dict[str, Any]]:
    """The rows of a folder of parts, without their times, by uri."""
    rows = [row for part in output.glob("part-*.parquet") for row in pyarrow.parquet.read_table(part).to_pylist()]
    for row in rows:
        row |= dict.fromkeys(TIMINGS)
    return sorted(rows, key=lambda row: (row["uri"], row["input_copy"]))


def plain(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: row[name] for name in COLUMNS} for row in rows]


@pytest.mark.parametrize("options", [(), ("--crops", 2, "--each-frame")], ids=["", "each-frame"])
def test_rows_are_those_of_a_local_run(
    tiny_bundle: Path, folder: Path, options: tuple[object, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "GROUP", 3)  # so that there are several groups, and the last is not full
    if options:  # relative paths, which workers must not take from where they started
        monkeypatch.chdir(folder.parent)
        folder = Path(folder.name)
    twice = folder / "photo03.png"
    arguments = (folder, twice, folder.parent / "gone.jpg", "--bundle", tiny_bundle, *options)
    output = folder.parent / "rows"
    done = on_ray(*arguments, "-o", output)
    assert done.exit_code == 3, done.output
    local = mdmf("detect", *arguments, "--json")
    assert local.exit_code == 3
    expected = sorted(timeless_lines(local.stdout), key=lambda row: row["uri"])
    rows = rows_in(output)
    assert plain(rows) == expected
    assert [row["input_copy"] for row in rows if row["input"] == twice.as_posix()] == [0, 1]
    assert {row["error_code"] for row in rows} >= {None, "truncated", "empty", "missing", "not_a_file"}
    # The same words, but for the time.
    assert [line for line in local.stderr.splitlines() if " images" in line and "images/s" not in line] == [
        line for line in done.stderr.splitlines() if " images" in line and "images/s" not in line
    ]
    assert "1 other files in folders skipped (.txt 1)" in done.stderr


def test_a_second_run_does_what_is_new_changed_or_worth_another_try(tiny_bundle: Path, folder: Path) -> None:
    output = folder.parent / "rows"
    first = on_ray(folder, "-o", output, "--bundle", tiny_bundle)
    assert first.exit_code == 3, first.output
    parts = {part.name: part.read_bytes() for part in output.glob("part-*")}
    before = rows_in(output)
    (folder / "away.jpg").unlink()
    again = on_ray(folder, "-o", output, "--bundle", tiny_bundle)
    assert again.exit_code == 3, again.output
    assert f"nothing to do: {len(before) - 1} inputs are in {output}" in again.stderr
    assert {part.name: part.read_bytes() for part in output.glob("part-*")} == parts

    # As when a task had written its part, but its worker died before it said so.
    [part] = parts
    (output / part).unlink()
    retried = on_ray(folder, "-o", output, "--bundle", tiny_bundle)
    assert retried.exit_code == 3, retried.output
    assert len(list(output.glob("part-*"))) == 1

    changed, new = folder / "photo01.png", folder / "new.png"
    changed.write_bytes((folder / "photo05.png").read_bytes())
    new.write_bytes(changed.read_bytes())
    third = on_ray(folder, "-o", output, "--bundle", tiny_bundle)
    assert third.exit_code == 3, third.output
    assert ", 1 changed or could not be read and are done again; 1 are new" in third.stderr
    rows = {row["uri"]: row for row in rows_in(output)}
    assert len(rows) == len(rows_in(output)) == len(before)
    assert rows[changed.as_posix()]["score"] == rows[new.as_posix()]["score"]
    untouched = [row for row in before if row["uri"] not in (changed.as_posix(), (folder / "away.jpg").as_posix())]
    assert untouched == [row for row in rows_in(output) if row["uri"] not in (changed.as_posix(), new.as_posix())]

    refused = on_ray(folder, "-o", output, "--bundle", tiny_bundle, "--crops", 3)
    assert refused.exit_code == 2
    assert "crops 1 there, 3 now" in refused.stderr


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


def test_errors_of_workers_are_one_line(tiny_bundle: Path, photos: Path, tmp_path: Path) -> None:
    output = tmp_path / "rows"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mdmf_deploy.tasks.scale.run.__version__", "0.0.0")
        done = on_ray(photos, "-o", output, "--bundle", tiny_bundle)
    assert done.exit_code == 2
    [line] = [line for line in done.stderr.splitlines() if "0.0.0" in line]
    assert "install the same one" in line
    assert "Traceback" not in done.output
    assert Counter(path.suffix for path in output.iterdir())[".parquet"] == 0
