"""Kill processes that replace a folder again and again, and count in what states the folder is found.

Usage: python killed_writers.py FOLDER exchange|renames KILLS SEED. Prints the counts as JSON. A process of its own,
because it forks: starting Python for every kill would take most of the time.
"""

from __future__ import annotations

import ctypes
import json
import os
import random
import signal
import sys
import time
from collections import Counter
from itertools import count
from pathlib import Path

from mdmf_deploy import files

_FILES = 5


def write(folder: Path, text: str) -> None:
    """Replace the folder by files that all hold this text."""
    with files.atomic_folder(folder) as scratch:
        for name in range(_FILES):
            (scratch / str(name)).write_text(text)


def state(folder: Path) -> str:
    if not folder.exists():
        return "absent"
    texts = [path.read_text() for path in folder.iterdir()]
    return "whole" if len(texts) == _FILES and len(set(texts)) == 1 else "torn"


def kill_one(folder: Path, seconds: float) -> int:
    """Kill a writer after a while. Return how often the folder had no name meanwhile."""
    child = os.fork()
    if child == 0:
        try:
            for n in count():
                write(folder, str(n))
        finally:
            os._exit(1)
    missing, end = 0, time.perf_counter() + seconds
    while time.perf_counter() < end:
        missing += not folder.exists()
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return missing


def give_up(folder: Path) -> None:
    """Begin to write, and fail."""
    try:
        with files.atomic_folder(folder):
            raise KeyboardInterrupt
    except KeyboardInterrupt:
        pass


def main(folder: Path, how: str, kills: int, seed: int) -> None:
    os.getpid = lambda: 1  # as in a container
    os.fsync = lambda fd: None  # a killed process loses nothing that it has written
    if how == "renames":
        ctypes.CDLL = lambda name, **options: object()  # type: ignore[assignment, misc]
    moments, seen = random.Random(seed), Counter[str]()
    write(folder, "first")
    for _ in range(kills):
        seen["missing"] += kill_one(folder, moments.uniform(0, 0.02))
        seen[state(folder)] += 1
        give_up(folder)
        seen[f"{state(folder)} after the next run"] += 1
        seen["left behind"] += len(list(folder.parent.iterdir())) - 1
    print(json.dumps(seen))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
