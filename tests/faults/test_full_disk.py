"""A disk that is really full, and one that can only be read."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from helpers.faulty import Server
from helpers.jobs import Job


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """mount("size=64k") is a small disk. Skips where this process may not mount one."""
    mounted: list[Path] = []

    def made(options: str) -> Path:
        if not sys.platform.startswith("linux") or os.geteuid() != 0:
            pytest.skip("only root may mount a small disk, on Linux")
        folder = tmp_path / f"disk{len(mounted)}"
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
        if subprocess.run(command, capture_output=True, check=False).returncode:
            pytest.skip("this machine mounts no small disk, as in a container without the right to")
        mounted.append(folder)
        return folder

    yield made
    for folder in mounted:
        subprocess.run(["umount", str(folder)], check=True)


def on(disk: Path, command: Job) -> Job:
    """Return the command with its output on that disk, and no older one there."""
    output = disk / command.output.name
    arguments = tuple(output if argument == command.output else argument for argument in command.arguments)
    return replace(command, folder=disk, output=output, arguments=arguments, older=None)


@pytest.mark.parametrize(
    ("name", "size"), [("detect jsonl", "8k"), ("detect parquet", "8k"), ("detect --resume jsonl", "12k")]
)
def test_a_full_disk_is_told_with_the_name_of_the_file(
    name: str, size: str, job: Callable[[str], Job], server: Server, mount: Callable[..., Path]
) -> None:
    disk = mount(f"size={size}")
    command = on(disk, job(name))
    ending = server.run(*command.arguments)
    assert ending.code == 2, str(ending)
    last = ending.err.splitlines()[-1]
    assert f"{command.output}: No space left on device" in last, str(ending)
    assert "Traceback" not in ending.err
    command.tidy(ending, ending)
    subprocess.run(["mount", "-o", "remount,size=1m", str(disk)], check=True)
    for file in disk.glob("rows.partial*"):
        file.unlink()
    command.finish(server, ending)


def test_a_bundle_on_a_full_disk_stays_as_it_is(
    job: Callable[[str], Job], server: Server, mount: Callable[..., Path], tiny_bundle: Path
) -> None:
    size = sum(file.stat().st_size for file in tiny_bundle.iterdir())
    disk = mount(f"size={(size >> 10) + 40}k")
    command = on(disk, job("calibrate"))
    subprocess.run(["cp", "-r", str(tiny_bundle), str(command.output)], check=True)
    command = replace(command, older=tiny_bundle)
    with (disk / "fills it").open("wb") as file:
        file.write(bytes(os.statvfs(disk).f_bavail * os.statvfs(disk).f_bsize))
    ending = server.run(*command.arguments)
    assert ending.code == 2, str(ending)
    assert f"{command.output}: No space left on device" in ending.err.splitlines()[-1], str(ending)
    assert command.untouched()
    command.tidy(ending, ending)


@pytest.mark.parametrize("name", ["detect jsonl", "detect --resume jsonl", "detect --resume parquet", "calibrate"])
def test_a_folder_that_can_only_be_read_is_refused(
    name: str, job: Callable[[str], Job], server: Server, mount: Callable[..., Path], tiny_bundle: Path
) -> None:
    disk = mount("size=16m")
    command = on(disk, job(name))
    if name == "calibrate":
        subprocess.run(["cp", "-r", str(tiny_bundle), str(command.output)], check=True)
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    ending = server.run(*command.arguments)
    assert ending.code == 2, str(ending)
    last = ending.err.splitlines()[-1]
    assert str(command.output) in last, str(ending)
    assert "Read-only file system" in last or "cannot be written to" in last, str(ending)
    assert "Traceback" not in ending.err
