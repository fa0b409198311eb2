"""A program that decodes files one after the other and prints what each cost, as a line of JSON a file.

    PYTHONPATH=CHECKOUT:tests python -P decoding_child.py MEMORY SECONDS THREADS FILE...

MEMORY, SECONDS: bytes of address space and seconds of a core that the process may have. THREADS: files decoded at a
time. The central crops are decoded, as `mdmf detect` does. Seconds of a core and peak memory, in bytes, are those of
this process and its children together, over all files that are decoded at a time. The peak is None where the system
has no /proc.
The program runs with any checkout in PYTHONPATH.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from helpers.resident import Watch, cpu_time, descendants, status

from mdmf_deploy.errors import ImageError
from mdmf_deploy.images.crops import boxes
from mdmf_deploy.images.decode import decode_boxes, read


def decoded(path: str) -> dict[str, object]:
    """Decode a file and return its code, notes and seconds. The pixels are gone when it returns."""
    start = time.perf_counter()
    try:
        found = decode_boxes(read(path), partial(boxes, size=224))
        code, notes = "ok", getattr(found, "notes", ())
    except ImageError as error:
        code, notes = error.code, ()
    except BaseException as error:
        code, notes = f"raised {type(error).__name__}", ()
    return {"path": path, "code": code, "notes": notes, "seconds": time.perf_counter() - start}


def cpu_seconds() -> float:
    """Return the seconds of a core that this process and its children took, those that have ended included."""
    times = os.times()
    return sum(times[:4]) + sum(cpu_time(child) for child in descendants(os.getpid()))


def main() -> None:
    (memory, seconds, threads), paths = map(int, sys.argv[1:4]), sys.argv[4:]
    measured = sys.platform == "linux"
    if measured:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 5))
    for at in range(0, len(paths), threads):
        gc.collect()
        if measured:
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # VmHWM starts again from now on
        before = cpu_seconds()
        with Watch(os.getpid(), itself=False) as children, ThreadPoolExecutor(threads) as pool:
            rows = list(pool.map(decoded, paths[at : at + threads]))
        peak = status("self", "VmHWM") + children.peak if measured else None
        cpu = cpu_seconds() - before
        for row in rows:
            print(json.dumps(row | {"cpu": cpu, "peak": peak}), flush=True)


if __name__ == "__main__":
    main()
