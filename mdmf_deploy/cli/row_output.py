"""Where rows go: stdout, or a file of any format."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from mdmf_deploy.cli.console import log, print_row, print_text

if TYPE_CHECKING:
    from mdmf_deploy.detection.rows import Row


@contextmanager
def row_output(output: Path | None, as_json: bool, anew: str) -> Iterator[Callable[[Row], None]]:
    """Yield a function that prints each row as it comes, or writes it to the output.

    anew: is said, and that the output is replaced, if it is one that runs with --resume have written.
    """
    if output is None:
        yield _stdout(as_json)
        return
    from mdmf_deploy.detection.outputs import open_output
    from mdmf_deploy.detection.outputs.resumable import journal_of

    journal = journal_of(output)
    if journal.exists():
        log(f"note: {anew}, and {output} is replaced at the end")
    with open_output(output) as writer:
        yield writer.write
    journal.unlink(missing_ok=True)


def _stdout(as_json: bool) -> Callable[[Row], None]:
    """Return a function that prints each row as it comes."""
    from mdmf_deploy.detection.rows import TABLE_HEADER, json_line

    if as_json:

        def print_json(row: Row) -> None:
            sys.stdout.buffer.write(json_line(row))
            sys.stdout.flush()

        return print_json

    header = [TABLE_HEADER]

    def print_line(row: Row) -> None:
        while header:
            print_text(header.pop())
        print_row(row)

    return print_line
