"""What is to do: new and changed inputs, in order, each with the state of its file just before it is read."""

from __future__ import annotations

import os
import tracemalloc
from collections.abc import Sequence
from pathlib import Path

import pytest

from mdmf_deploy.detection.outputs.done import Done, Held, InputKey
from mdmf_deploy.detection.outputs.todo import Todo
from mdmf_deploy.files import file_sha256


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / f"{n}.jpg" for n in range(5)]
    for n, path in enumerate(paths):
        path.write_bytes(b"%d" % n)
        os.utime(path, ns=(0, 10**9))
    return paths


def held(paths: Sequence[Path], error_code: str | None = None) -> Done:
    return Done(Held(InputKey.of(path), file_sha256(path), error_code) for path in paths)


def test_new_and_changed_inputs_are_to_do_in_order(files: list[Path]) -> None:
    done = held([files[1], files[3], files[4]])
    files[3].write_bytes(b"longer")
    todo = Todo(files, [done])
    assert (len(todo), todo.already, todo.new) == (3, 2, 2)
    assert todo.changed == [(files[3].as_posix(), 0)]
    assert list(todo.paths()) == [files[0], files[2], files[3]]


def test_a_key_is_the_state_just_before_reading(files: list[Path]) -> None:
    todo = Todo(files, [Done()])
    paths, taken = todo.paths(), todo.taken()
    for path in files[:3]:
        path.write_bytes(b"written before it is read")
        assert next(paths) == path
        before = InputKey.of(path)
        path.write_bytes(b"written after that")
        assert next(taken) == (path, before)


def test_hashes_decide_if_asked(files: list[Path]) -> None:
    done = held(files)
    os.utime(files[0], ns=(0, 2 * 10**9))  # another time, the same content
    files[1].write_bytes(b"x")  # another content, the same size and time
    os.utime(files[1], ns=(0, 10**9))
    files[2].unlink()
    assert list(Todo(files, [done]).paths()) == [files[0], files[2]]
    assert list(Todo(files, [done], verify=True).paths()) == [files[1], files[2]]


def test_a_path_given_twice_is_two_inputs(files: list[Path]) -> None:
    given = [files[0], files[1], files[0], files[0]]
    todo = Todo(given, [held(files[:1])])
    assert (todo.already, todo.new, todo.changed) == (1, 3, [])
    assert list(todo.paths()) == given[1:]
    taken = todo.taken()
    assert [next(taken)[1].copy for _ in range(3)] == [0, 1, 2]


def test_an_input_is_done_if_every_output_holds_it(files: list[Path]) -> None:
    todo = Todo(files, [held(files[:3]), held(files[2:4])])
    assert (todo.already, todo.new) == (1, 1)
    assert todo.changed == [(files[n].as_posix(), 0) for n in (0, 1, 3)]


def test_errors_that_may_pass_are_tried_again(files: list[Path]) -> None:
    assert len(Todo(files, [held(files, "unreadable")]).changed) == 5
    assert not Todo(files, [held(files, "truncated")]).changed


def test_it_takes_few_bytes_an_input(tmp_path: Path) -> None:
    paths = [tmp_path / str(n) for n in range(4000)]
    done = Done(Held(InputKey.of(path)) for path in paths)  # the paths also keep their texts from now on
    tracemalloc.start()
    todo = Todo(paths, [done])
    kept, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert todo.already == len(paths)
    assert kept < 20 * len(paths)
    assert most < 100 * len(paths)
