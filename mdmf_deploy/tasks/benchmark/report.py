"""A benchmark as text, JSON, CSV and a page of HTML with pictures."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from mdmf_deploy.errors import UsageError
from mdmf_deploy.tasks.benchmark.results import Benchmark

ENDINGS = (".json", ".csv", ".html")


def check_output(path: Path) -> None:
    """Raise UsageError, before a minute is spent, for an ending without a format, or a place not to be written to."""
    if path.suffix.lower() not in ENDINGS:
        raise UsageError(f"-o {path}: no report ends in {path.suffix!r}; choose one of {', '.join(ENDINGS)}")
    folder = path.resolve().parent
    if path.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        raise UsageError(f"-o {path}: cannot be written there; give the name of a file in a folder you can write to")


def to_bytes(benchmark: Benchmark, ending: str) -> bytes:
    """The whole report in the format of that ending, one of ENDINGS."""
    if ending == ".json":
        whole: bytes = msgspec.json.format(msgspec.json.encode(benchmark), indent=2)
        return whole + b"\n"
    if ending == ".csv":
        from mdmf_deploy.tasks.benchmark.flat import to_csv

        return to_csv(benchmark).encode()
    from mdmf_deploy.tasks.benchmark.page import to_html

    return to_html(benchmark).encode()
