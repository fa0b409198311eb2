"""Run `mdmf detect --engine ray` beside a local run: equal rows, killed workers and drivers, throughput and memory.

    python benchmarks/ray_runs.py equal IMAGES [--bundle starter] [--only folder nodes s3]
    python benchmarks/ray_runs.py kill IMAGES [--times 6] [--seed 0]
    python benchmarks/ray_runs.py throughput IMAGES [--actors 1 2]
    python benchmarks/ray_runs.py memory [IMAGES] [--files 10000 100000]

equal: a folder on one node, a folder on two nodes (two raylets on this machine), and a bucket on a server on loopback.
kill: SIGKILL to a worker in the odd runs and to the driver in the even ones, at random moments, each then finished by
    another run. The seed is printed.
memory: the largest resident sets of the driver and of one worker, over small files that are links to IMAGES.

Needs the extras scale and dev, and Linux.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow.fs
import pyarrow.parquet
from common import HEADINGS, header, number

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / "tests"))
from helpers.resident import descendants, status  # noqa: E402

from mdmf_deploy.detection.rows import COLUMNS, TIMINGS  # noqa: E402
from mdmf_deploy.images.inputs import in_folder  # noqa: E402

BUCKET = "mdmf-images"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("equal", "kill", "throughput", "memory"):
        command = commands.add_parser(name)
        command.add_argument("images", type=Path, nargs="?" if name == "memory" else None)
        command.add_argument("--bundle", default="starter")
        command.add_argument("--runtime", default="onnxruntime")
        if name == "equal":
            command.add_argument("--only", nargs="+", choices=list(PLACES), default=list(PLACES))
        elif name == "kill":
            command.add_argument("--times", type=int, default=6)
            command.add_argument("--seed", type=int, default=0)
        elif name == "throughput":
            command.add_argument("--actors", type=int, nargs="+", default=[1, 2])
        else:
            command.add_argument("--files", type=int, nargs="+", default=[10_000, 100_000])
    arguments = parser.parse_args()
    header("ray", "pyarrow", arguments.runtime)
    if arguments.command == "kill":
        print(f"seed {arguments.seed}\n")
    print(f"| {' | '.join(HEADINGS)} |\n{'|---' * len(HEADINGS)}|", flush=True)
    with tempfile.TemporaryDirectory() as name:
        {"equal": equal, "kill": kill, "throughput": throughput, "memory": memory}[arguments.command](
            arguments, Path(name)
        )


def equal(arguments: argparse.Namespace, scratch: Path) -> None:
    """Compare all rows, times aside."""
    expected, _ = local_rows(arguments, scratch)
    for name in arguments.only:
        with PLACES[name](arguments.images) as (source, options, output):
            where = output or str(scratch / name)
            start = time.perf_counter()
            done = finished(detect(arguments, source, "--engine", "ray", "-o", where, *options))
            seconds = time.perf_counter() - start
            rows = renamed(ray_rows(where), source, arguments.images)
        differ = sum(one != other for one, other in zip(rows, expected, strict=False)) + abs(len(rows) - len(expected))
        show(name, f"{len(rows)} rows in {number(seconds)} s, exit code {done}", "0", f"{differ} differ")


def kill(arguments: argparse.Namespace, scratch: Path) -> None:
    """Kill, run again, and count each input's rows."""
    draw = random.Random(arguments.seed)
    expected, _ = local_rows(arguments, scratch)
    start = time.perf_counter()
    finished(detect(arguments, arguments.images, "--engine", "ray", "-o", scratch / "whole"))
    whole = time.perf_counter() - start
    for turn in range(arguments.times):
        output = scratch / str(turn)
        after = draw.uniform(0.2, 0.95) * whole
        process = detect(arguments, arguments.images, "--engine", "ray", "-o", output)
        victim = "a worker" if turn % 2 else "the driver"
        killed = wait_and_kill(process, after, turn % 2 == 1, draw)
        first = finished(process, any_end=True)
        kept = len(ray_rows(str(output))) if output.exists() else 0
        again = finished(detect(arguments, arguments.images, "--engine", "ray", "-o", output))
        rows = ray_rows(str(output))
        each = Counter((row["input"], row["input_copy"]) for row in rows)
        lost, twice = len(expected) - len(each), sum(count - 1 for count in each.values())
        differ = sum(one != other for one, other in zip(plain(rows), expected, strict=False))
        what = f"{victim} after {number(after)} s{'' if killed else ' (had ended)'}: exit code {first}, {kept} rows"
        show(what, f"then {again}: {len(rows)} rows", "0", f"{lost} lost, {twice} twice, {differ} differ")
        shutil.rmtree(output)


