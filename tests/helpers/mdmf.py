"""The command line, run in this process."""

from __future__ import annotations

from typer.testing import CliRunner, Result

from mdmf_deploy.cli import app


def mdmf(*arguments: object, stdin: str | bytes | None = None) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], input=stdin)
