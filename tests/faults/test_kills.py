"""Commands killed at any moment leave an output that is whole, or absent, or goes on where it stopped.

The moments are system calls that change a file, drawn from a seed, and moments in time. MDMF_FAULTS=N kills each
command N times, and MDMF_FAULTS_SEED=S draws others.
"""

from __future__ import annotations

import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.faulty import CHANGES, LONG, SEED, Action, Calls, Rule, Server, moments
from helpers.jobs import Job, read_rows

BUNDLES = ("build", "compress", "calibrate")
CallsOf = Callable[[str, Job, Calls], int]
RESUMED = ("detect --resume jsonl", "detect --resume csv", "detect --resume parquet")


@pytest.mark.parametrize("name", ["detect jsonl", "detect parquet", *BUNDLES])
def test_a_killed_command_leaves_the_old_output_or_the_new_one(
    name: str, job: Callable[[str], Job], calls_of: CallsOf, server: Server
) -> None:
    command = job(name)
    # All that make a bundle write it in the same way.
    for at in moments(calls_of(name, command, CHANGES), 1 if name in BUNDLES else 2, name):
        command.begin()
        killed = server.run(*command.arguments, rules=[Rule(command.folder, CHANGES, Action.tear, at, signal.SIGKILL)])
        assert killed.code == -signal.SIGKILL, str(killed)
        command.check(killed)
        command.finish(server, killed)


@pytest.mark.parametrize("name", ["detect jsonl", "detect parquet", *BUNDLES])
def test_a_terminated_command_also_tidies_up(
    name: str, job: Callable[[str], Job], calls_of: CallsOf, server: Server
) -> None:
    command = job(name)
    for at in moments(calls_of(name, command, CHANGES), 1, f"{name} SIGTERM"):
        command.begin()
        rule = Rule(command.folder, CHANGES, Action.signal, at, signal.SIGTERM)
        stopped = server.run(*command.arguments, rules=[rule])
        # A signal that comes once the last file has its name may find the command done.
        assert stopped.code in (128 + signal.SIGTERM, 0), str(stopped)
        command.check(stopped)
        command.tidy(stopped)
        command.finish(server, stopped)


@pytest.mark.parametrize("name", RESUMED)
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_resumable_run_goes_on_until_every_input_is_there_once(
    name: str, number: int, job: Callable[[str], Job], calls_of: CallsOf, server: Server
) -> None:
    command = job(name)
    total = calls_of(name, command, CHANGES)
    command.begin()
    for at in moments(total, 2 if number == signal.SIGKILL else 1, f"{name} {number}"):
        # Half of the calls, so that most runs have something to go on from and come to no end.
        rule = Rule(command.folder, CHANGES, Action.tear, 1 + at // 2, number)
        stopped = server.run(*command.arguments, rules=[rule])
        assert stopped.code in (-number, 128 + number, 0), str(stopped)
        assert "Traceback" not in stopped.err, str(stopped)
        if stopped.code == 0:
            command.whole(command.output)
            command.begin()
        elif command.output.exists():
            rows = whole_rows(command.output)
            assert len({row["uri"] for row in rows}) == len(rows), str(stopped)
    command.finish(server, stopped)


def whole_rows(output: Path) -> list[dict[str, Any]]:
    """Return the rows that a reader sees while a run is stopped: whatever ends in a newline, or is a whole part."""
    if output.is_dir():
        return read_rows(output)
    seen = output.with_name(f"seen{output.suffix}")
    seen.write_bytes(b"".join(line for line in output.read_bytes().splitlines(True) if line.endswith(b"\n")))
    try:
        return read_rows(seen)
    finally:
        seen.unlink()


@pytest.mark.parametrize("name", RESUMED)
def test_a_row_is_superseded_whole_or_not_at_all(name: str, job: Callable[[str], Job], server: Server) -> None:
    command = job(name)
    command.begin()
    photos, other = Path(str(command.arguments[1])), command.folder.parent / "photos"
    shutil.copytree(photos, other)
    arguments = tuple(other if argument == photos else argument for argument in command.arguments)
    assert server.run(*arguments).code == 0
    before = command.folder.parent / "before"
    shutil.copytree(command.folder, before)
    changed = other / "photo03.png"
    shutil.copy(other / "photo05.png", changed)
    ending = server.run(*arguments, rules=[Rule(command.folder, CHANGES)])
    assert ending.code == 0, str(ending)
    expected = read_rows(command.output)
    for at in moments(ending.counts[0], 2 if "jsonl" in name else 1, f"{name} superseded"):
        shutil.rmtree(command.folder)
        shutil.copytree(before, command.folder)
        killed = server.run(*arguments, rules=[Rule(command.folder, CHANGES, Action.tear, at, signal.SIGKILL)])
        assert killed.code == -signal.SIGKILL, str(killed)
        finished = server.run(*arguments)
        assert finished.code == 0, f"{finished}\nafter {killed}"
        rows = read_rows(command.output)
        assert [row["uri"] for row in rows] == [row["uri"] for row in expected], f"{finished}\nafter {killed}"
        assert [row["sha256"] for row in rows] == [row["sha256"] for row in expected], f"{finished}\nafter {killed}"
        command.tidy(finished, killed)


@pytest.mark.parametrize("name", ["detect --resume jsonl", "build"])
def test_the_moment_may_also_be_one_in_time(name: str, job: Callable[[str], Job], server: Server) -> None:
    command = job(name)
    draw = random.Random(f"{SEED} {name} in time")
    command.begin()
    start = time.monotonic()
    server.run(*command.arguments)
    seconds = time.monotonic() - start
    command.begin()
    for _ in range(LONG or 1):
        stopped = server.run(*command.arguments, kill_after=draw.uniform(0, seconds))
        assert stopped.code in (-signal.SIGKILL, 0), str(stopped)
        if stopped.code == 0 or "--resume" not in name:
            command.check(stopped)
            command.begin()
    command.finish(server, stopped)


def test_rows_that_are_there_are_not_judged_again(job: Callable[[str], Job], server: Server) -> None:
    command = job("detect --resume jsonl")
    command.begin()
    killed = server.run(*command.arguments, rules=[Rule(command.folder, CHANGES, Action.tear, 30, signal.SIGKILL)])
    before = command.output.read_bytes()
    kept = before[: before.rindex(b"\n") + 1]
    assert 0 < kept.count(b"\n") < 12, str(killed)
    command.finish(server, killed)
    assert command.output.read_bytes().startswith(kept)
    assert len(read_rows(command.output)) == 12
