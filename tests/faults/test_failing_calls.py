"""Each call that changes a file fails once, as in SQLite's tests: one line that names the file, and nothing is lost."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable

import pytest
from helpers.faulty import CHANGES, FAILING, LONG, Action, Calls, Ending, Rule, Server, moments
from helpers.jobs import Job

CallsOf = Callable[[str, Job, Calls], int]
ERRORS = (errno.ENOSPC, errno.EIO, errno.EROFS, errno.EMFILE)


def meets_an_error(command: Job, server: Server, rule: Rule) -> Ending:
    command.begin()
    ending = server.run(*command.arguments, rules=[rule])
    command.check(ending)
    command.tidy(ending)
    if ending.code:
        last = ending.err.splitlines()[-1]
        assert ending.code == 2, str(ending)
        assert str(command.output) in last, str(ending)
        assert os.strerror(rule.value) in last, str(ending)
    else:
        # A hint, a lock, or a copy in place of a second name: the command did without, or said so.
        assert not command.untouched() or "not recorded" in ending.err, str(ending)
    return ending


# `mdmf verify` measures speeds, which takes long.
NAMES = ["detect jsonl", "detect csv", "detect parquet", "build", "calibrate", *(["verify"] if LONG else [])]


@pytest.mark.parametrize("name", NAMES)
def test_a_call_that_fails_costs_one_line(
    name: str, job: Callable[[str], Job], calls_of: CallsOf, server: Server
) -> None:
    command = job(name)
    total = calls_of(name, command, FAILING)
    for place, at in enumerate(moments(total, 3, f"{name} fails")):
        rule = Rule(command.folder, FAILING, Action.fail, at, ERRORS[place % len(ERRORS)])
        ending = meets_an_error(command, server, rule)
    command.finish(server, ending)


@pytest.mark.parametrize("name", ["detect jsonl", "build"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
def test_a_disk_that_stays_full_costs_one_line(
    name: str, number: int, job: Callable[[str], Job], server: Server
) -> None:
    command = job(name)
    for at in moments(8, 1, f"{name} stays full {number}"):
        ending = meets_an_error(command, server, Rule(command.folder, FAILING, Action.fail_from, at, number))
    command.finish(server, ending)


@pytest.mark.parametrize("name", ["detect --resume jsonl", "detect --resume csv", "detect --resume parquet"])
def test_a_resumable_run_goes_on_after_an_error(
    name: str, job: Callable[[str], Job], calls_of: CallsOf, server: Server
) -> None:
    command = job(name)
    total = calls_of(name, command, FAILING)
    command.begin()
    for place, at in enumerate(moments(total, 2, f"{name} fails")):
        number = ERRORS[place % len(ERRORS)]
        rule = Rule(command.folder, FAILING, Action.fail, 1 + at // 3, number)
        ending = server.run(*command.arguments, rules=[rule])
        assert "Traceback" not in ending.err, str(ending)
        assert ending.code in (0, 2), str(ending)
        if ending.code == 2:
            assert str(command.output) in ending.err.splitlines()[-1], str(ending)
    command.finish(server, ending)


def test_a_folder_without_locks_is_written_to_all_the_same(job: Callable[[str], Job], server: Server) -> None:
    command = job("detect jsonl")
    command.begin()
    rule = Rule(command.folder, Calls.LOCK, Action.fail_from, 1, errno.ENOLCK)
    ending = server.run(*command.arguments, rules=[rule])
    assert ending.code == 0, str(ending)
    command.whole(command.output)
    command.tidy(ending)
    killed = server.run(*command.arguments, rules=[rule, Rule(command.folder, CHANGES, Action.tear, 5, signal.SIGKILL)])
    assert killed.code == -signal.SIGKILL, str(killed)
    command.whole(command.output)
