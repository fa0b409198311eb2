"""The command that the last line of a command's messages suggests, taken apart as a shell would."""

from __future__ import annotations

import re
import shlex

from typer.testing import Result


def suggested(result: Result, **places: object) -> list[str]:
    """Return the words behind "next: mdmf". In them, each name in `places` stands for a path of the user's."""
    assert result.exit_code == 0, result.stderr
    found = re.search(r"; next: mdmf (.*)$", result.stderr.splitlines()[-1])
    assert found, result.stderr
    words = shlex.split(found[1])
    named = {"photos/" if name == "photos" else name: str(path) for name, path in places.items()}
    assert named.keys() <= set(words), f"{found[1]} does not name {', '.join(named)}"
    return [named.get(word, word) for word in words]
