"""Runs `mdmf` commands, given as JSON on stdin, in one process that is killed when it opens a socket.

Linux kills the process, or any child of it, at a socket that is not a local one (seccomp). This holds for native code,
too, and needs no rights. Elsewhere nothing is forbidden. The exit code is that of the first command that fails.
"""

from __future__ import annotations

import ctypes
import json
import os
import platform
import struct
import sys

# machine -> its name in audit messages, the number of the system call socket (linux/audit.h, asm/unistd.h)
MACHINES = {"x86_64": (0xC000003E, 41), "aarch64": (0xC00000B7, 198)}
_LOAD, _JUMP_IF_EQUAL, _RETURN = 0x20, 0x15, 0x06
_KILL, _ALLOW = 0x80000000, 0x7FFF0000
_PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS, _FILTER = 22, 38, 2


class _Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("steps", ctypes.c_void_p)]


def supported() -> bool:
    return sys.platform == "linux" and platform.machine() in MACHINES


def forbid_sockets() -> None:
    """Forbid them for the rest of this process's life, and to its children. Local ones (AF_UNIX) stay allowed."""
    machine, socket = MACHINES[platform.machine()]
    steps = [  # operation, how many steps to skip if true, if false, operand
        (_LOAD, 0, 0, 4),  # the machine
        (_JUMP_IF_EQUAL, 1, 0, machine),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, 0),  # the number of the call
        (_JUMP_IF_EQUAL, 0, 3, socket),
        (_LOAD, 0, 0, 16),  # its first argument, the family
        (_JUMP_IF_EQUAL, 1, 0, 1),  # AF_UNIX
        (_RETURN, 0, 0, _KILL),
        (_RETURN, 0, 0, _ALLOW),
    ]
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in steps))
    program = _Program(len(steps), ctypes.addressof(code))
    libc = ctypes.CDLL(None, use_errno=True)
    for call in ((_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), (_PR_SET_SECCOMP, _FILTER, ctypes.byref(program), 0, 0)):
        if libc.prctl(*call) != 0:
            raise OSError(ctypes.get_errno(), f"prctl: {os.strerror(ctypes.get_errno())}")


def main() -> None:
    commands = json.load(sys.stdin)
    if supported():
        forbid_sockets()

    from functools import partial

    from typer.testing import CliRunner

    from mdmf_deploy import runtime
    from mdmf_deploy.cli import app
    from mdmf_deploy.tasks.benchmark import results

    # Each cold start is a process, and speeds are measured on one batch.
    results.Settings = partial(results.Settings, cold_starts=1)
    runtime.SECONDS_PER_TURN = 0.0

    for command in commands:
        result = CliRunner().invoke(app, command)
        if result.exit_code != 0:
            print(f"{' '.join(command)}: exit code {result.exit_code}\n{result.output}", file=sys.stderr)
            if result.exception is not None and not isinstance(result.exception, SystemExit):
                raise result.exception
            sys.exit(result.exit_code)


if __name__ == "__main__":
    main()
