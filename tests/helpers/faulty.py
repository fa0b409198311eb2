"""Commands whose system calls fail on purpose, each in a process of its own that costs no start.

A server process forks for each command, with everything imported that an earlier command has needed. The library of
fakes/faulty_calls.cpp, preloaded into it, counts calls and strikes one of them: the n-th write fails, or the process is
killed in it.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from enum import IntEnum, IntFlag
from pathlib import Path
from typing import Any

import pytest
from fakes.host_kernels import compiler

SOURCE = Path(__file__).parents[1] / "fakes" / "faulty_calls.cpp"
SERVER = Path(__file__).with_name("faulty_server.py")

LONG = int(os.environ.get("MDMF_FAULTS", "0"))
"""How many random moments each command is killed at. 0 means the short choice of CI."""
SEED = int(os.environ.get("MDMF_FAULTS_SEED", "0"))


class Calls(IntFlag):
    """Kinds of calls, as in fakes/faulty_calls.cpp."""

    OPEN = 1
    WRITE = 2
    SYNC = 4
    RENAME = 8
    MAKE = 16
    REMOVE = 32
    TRUNCATE = 64
    LOCK = 128
    READ_OPEN = 256
    READ = 512
    THREAD = 1024
    PROCESS = 2048


CHANGES = (
    Calls.OPEN | Calls.WRITE | Calls.SYNC | Calls.RENAME | Calls.MAKE | Calls.REMOVE | Calls.TRUNCATE
)  # everything that another process could see
# Removing a scratch file may fail as well, but then it stays, and nobody can help it.
FAILING = CHANGES & ~Calls.REMOVE


class Action(IntEnum):
    """What happens to the call that is struck, as in fakes/faulty_calls.cpp.

    fail: it fails with the error `value`.  fail_from: so do all later ones.
    signal: this process gets the signal `value` before it.  tear: in the middle of it, if it writes.
    vanish, shrink, grow: the file that it opens is removed before, or loses half of its bytes or gets more after.
    """

    count = 0
    fail = 1
    fail_from = 2
    signal = 3
    tear = 4
    vanish = 5
    shrink = 6
    grow = 7


@dataclass(frozen=True)
class Rule:
    """Strike call number `at`, from 1, of these kinds on files below a folder."""

    folder: Path
    calls: Calls
    action: Action = Action.count
    at: int = 0
    value: int = 0


@dataclass(frozen=True)
class Ending:
    """How a command ended.

    code: its exit code, or minus the signal that ended it.
    counts: calls that each rule has counted.
    struck: what each rule has struck, such as "write /folder/.rows.jsonl.tmp", or "".
    """

    code: int
    out: str
    err: str
    counts: list[int] = field(default_factory=list)
    struck: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return f"exit code {self.code}, counts {self.counts}, struck {self.struck}, seed {SEED}\n{self.out}{self.err}"


class Server:
    """Runs commands, one at a time."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def run(
        self,
        *arguments: object,
        rules: Sequence[Rule] = (),
        kill_after: float | None = None,
        number: int = signal.SIGKILL,
        limits: dict[str, int] | None = None,
        patch: str = "",
    ) -> Ending:
        """Run `mdmf` with these arguments.

        kill_after: seconds after which it gets the signal `number`.
        limits: soft limits by name, such as RLIMIT_NOFILE. RLIMIT_AS is added to what the process has already.
        patch: Python to run in the process before.
        """
        order: dict[str, Any] = {
            "arguments": [str(argument) for argument in arguments],
            "rules": [{**asdict(rule), "folder": str(rule.folder)} for rule in rules],
            "kill_after": kill_after,
            "number": number,
            "limits": limits or {},
            "patch": patch,
        }
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, "the server has ended"
        return Ending(**json.loads(answer))


@contextmanager
def serving(folder: Path, prepare: str = "") -> Iterator[Server]:
    """Start a server.

    folder: for the compiled calls and the outputs of commands.
    prepare: Python to run once, for all commands.
    """
    if not sys.platform.startswith("linux"):
        pytest.skip("LD_PRELOAD as written here needs Linux")
    library = folder / "faulty_calls.so"
    flags = ["-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-ldl"]
    subprocess.run([compiler(), *flags, str(SOURCE), "-o", str(library)], check=True)
    # One thread a library: a fork keeps only the thread that forks.
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    tests = str(Path(__file__).parents[1])
    path = os.pathsep.join([tests, str(Path(tests).parent), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, **threads, "LD_PRELOAD": str(library), "PYTHONPATH": path}
    given = json.dumps({"prepare": prepare, "folder": str(folder)})
    command = [sys.executable, str(SERVER), given]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        try:
            yield Server(process)
        finally:
            assert process.stdin is not None
            process.stdin.close()
            process.wait(60)


def moments(total: int, few: int, what: str) -> list[int]:
    """Draw numbers of calls, from 1 to total: `few` of them, or as many as MDMF_FAULTS says. Every kind gets others."""
    count = min(total, LONG or few)
    return sorted(random.Random(f"{SEED} {what}").sample(range(1, total + 1), count))


def tree(folder: Path) -> dict[str, bytes]:
    """Return the contents of all files below a folder, by relative path. A folder is "name/"."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_dir():
            found[f"{name}/"] = b""
        else:
            found[name] = path.read_bytes()
    return found
