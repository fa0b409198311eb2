"""Few file descriptors, threads, processes and little memory: one line that says so and exit code 2, never 1."""

from __future__ import annotations

import errno
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.faulty import LONG, Action, Calls, Ending, Rule, Server
from helpers.jobs import Job
from helpers.tiffs import slow_tiff

MIB = 1 << 20
COMMANDS = ("detect jsonl", "build", "calibrate")


def says_what_is_lacking(command: Job, server: Server, expected: str, **options: object) -> Ending:
    """Run a command, which succeeds, or ends with exit code 2 after one line that matches and tidies up."""
    command.begin()
    ending = server.run(*command.arguments, **options)  # type: ignore[arg-type]
    command.check(ending)
    if ending.code:
        assert ending.code == 2, str(ending)
        last = ending.err.splitlines()[-1]
        assert re.search(expected, last), str(ending)
        command.tidy(ending)
    return ending


@pytest.mark.parametrize("name", COMMANDS)
def test_a_thread_that_cannot_be_started_is_one_line(
    name: str, job: Callable[[str], Job], calls_of: Callable[[str, Job, Calls], int], server: Server
) -> None:
    command = job(name)
    total = calls_of(name, command, Calls.THREAD)
    assert total > 2
    for at in range(1, total + 1) if LONG else (1, 2, total - 1):
        rule = Rule(command.folder, Calls.THREAD, Action.fail_from, at, errno.EAGAIN)
        kept = "; .*(is unchanged|rows finished before are in) *" if "detect" in name else ""
        ending = says_what_is_lacking(command, server, f"no more threads can be started.*{kept}", rules=[rule])
    command.finish(server, ending)


@pytest.mark.parametrize("name", COMMANDS)
def test_little_memory_is_one_line(name: str, job: Callable[[str], Job], server: Server) -> None:
    command, codes = job(name), []
    # More than what the process holds already. With 8 MiB nothing works, and with 4 GiB everything does.
    for mib in [*range(8, 400, 8), 4096] if LONG else [8, 60, 4096]:
        ending = says_what_is_lacking(command, server, "memory|threads", limits={"RLIMIT_AS": mib * MIB})
        codes.append(ending.code)
    assert codes[0] == 2
    assert codes[-1] == 0


@pytest.mark.parametrize("name", COMMANDS)
def test_few_file_descriptors_are_one_line(name: str, job: Callable[[str], Job], server: Server) -> None:
    command, codes = job(name), []
    for most in range(4, 64, 2) if LONG else (6, 12, 64):
        ending = says_what_is_lacking(command, server, "Too many open files", limits={"RLIMIT_NOFILE": most})
        codes.append(ending.code)
    assert codes[0] == 2
    assert codes[-1] == 0


def test_a_process_that_cannot_be_started_costs_the_rows_that_need_it(
    photos: Path, tiny_bundle: Path, server: Server, tmp_path: Path
) -> None:
    tiff = tmp_path / "in a child.tif"
    tiff.write_bytes(slow_tiff())
    rule = Rule(tmp_path, Calls.PROCESS, Action.fail_from, 1, errno.EAGAIN)
    ending = server.run("detect", photos, tiff, "--json", "--bundle", tiny_bundle, rules=[rule])
    assert ending.code == 3, str(ending)
    rows = ending.out.splitlines()
    assert len(rows) == 13
    assert '"error_code":"unreadable"' in rows[-1]
    assert "no process can be started to decode it" in rows[-1]
