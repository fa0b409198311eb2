"""Measure what a video costs: seeking to its frames against decoding all, and the whole of `mdmf detect`.

    python benchmarks/video.py [CLIPS...] [--seconds 120] [--frames 10 100]

Without CLIPS, OpenCV writes an MPEG-4 of 1920 x 1080 pixels, 25 frames a second. It comes twice: as written, with a key
frame every 12 frames, and with an index that names only every 20th of them, so that seeking has to decode 240 frames,
as in videos from the web. Sampling runs in a process of its own, whose peak is the largest resident set that the system
counted, OpenCV's own 60 MB included. "Seek from" is the number of frames between samples from which on
mdmf_deploy.images.video seeks.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from common import header, number, table

from mdmf_deploy.images.magic import video_format

WIDTH, HEIGHT, RATE = 1920, 1080, 25
SPARSE = 20
_SAMPLE = """
import sys, time
from mdmf_deploy.images import video
from mdmf_deploy.images.limits import ReadLimits
path, format, frames, gap, threads = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:])
video.SEEK_GAP, video.DECODER_THREADS = gap, threads
video.opencv()
start = time.perf_counter()
found = video.sample(path, format, video.VideoPlan(frames, 224, 5), ReadLimits(max_seconds=600))
print(time.perf_counter() - start, len(found.times))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clips", nargs="*", type=Path)
    parser.add_argument("--seconds", type=int, default=120)
    parser.add_argument("--frames", type=int, nargs="+", default=[10, 100])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    arguments = parser.parse_args()
    header("opencv-python-headless")
    with tempfile.TemporaryDirectory() as folder:
        clips = arguments.clips or write_clips(Path(folder), arguments.seconds)
        rows = []
        for clip in clips:
            for frames in arguments.frames:
                for threads in arguments.threads:
                    for name, gap in (("seek", 0), ("decode all", 1 << 40)):
                        seconds, peak = sample(clip, frames, gap, threads)
                        what = f"{clip.name}, {frames} frames, {name}, threads {threads}"
                        rows.append((what, f"{seconds:.2f} s, {peak:.0f} MB"))
                seconds, peak = detect(clip, frames)
                rows.append((f"{clip.name}, {frames} frames, `mdmf detect`", f"{seconds:.2f} s, {peak:.0f} MB"))
        print(table(rows, ("clip", "time, peak memory")))
        print(f"\n{', '.join(f'{clip.name}: {number(clip.stat().st_size / 1e6)} MB' for clip in clips)}")


def write_clips(folder: Path, seconds: int) -> list[Path]:
    """Write the clip, and the same one with fewer key frames in its index."""
    import cv2

    rng = np.random.default_rng(0)
    texture = rng.integers(0, 256, (HEIGHT // 4 + 32, WIDTH // 4 + 32, 3), dtype=np.uint8)
    texture = cv2.resize(texture, (WIDTH + 128, HEIGHT + 128), interpolation=cv2.INTER_CUBIC)
    dense, sparse = folder / "dense.mp4", folder / "sparse.mp4"
    writer = cv2.VideoWriter(str(dense), cv2.CAP_FFMPEG, cv2.VideoWriter.fourcc(*"mp4v"), RATE, (WIDTH, HEIGHT))
    for n in range(seconds * RATE):
        top, left = n % 128, (2 * n) % 128
        writer.write(np.ascontiguousarray(texture[top : top + HEIGHT, left : left + WIDTH]))
    writer.release()
    shutil.copyfile(dense, sparse)
    leave_few_key_frames(sparse)
    return [dense, sparse]


def leave_few_key_frames(clip: Path) -> None:
    """Keep every 20th entry of an MP4's sync sample table (ISO/IEC 14496-12, section 8.6.2), which is at its end.

    Only the end is read: the peak of a process that starts counts what the one that started it held.
    """
    with clip.open("r+b") as file:
        file.seek(-(1 << 20), os.SEEK_END)
        start = file.tell()
        data = file.read()
        at = data.rindex(b"stss") + 8
        count = int.from_bytes(data[at : at + 4], "big")
        entries = [data[at + 4 + 4 * n : at + 8 + 4 * n] for n in range(0, count, SPARSE)]
        kept = len(entries).to_bytes(4, "big") + b"".join(entries)
        file.seek(start + at)
        file.write(kept.ljust(4 + 4 * count, b"\0"))


def sample(clip: Path, frames: int, gap: int, threads: int) -> tuple[float, float]:
    """Return seconds and megabytes of a process that samples a clip."""
    with clip.open("rb") as file:
        format = video_format(file.read(64)) or ""
    command = [sys.executable, "-c", _SAMPLE, str(clip.resolve()), format, str(frames), str(gap), str(threads)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    printed = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status or int(printed.split()[1]) != frames:
        sys.exit(f"{clip}: sampling failed: {printed}")
    process.returncode = 0
    return float(printed.split()[0]), megabytes(usage.ru_maxrss)


def detect(clip: Path, frames: int) -> tuple[float, float]:
    """Return seconds, and the megabytes of the larger of the process and its child that decodes."""
    command = [sys.executable, "-m", "mdmf_deploy", "detect", str(clip), "--frames", str(frames), "-q"]
    command += ["--runtime", "onnxruntime", "--bundle", "starter", "--crops", "5", "--json"]
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{' '.join(command)} exited with {process.returncode}")
    return time.perf_counter() - start, megabytes(usage.ru_maxrss)


def megabytes(maxrss: int) -> float:
    return maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6


if __name__ == "__main__":
    main()
