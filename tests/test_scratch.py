"""Scratch files: nobody can guess their names, the living are left alone, and the dead are removed."""

from __future__ import annotations

import errno
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from mdmf_deploy.files import atomic_file, atomic_folder, only_writer, write_to_cache
from mdmf_deploy.scratch import SCRATCH, remove_strays, scratch_file, scratch_folder

pytest.importorskip("fcntl", reason="no such locks on Windows")

Make = Callable[[Path], AbstractContextManager[Path]]
each = pytest.mark.parametrize("make", [scratch_file, scratch_folder])

# Dies like a process that is killed, and leaves what it has begun.
DIE = """
import os, sys
from pathlib import Path
from mdmf_deploy import scratch
with getattr(scratch, sys.argv[1])(Path(sys.argv[2])) as path:
    (path / "rows" if path.is_dir() else path).write_text("rows")
    os._exit(9)
"""

# Two such processes have one id, as in two containers.
FILL = """
import os, sys
from pathlib import Path
os.getpid = lambda: 1
from mdmf_deploy.files import atomic_folder, write_to_cache
folder, text = Path(sys.argv[1]), sys.argv[2] * 20_000
print("ready", flush=True)
sys.stdin.readline()
for _ in range(20):
    write_to_cache(folder / "plan", text.encode())
    with atomic_folder(folder / "bundle") as scratch:
        (scratch / "one").write_text(text)
        (scratch / "two").write_text(text)
"""


def leave_a_stray(make: Make, path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", DIE, make.__name__, str(path)], check=False)
    assert done.returncode == 9


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@each
def test_a_scratch_file_lies_beside_its_output_and_goes_away(make: Make, tmp_path: Path) -> None:
    with make(tmp_path / "rows.jsonl") as scratch, make(tmp_path / "rows.jsonl") as other:
        assert scratch.exists()
        assert scratch != other
        assert scratch.parent == tmp_path
        assert scratch.name.startswith(".rows.jsonl.")
        assert scratch.name.endswith(SCRATCH)
    assert not names(tmp_path)


@each
def test_the_dead_s_are_removed_and_the_living_s_are_not(
    make: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    leave_a_stray(make, tmp_path / "rows.jsonl")
    [stray] = names(tmp_path)
    with make(tmp_path / "rows.jsonl") as alive, caplog.at_level(logging.INFO, "mdmf_deploy"):
        remove_strays(tmp_path, "rows.jsonl")
        assert names(tmp_path) == [alive.name]
        remove_strays(tmp_path, "rows.jsonl")
    assert caplog.messages == [f"{tmp_path}: removed {stray}, left by a run that was killed"]


@each
def test_only_the_output_s_own_strays_are_removed(make: Make, tmp_path: Path) -> None:
    for name in ("rows.jsonl", "other.jsonl", "x.rows.jsonl"):
        leave_a_stray(make, tmp_path / name)
    (tmp_path / ".rows.jsonl.mine.mdmf-tmp").touch()
    (tmp_path / ".rows.jsonl.0123456789abcdef.mdmf-tmp").symlink_to(tmp_path)
    remove_strays(tmp_path, "rows.jsonl")
    assert len(names(tmp_path)) == 4
    remove_strays(tmp_path)
    assert names(tmp_path) == [".rows.jsonl.0123456789abcdef.mdmf-tmp", ".rows.jsonl.mine.mdmf-tmp"]


def test_every_writer_removes_the_strays_of_its_output(tmp_path: Path) -> None:
    for make in (scratch_file, scratch_folder):
        leave_a_stray(make, tmp_path / "bundle")
    with atomic_folder(tmp_path / "bundle"):
        pass
    assert names(tmp_path) == ["bundle"]
    leave_a_stray(scratch_file, tmp_path / "plan")
    write_to_cache(tmp_path / "plan", b"plan")
    assert names(tmp_path) == ["bundle", "plan"]
    leave_a_stray(scratch_file, tmp_path / "plan")
    with only_writer(tmp_path / "plan"):
        pass
    assert names(tmp_path) == ["bundle", "plan"]


@each
def test_a_planted_link_is_not_followed(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even where the name could be guessed."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "precious").write_text("precious")
    guessed = bytes(8)
    for name, target in (("a", "elsewhere/precious"), ("b", "elsewhere"), ("c", "elsewhere/missing")):
        (tmp_path / f".{name}.{guessed.hex()}{SCRATCH}").symlink_to(tmp_path / target)
        drawn = iter([guessed, b"another!"])
        monkeypatch.setattr(os, "urandom", lambda size: next(drawn))  # noqa: B023
        with make(tmp_path / name) as scratch:
            assert scratch.name == f".{name}.{b'another!'.hex()}{SCRATCH}"
    assert names(tmp_path / "elsewhere") == ["precious"]
    assert (tmp_path / "elsewhere" / "precious").read_text() == "precious"


@each
def test_a_scratch_file_taken_for_a_stray_before_it_is_locked_is_made_again(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fcntl = pytest.importorskip("fcntl")
    flock, calls = fcntl.flock, []

    def late(descriptor: int, operation: int) -> None:
        calls.append(descriptor)
        if len(calls) == 1:
            remove_strays(tmp_path)
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    with make(tmp_path / "rows.jsonl") as scratch:
        assert len(calls) == 3
        assert names(tmp_path) == [scratch.name]


@each
def test_without_locks_everything_counts_as_alive(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    leave_a_stray(make, tmp_path / "rows.jsonl")
    monkeypatch.setattr("fcntl.flock", refuse)
    with make(tmp_path / "rows.jsonl"):
        remove_strays(tmp_path)
        assert len(names(tmp_path)) == 2
    assert len(names(tmp_path)) == 1


def test_two_processes_of_one_id_write_the_same_outputs(tmp_path: Path) -> None:
    command = [sys.executable, "-c", FILL, str(tmp_path)]
    pipe = subprocess.PIPE
    writers = [subprocess.Popen([*command, text], stdin=pipe, stdout=pipe, text=True) for text in "ab"]
    for writer in writers:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
    for writer in writers:
        writer.communicate("go\n", timeout=60)
    assert [writer.returncode for writer in writers] == [0, 0]
    assert names(tmp_path) == ["bundle", "plan"]
    assert set((tmp_path / "plan").read_text()) in ({"a"}, {"b"})
    assert len({(tmp_path / "bundle" / name).read_text() for name in ("one", "two")}) == 1


@pytest.mark.parametrize("durable", [True, False])
def test_an_error_of_the_system_names_the_file(tmp_path: Path, durable: bool) -> None:
    with pytest.raises(OSError, match="No such file") as failed, atomic_file(tmp_path / "no" / "plan", durable=durable):
        pass
    assert failed.value.filename == str(tmp_path / "no" / "plan")
    with (
        pytest.raises(OSError, match="File too large") as failed,
        atomic_file(tmp_path / "plan", durable=durable) as scratch,
        scratch.open("wb"),
    ):
        raise OSError(errno.EFBIG, "File too large")
    assert failed.value.filename == str(tmp_path / "plan")
    with (
        pytest.raises(OSError, match="Not a dir") as failed,
        atomic_file(tmp_path / "plan", durable=durable) as scratch,
    ):
        (scratch / "part").write_bytes(b"")
    assert failed.value.filename == str(tmp_path / "plan" / "part")
    assert not names(tmp_path)
