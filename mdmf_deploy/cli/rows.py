"""`mdmf rows`: the columns of a row, and their JSON Schema."""

from __future__ import annotations

from typing import Annotated

import typer

from mdmf_deploy.cli.console import print_json, print_lines
from mdmf_deploy.cli.layout import wrapped


def rows(
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON Schema of a row, for programs.")] = False,
) -> None:
    """Explain the columns that detect writes.

    The schema (draft 2020-12) says what a row may hold: its columns, their types, and every code of an error, a reason
    or a note. It is that of a row printed by `mdmf detect --json`.

    Example: mdmf rows --schema
    """
    from mdmf_deploy.detection.schema import DESCRIPTIONS, row_schema

    if schema:
        print_json(row_schema())
        return
    width = max(map(len, DESCRIPTIONS)) + 2
    for name, text in DESCRIPTIONS.items():
        print_lines(wrapped(text, f"{name:<{width}}"))
