"""The command line, run in this process."""

from __future__ import annotations

from functools import cache

import typer.testing
from typer.testing import CliRunner, Result

from mdmf_deploy.cli import app

# Typer would build its commands anew for every call, which takes 25 ms.
typer.testing._get_command = cache(typer.testing._get_command)  # type: ignore[attr-defined]


def mdmf(*arguments: object, stdin: str | bytes | None = None) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], input=stdin)
