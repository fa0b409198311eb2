"""Run the commands of a page as a shell would, with `mdmf` in this process."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from helpers.pages import blocks, lines, name
from typer.testing import CliRunner

from mdmf_deploy.cli import app

# The shell takes a line apart: quotes, globs, pipes, comments. Its `mdmf` writes down what it was given.
_SHELL = """
mdmf() { printf '%s\\0' "$@" > "$CALL"; case " $* " in *" - "*) cat > "$CALL.stdin";; esac; }
"""
# Options of commands whose job is to refuse: exit code 1 is an answer, too, if the message names the option.
_GATES = ("--fail-on", "--min-auroc")
_WRITTEN = ("-o", "--heatmaps", "--triton")


@dataclass(frozen=True, slots=True)
class Scratch:
    """A folder to run pages in.

    folder: the current folder.  given: files that only some pages presuppose.  call: where the shell leaves arguments.
    """

    folder: Path
    given: Path
    call: Path

    def give(self, *names: str) -> None:
        for one in names:
            shutil.copytree(self.given / one, self.folder / one)

    def run(self, page: Path) -> None:
        """Run every block of a page in order, but those marked. Raises AssertionError for the first line that fails."""
        for block in blocks(page):
            if block.reason is not None:
                continue
            if block.language == "sh":
                for line in lines(block.text):
                    self._run_line(line, name(page))
            elif block.language == "python":
                exec(compile(block.text, name(page), "exec"), {"__name__": "__main__"})

    def _run_line(self, line: str, page: str) -> None:
        # Nothing else may run on the machine of whoever runs the tests.
        assert re.match(r"(find [^|;&$`]*\| )?mdmf [^|;&$`]*$", line), f"{page}: {line}\nmark its block with the reason"
        line, _, redirected = line.partition(" > ")  # `mdmf` runs in this process, where the shell redirects nothing
        stdin = self.call.with_suffix(".stdin")
        for path in (self.call, stdin):
            path.unlink(missing_ok=True)
        environment = {**os.environ, "CALL": str(self.call)}
        shell = subprocess.run(
            ["sh", "-euc", _SHELL + line], env=environment, stdin=subprocess.DEVNULL, capture_output=True, check=False
        )
        assert shell.returncode == 0, f"{page}: {line}\n{shell.stderr.decode()}"
        words = self.call.read_bytes().decode().split("\0")[:-1]
        result = CliRunner().invoke(app, words, input=stdin.read_bytes() if stdin.exists() else b"")
        said = f"{page}: {line}\nexit code {result.exit_code}\n{result.stdout}{result.stderr}"
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise AssertionError(said) from result.exception
        refused = [option for option in _GATES if option in words and option in result.stderr]
        assert result.exit_code == (1 if refused else 0), said
        if redirected:
            (self.folder / redirected.strip()).write_text(result.stdout, encoding="utf-8")
        for option, value in pairwise(words):
            assert option not in _WRITTEN or Path(value).exists(), f"{said}\n{value} was not written"