def throughput(arguments: argparse.Namespace, scratch: Path) -> None:
    """Time the whole command, and the work between its first and its last part."""
    rows, seconds = local_rows(arguments, scratch)
    images = len(rows)
    show("local", f"{number(images / seconds)}/s", "", f"{number(1e3 * seconds / images)} ms an image")
    for actors in arguments.actors:
        output = scratch / f"{actors}"
        start = time.perf_counter()
        finished(detect(arguments, arguments.images, "--engine", "ray", "-o", output, "--actors", actors))
        whole = time.perf_counter() - start
        times = sorted(part.stat().st_mtime for part in output.glob("part-*"))
        counts = [pyarrow.parquet.read_metadata(part).num_rows for part in output.glob("part-*")]
        steady = (images - images / len(counts)) / max(1e-9, times[-1] - times[0])
        extra = 1e3 * (1 / steady - seconds / images)
        show(
            f"Ray, {actors} actors",
            f"{number(images / whole)}/s in all, {number(steady)}/s between its parts",
            "",
            f"{number(extra)} ms an image more than local",
        )


def memory(arguments: argparse.Namespace, scratch: Path) -> None:
    """Measure the peak of the driver and of the largest worker."""
    originals = list(in_folder(arguments.images or ROOT / "examples" / "photographs").paths)
    first = (0, 0)
    for count in arguments.files:
        inputs = scratch / f"in-{count}"
        for n in range(count):
            inputs.joinpath(f"{n % 100:02}").mkdir(parents=True, exist_ok=True)
            os.link(shutil.copy2(originals[n % len(originals)], scratch / "one.jpg"), inputs / f"{n % 100:02}/{n}.jpg")
            (scratch / "one.jpg").unlink()
        process = detect(arguments, inputs, "--engine", "ray", "-o", scratch / f"out-{count}")
        peaks = [0, 0]
        while process.poll() is None:
            workers = [status(one, "RssAnon") for one in descendants(process.pid) if title(one).startswith("ray::")]
            peaks = [max(peaks[0], status(process.pid, "VmHWM")), max(peaks[1], *workers, 0)]
            time.sleep(0.2)
        finished(process)
        first = first if first[0] else (peaks[0], peaks[1])
        against = ", ".join(number(peak / max(1, before)) for peak, before in zip(peaks, first, strict=True))
        shown = f"driver {peaks[0] >> 20} MB, largest worker {peaks[1] >> 20} MB"
        show(f"{count} files", shown, "at most 1.1", against)
        shutil.rmtree(inputs)


def show(*cells: str) -> None:
    """Print a row of a table, at once: runs take minutes."""
    print(f"| {' | '.join(cells)} |", flush=True)


