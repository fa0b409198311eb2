"""Runs of `mdmf detect` with any checkout, in a process of its own: rows, exit code, messages, seconds, peak memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / "tests"))
from helpers.resident import Watch  # noqa: E402

TIMINGS = ("ms_decode", "ms_engine", "ms_mmd")


@dataclass(frozen=True, slots=True)
class Run:
    """code: exit code, None if it was killed.  peak: bytes of the process and its children, sampled every 20 ms."""

    rows: list[dict[str, Any]]
    code: int | None
    messages: list[str]
    seconds: float
    peak: int

    @property
    def foreign(self) -> list[str]:
        """Lines on stderr that are not the program's own messages."""
        return [line for line in self.messages if line.strip() and not line.startswith("mdmf: ")]

    @property
    def slowest(self) -> tuple[float, str]:
        """Seconds of decoding and the file's name, of the row that took longest."""
        return max(((row["ms_decode"] or 0.0) / 1000, Path(row["uri"]).name) for row in self.rows)

    def untimed(self) -> list[dict[str, Any]]:
        """Return the rows without what the clock decides."""
        return [{name: value for name, value in row.items() if name not in TIMINGS} for row in self.rows]


def detected(
    inputs: Path, checkout: Path, *options: str, threads: int = 8, seconds: float = 1800.0, fill: int | None = None
) -> Run:
    """Run `mdmf detect` on a file or folder. Rows go into a file beside it, which is removed.

    fill: the byte, 0 to 254, with which glibc fills new memory, so that pixels which nobody wrote differ between runs.
    """
    output = inputs.with_name(f"{inputs.name}.rows.jsonl")
    command = [sys.executable, "-P", "-m", "mdmf_deploy", "detect", str(inputs), "-o", str(output)]
    command += ["--bundle", "starter", "--runtime", "onnxruntime", "--threads", str(threads), *options]
    environment = os.environ | {"PYTHONPATH": str(checkout)}
    if fill is not None:
        environment["MALLOC_PERTURB_"] = str(255 - fill)
    start = time.perf_counter()
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True, errors="replace")
    with Watch(process.pid, itself=True) as watch:
        try:
            _, messages = process.communicate(timeout=seconds)
            code: int | None = process.returncode
        except subprocess.TimeoutExpired:
            process.kill()
            _, messages = process.communicate()
            code = None
    rows = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()] if output.exists() else []
    output.unlink(missing_ok=True)
    return Run(rows, code, messages.splitlines(), time.perf_counter() - start, watch.peak)


def code_of(row: dict[str, Any]) -> str:
    return row["error_code"] or "ok"


def counted(values: Sequence[str]) -> dict[str, int]:
    """Return how often each value occurs, the most frequent one first."""
    return {
        value: values.count(value) for value in sorted(set(values), key=lambda value: (-values.count(value), value))
    }
