"""A script for a fresh process, which measures the time to a first row and the memory that many rows take.

It prints two JSON objects, one per line: the first with the first row, the second when all rows are done.
It is a file of its own because anything it imports would be missing from the time of the import that it measures.
"""

from __future__ import annotations

import json
import sys
import time
from itertools import cycle, islice


def main(bundle: str, runtime: str, threads: int | None, batch_size: int, paths: list[str], count: int) -> None:
    """Score `count` images, taken from `paths` in turn."""
    start = time.perf_counter()
    from mdmf_deploy.detection.detector import Detector

    imported = time.perf_counter()
    with Detector(bundle, runtime, threads, batch_size=batch_size) as detector:
        opened = time.perf_counter()
        detector.detect(paths[0])
        done = time.perf_counter()
        times = {"importing": imported - start, "opening": opened - imported, "first_row": done - opened}
        print(json.dumps(times), flush=True)
        for _ in detector.stream(islice(cycle(paths), 1, count)):
            pass
    print(json.dumps({"peak_kib": peak_kib()}), flush=True)


def peak_kib() -> int | None:
    """Return the most memory that this process has held resident, in KiB, or None where the system does not say."""
    try:
        with open("/proc/self/status") as status:  # noqa: PTH123 (import nothing that detection does not)
            lines = [line.split() for line in status]
        # ru_maxrss would not do: Linux counts into it the memory of the process that started this one.
        return next(int(fields[1]) for fields in lines if fields and fields[0] == "VmHWM:")
    except (OSError, StopIteration, ValueError):
        pass
    try:
        import resource
    except ImportError:
        return None
    # macOS reports bytes.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // (1024 if sys.platform == "darwin" else 1)


if __name__ == "__main__":
    main(**json.loads(sys.stdin.read()))
