"""A folder of parts on a store each of whose calls fails once: no input is lost or doubled, and errors name a file."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

import pyarrow.fs
import pyarrow.parquet
import pytest
from fakes.failing_store import FailingStore
from helpers.settings import SETTINGS

from mdmf_deploy.detection.outputs import parquet
from mdmf_deploy.detection.outputs.done import InputKey
from mdmf_deploy.detection.outputs.parts import PartFolder, key_columns, with_keys
from mdmf_deploy.detection.rows import Row
from mdmf_deploy.errors import UsageError

# The second and the third run drop an input of the first, which has changed.
KEYS = [InputKey(f"{n}.jpg", 0, 10, 1) for n in range(5)]
CHANGED = [key._replace(mtime_ns=2) if key.uri == "1.jpg" else key for key in KEYS]


def run(folder: Path, keys: Iterable[InputKey]) -> None:
    """Do what is missing, two inputs a part."""
    with PartFolder.open(str(folder), SETTINGS, "rows", parquet.schema(), resume=True) as parts:
        states = {key: parts.done.state(key) for key in keys}
        parts.drop([(key.uri, key.copy) for key, state in states.items() if state == "changed"])
        todo = [key for key, state in states.items() if state != "done"]
        for n in range(0, len(todo), 2):
            some = todo[n : n + 2]
            rows = [Row(uri=key.uri, sha256="ab" * 32) for key in some]
            parts.write(with_keys(parquet.table_of(rows), key_columns(some)))


def held(folder: Path) -> list[tuple[str, int]]:
    """Return the inputs in all parts, and the times of their files."""
    found: list[tuple[str, int]] = []
    for path in folder.glob("part-*.parquet"):
        with path.open("rb") as file:  # not by its path, which pyarrow would give to the store
            table = pyarrow.parquet.ParquetFile(file).read()
        found += zip(table["input"].to_pylist(), table["input_mtime_ns"].to_pylist(), strict=True)
    return sorted(found)


@pytest.mark.parametrize("keys", [KEYS, CHANGED])
def test_a_call_of_the_store_that_fails_loses_and_doubles_nothing(
    keys: list[InputKey], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, folder = tmp_path / "before", tmp_path / "rows.parquet"
    run(before, KEYS[:3])
    total, at = FailingStore(), 0

    def store(failing: FailingStore) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(before, folder)
        monkeypatch.setattr("pyarrow.fs.LocalFileSystem", lambda: pyarrow.fs.PyFileSystem(failing))

    store(total)
    run(folder, keys)
    expected = [(key.uri, key.mtime_ns) for key in keys]
    assert held(folder) == expected
    for at in range(1, total.count + 1):
        monkeypatch.undo()
        failing = FailingStore(at)
        store(failing)
        with pytest.raises((UsageError, OSError)) as caught:
            run(folder, keys)
        assert str(folder) in str(caught.value), failing.struck
        store_again = FailingStore()
        monkeypatch.setattr("pyarrow.fs.LocalFileSystem", lambda found=store_again: pyarrow.fs.PyFileSystem(found))
        run(folder, keys)
        assert held(folder) == expected, failing.struck
