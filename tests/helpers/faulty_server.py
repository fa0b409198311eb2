"""The server of helpers/faulty.py: it forks a process for each command, and imports what any command has imported."""

from __future__ import annotations

import ctypes
import gc
import importlib
import json
import os
import resource
import select
import signal
import sys
import threading
import traceback
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn


def main() -> None:
    given = json.loads(sys.argv[1])
    orders, answers = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    sys.path[:] = [*os.environ["PYTHONPATH"].split(os.pathsep)[:2], *sys.path[1:]]
    exec(given["prepare"], {})
    _build_commands()
    calls = ctypes.CDLL(None)
    calls.faulty_count.restype = ctypes.c_long
    calls.faulty_struck.restype = ctypes.c_char_p
    folder = Path(given["folder"])
    for line in orders:
        order = json.loads(line)
        calls.faulty_page()
        gc.collect()
        gc.freeze()
        pid = os.fork()
        if pid == 0:
            _run(order, calls, folder)
        code = _wait(pid, order["kill_after"], order["number"])
        rules = range(len(order["rules"]))
        answer = {
            "code": code,
            "out": (folder / "out").read_text(errors="replace"),
            "err": (folder / "err").read_text(errors="replace"),
            "counts": [calls.faulty_count(n) for n in rules],
            "struck": [os.fsdecode(calls.faulty_struck(n)) for n in rules],
        }
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
        _import(folder / "imported")


def _build_commands() -> None:
    """Build the command line once, which would take half of the time of a small command."""
    import typer.main

    from mdmf_deploy.cli import app

    built = typer.main.get_command(app)
    typer.main.get_command = lambda _: built


def _import(names: Path) -> None:
    """Import what a command has imported, so that the next one finds it."""
    if names.exists():
        for name in names.read_text().split():
            with suppress(Exception):
                importlib.import_module(name)
        names.unlink()
    assert threading.active_count() == 1, f"a fork would lose threads: {threading.enumerate()}"


def _wait(pid: int, kill_after: float | None, number: int) -> int:
    if kill_after is not None:
        process = os.pidfd_open(pid)
        if not select.select([process], [], [], kill_after)[0]:
            os.kill(pid, number)
        os.close(process)
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status)


def _run(order: dict[str, Any], calls: ctypes.CDLL, folder: Path) -> NoReturn:
    code, before = 99, set(sys.modules)
    try:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for number, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        sys.argv = ["mdmf", *order["arguments"]]
        warnings.simplefilter("default")
        exec(order["patch"], {})
        for name, value in order["limits"].items():
            number = getattr(resource, name)
            held = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
            soft = value + held if name == "RLIMIT_AS" else value
            resource.setrlimit(number, (soft, resource.getrlimit(number)[1]))
        for rule in order["rules"]:
            calls.faulty_rule(
                os.fsencode(rule["folder"]),
                rule["calls"],
                rule["action"],
                ctypes.c_long(rule["at"]),
                rule["value"],
            )
        from mdmf_deploy.__main__ import main

        main()
        code = 0
    except SystemExit as stopped:
        code = stopped.code if isinstance(stopped.code, int) else int(stopped.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 98
    # Not sys.exit, which would run what was registered before the fork. Threads are waited for as at any exit.
    try:
        threading._shutdown()  # type: ignore[attr-defined]
        sys.stderr.flush()
        if new := [name for name in list(sys.modules) if name not in before]:
            (folder / "imported").write_text("\n".join(new))
    finally:
        os._exit(code)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    main()
