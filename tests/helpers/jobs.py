"""Commands that write something, each with a way to tell whether its output is whole."""

from __future__ import annotations

import csv
import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
from helpers.faulty import Ending, Server, tree

from mdmf_deploy.bundle.manifest import MANIFEST, Manifest
from mdmf_deploy.detection.rows import TIMINGS

OLD = b"an older file\n"


@dataclass(frozen=True)
class Job:
    """A command and its output, which lies alone in a folder.

    whole: raises AssertionError unless the output is whole and new.
    older: what lies there before: a folder to copy, or None for nothing, or OLD for a file.
    """

    folder: Path
    output: Path
    arguments: tuple[object, ...]
    whole: Callable[[Path], None]
    older: Path | bytes | None = None

    def begin(self) -> None:
        """Make the folder, with the older output alone in it."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        if isinstance(self.older, Path):
            shutil.copytree(self.older, self.output)
        elif self.older is not None:
            self.output.write_bytes(self.older)

    def untouched(self) -> bool:
        """Return whether the output is the older one, to the byte."""
        if self.older is None:
            return not self.output.exists()
        if isinstance(self.older, bytes):
            return self.output.is_file() and self.output.read_bytes() == self.older
        return self.output.is_dir() and tree(self.output) == tree(self.older)

    def check(self, ending: Ending) -> None:
        """Raise AssertionError unless the output is the older one, or whole and new."""
        assert "Traceback" not in ending.err, str(ending)
        if not self.untouched():
            try:
                self.whole(self.output)
            except Exception as error:
                raise AssertionError(f"{self.output} is neither the older one nor a whole new one\n{ending}") from error

    def finish(self, server: Server, said: Ending) -> None:
        """Run the command undisturbed. Its output must be whole, and nothing else may lie in the folder.

        said: how the command ended before.
        """
        ending = server.run(*self.arguments)
        assert ending.code == 0, f"{ending}\nafter {said}"
        self.whole(self.output)
        self.tidy(ending, said)

    def tidy(self, ending: Ending, said: Ending | None = None) -> None:
        """Raise AssertionError if a hidden file or folder lies beside the output, or in it.

        said: how the command before it was killed. It may have left its lock file, empty, if nothing was written since.
        """
        left = [path.name for path in self.folder.rglob(".*") if said is None or path.suffix != ".lock"]
        assert not left, f"{left} was left behind\n{ending}\nafter {said}"


def whole_bundle(path: Path) -> None:
    """Raise AssertionError unless a bundle holds exactly the files that its manifest says."""
    manifest = msgspec.json.decode((path / MANIFEST).read_bytes(), type=Manifest)
    assert {file.name for file in path.iterdir()} == {MANIFEST, *manifest.files}
    for name, entry in manifest.files.items():
        assert hashlib.sha256((path / name).read_bytes()).hexdigest() == entry.sha256, name


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a file or a folder of parts, without times, in the order of their uris."""
    if path.suffix == ".jsonl":
        rows = [json.loads(line) for line in path.read_bytes().splitlines()]
    elif path.suffix == ".json":
        rows = json.loads(path.read_bytes())
    elif path.suffix == ".csv":
        rows = list(csv.DictReader(path.read_text().splitlines()))
    else:
        import pyarrow.parquet

        parts = sorted(path.glob("part-*.parquet")) if path.is_dir() else [path]
        rows = [row for part in parts for row in pyarrow.parquet.ParquetFile(part).read().to_pylist()]
    kept = [{name: value for name, value in row.items() if name not in TIMINGS} for row in rows]
    return sorted(kept, key=lambda row: str(row["uri"]))