def detect(arguments: argparse.Namespace, source: object, *options: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-P", "-m", "mdmf_deploy", "detect", source, "-q"]
    command += ["--bundle", arguments.bundle, "--runtime", arguments.runtime, *options]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen([str(word) for word in command], env=environment, stderr=subprocess.PIPE, text=True)


def finished(process: subprocess.Popen[str], *, any_end: bool = False) -> int:
    """Wait for a run. Return its exit code, which must be 0 or 3 unless any is fine."""
    _, messages = process.communicate()
    if process.returncode not in (0, 3) and not any_end:
        sys.exit(f"exit code {process.returncode}:\n{messages}")
    return process.returncode


def wait_and_kill(process: subprocess.Popen[str], after: float, worker: bool, draw: random.Random) -> bool:
    """Kill the process, or one of its workers, after some seconds or as soon as there is one."""
    end = time.monotonic() + after
    while process.poll() is None:
        time.sleep(0.05)
        if time.monotonic() < end:
            continue
        if not worker:
            process.kill()
            return True
        at_work = [one for one in descendants(process.pid) if title(one).startswith("ray::Map")]
        if at_work:
            os.kill(draw.choice(at_work), signal.SIGKILL)
            return True
    return False


def title(process: int) -> str:
    try:
        return Path(f"/proc/{process}/cmdline").read_text(errors="replace")
    except OSError:
        return ""


def local_rows(arguments: argparse.Namespace, scratch: Path) -> tuple[list[dict[str, Any]], float]:
    """Return the rows of a local run, sorted, and its seconds."""
    output = scratch / "local.jsonl"
    start = time.perf_counter()
    finished(detect(arguments, arguments.images, "-o", output))
    seconds = time.perf_counter() - start
    return plain([json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]), seconds


def ray_rows(output: str) -> list[dict[str, Any]]:
    filesystem, path = pyarrow.fs.FileSystem.from_uri(output) if "://" in output else (None, output)
    rows: list[dict[str, Any]] = pyarrow.parquet.read_table(path, filesystem=filesystem).to_pylist()
    return rows


def plain(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the columns of a row without times, sorted by uri."""
    names = [name for name in COLUMNS if name not in TIMINGS]
    return sorted(({name: row[name] for name in names} for row in rows), key=lambda row: row["uri"])


def renamed(rows: list[dict[str, Any]], source: object, images: Path) -> list[dict[str, Any]]:
    """Return the rows under the names that a local run gives."""
    remote = str(source).partition("?")[0].replace("key:secret@", "")
    rows = plain(rows)
    for row in rows:
        for name in ("uri", "error"):
            if row[name] is not None and remote != str(images):
                row[name] = row[name].replace(remote, images.as_posix())
    return rows


Place = tuple[object, list[str], str | None]


@contextmanager
def in_a_folder(images: Path) -> Iterator[Place]:
    yield images, [], None


@contextmanager
def on_two_nodes(images: Path) -> Iterator[Place]:
    """Two raylets on this machine, one processor each, so that neither can do all of the work."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    os.environ["PYTHONPATH"] = str(ROOT)
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        cluster.add_node(num_cpus=1)
        cluster.wait_for_nodes()
        yield images, ["--address", cluster.address], None
    finally:
        cluster.shutdown()


@contextmanager
def in_a_bucket(images: Path) -> Iterator[Place]:
    """A bucket with the images, on a server that ends with the block. The parts go into it, too."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        while True:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.2)
        options = f"?endpoint_override=127.0.0.1:{port}&scheme=http&region=us-east-1&allow_bucket_creation=true"
        store, _ = pyarrow.fs.FileSystem.from_uri(f"s3://key:secret@{BUCKET}/{options}")
        store.create_dir(BUCKET)
        local = pyarrow.fs.LocalFileSystem()
        pyarrow.fs.copy_files(
            str(images), f"{BUCKET}/in", source_filesystem=local, destination_filesystem=store, use_threads=True
        )
        root = f"s3://key:secret@{BUCKET}"
        os.environ["AWS_EC2_METADATA_DISABLED"] = "true"
        yield f"{root}/in{options}", [], f"{root}/out{options}"
    finally:
        server.terminate()
        server.wait()


PLACES = {"folder": in_a_folder, "nodes": on_two_nodes, "s3": in_a_bucket}

if __name__ == "__main__":
    main()
