"""Run as a script in a fresh process: what it costs to get to a first row, and the memory all rows take.

Its first line on stdout comes with the first row, its second when all are done; each is a JSON object.
"""

from __future__ import annotations

import json
import sys
import time
from itertools import cycle, islice


def main(bundle: str, runtime: str, threads: int | None, batch_size: int, paths: list[str], count: int) -> None:
    """Score `count` images, of these paths by turns."""
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
    """The most that this process has held resident, in KiB; None where the system does not say."""
    try:
        with open("/proc/self/status") as status:  # noqa: PTH123 (nothing is imported that detection does without)
            lines = [line.split() for line in status]
        # Not ru_maxrss: Linux counts into it what the process that started this one held.
        return next(int(fields[1]) for fields in lines if fields and fields[0] == "VmHWM:")
    except (OSError, StopIteration, ValueError):
        pass
    try:
        import resource
    except ImportError:
        return None
    # macOS says it in bytes.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // (1024 if sys.platform == "darwin" else 1)


if __name__ == "__main__":
    main(**json.loads(sys.stdin.read()))
