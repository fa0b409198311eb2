"""A server for commands whose calls fail, and the commands."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from helpers.faulty import CHANGES, FAILING, Calls, Rule, Server, serving
from helpers.jobs import OLD, Job, read_rows, whole_bundle

ON = ("--runtime", "onnxruntime")


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory, cache: None) -> Iterator[Server]:
    # Several parts for a dozen inputs, and speeds measured on one batch.
    small = (
        "import mdmf_deploy.detection.outputs.row_parts as parts; parts.PART_INPUTS = 3\n"
        "import mdmf_deploy.runtime as runtime; runtime.SECONDS_PER_TURN = 0.0"
    )
    with serving(tmp_path_factory.mktemp("server"), small) as running:
        yield running


@pytest.fixture(scope="session")
def expected(
    server: Server, tiny_bundle: Path, photos: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """expected("csv") is a file of the rows that an undisturbed run gives for the photographs."""
    folder = tmp_path_factory.mktemp("expected")

    def made(ending: str) -> Path:
        path = folder / f"rows.{ending}"
        if not path.exists():
            result = server.run("detect", photos, "-o", path, "--bundle", tiny_bundle, *ON)
            assert result.code == 0, str(result)
        return path

    return made


@pytest.fixture(scope="session")
def calls_of(server: Server) -> Callable[[str, Job, Calls], int]:
    """calls_of(name, job, kinds) is how many calls of these kinds an undisturbed run of a job makes, counted once."""
    kinds = (CHANGES, FAILING, Calls.THREAD)
    counts: dict[str, dict[Calls, int]] = {}

    def counted(name: str, job: Job, wanted: Calls) -> int:
        if name not in counts:
            job.begin()
            ending = server.run(*job.arguments, rules=[Rule(job.folder, kind) for kind in kinds])
            assert ending.code == 0, str(ending)
            job.whole(job.output)
            job.tidy(ending)
            counts[name] = dict(zip(kinds, ending.counts, strict=True))
        return counts[name][wanted]

    return counted


@pytest.fixture
def job(tiny_bundle: Path, photos: Path, tmp_path: Path, expected: Callable[[str], Path]) -> Callable[[str], Job]:
    """job("detect csv") is a command that writes: detect FORMAT, detect --resume FORMAT, or one that makes a bundle."""

    def made(name: str) -> Job:
        folder = tmp_path / "out"
        *command, ending = name.split()
        if command and command[0] == "detect":
            output = folder / f"rows.{ending}"
            rows = read_rows(expected(ending))

            def whole(path: Path) -> None:
                found = read_rows(path)
                common = found[0].keys() & rows[0].keys()
                assert [{key: row[key] for key in common} for row in found] == [
                    {key: row[key] for key in common} for row in rows
                ]

            arguments = ("detect", photos, "-o", output, "--bundle", tiny_bundle, *ON, *command[1:])
            return Job(folder, output, arguments, whole, None if command[1:] else OLD)
        output = folder / "new.mdmf"
        choices: dict[str, tuple[object, ...]] = {
            "build": ("bank", "build", output, photos, "--force"),
            "compress": ("bank", "compress", output, "--points", 10, "--force"),
            "calibrate": ("calibrate", output, photos, "--force", "--fpr", 0.3),
            "verify": ("verify", output, *ON),
        }
        return Job(folder, output, choices[name], whole_bundle, tiny_bundle)

    return made
