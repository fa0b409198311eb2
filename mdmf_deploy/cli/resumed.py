"""The work of `mdmf detect`: all inputs, or with --resume those that an output does not hold."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from mdmf_deploy.cli.console import log, progress
from mdmf_deploy.errors import RuntimeUnavailable, UsageError, install

if TYPE_CHECKING:
    from mdmf_deploy.detection.detector import Detector
    from mdmf_deploy.detection.outputs.done import InputKey
    from mdmf_deploy.detection.outputs.resumable import Resumable
    from mdmf_deploy.detection.outputs.signatures import SignatureKeeper
    from mdmf_deploy.detection.rows import Row
    from mdmf_deploy.detection.settings import RunSettings


def check_options(output: Path | None, resume: bool, verify: bool, fsync: bool) -> None:
    """Raise UsageError for options that contradict each other, or an output that no run can add to."""
    for name, given in (("--verify", verify), ("--fsync", fsync)):
        if given and not resume:
            raise UsageError(f"{name} is for runs that add to an output; give --resume as well, or leave it out")
    if not resume:
        return
    if output is None:
        raise UsageError("--resume goes on with an output; name it, such as -o rows.jsonl")
    from mdmf_deploy.detection.outputs.resumable import check_resumable

    check_resumable(output)
    if fsync and output.suffix.lower() == ".parquet":
        raise UsageError(f"-o {output}: --fsync is for .jsonl and .csv; parts are flushed to the disk when written")


@dataclass(frozen=True, slots=True)
class Job:
    """What a run reads, and what becomes of its rows.

    paths: the inputs.
    taken: each of them again, with its key if `write` needs one. Ask for it once its rows have come.
    write: takes the rows of an input.
    """

    paths: Iterable[Path]
    count: int
    taken: Iterable[tuple[Path, InputKey | None]]
    write: Callable[[InputKey | None, Sequence[Row]], None]


def job_of(paths: Sequence[Path], write: Callable[[Row], None]) -> Job:
    """Return the job of doing all inputs."""

    def write_all(key: InputKey | None, rows: Sequence[Row]) -> None:
        for row in rows:
            write(row)

    return Job(paths, len(paths), ((path, None) for path in paths), write_all)


def job_that_keeps(paths: Sequence[Path], write: Callable[[Row], None], keeper: SignatureKeeper) -> Job:
    """Return the job of doing all inputs and keeping their signatures, in a folder that has none yet."""
    from mdmf_deploy.detection.outputs.todo import Todo

    todo = Todo(paths, [keeper.done])

    def write_all(key: InputKey | None, rows: Sequence[Row]) -> None:
        assert key is not None
        for row in rows:
            write(row)
        keeper.add(key)

    return Job(todo.paths(), len(todo), todo.taken(), write_all)


def keeping(
    folder: str, type: Literal["fp32", "fp16"], detector: Detector, each_frame: bool, resume: bool
) -> SignatureKeeper:
    """Open a folder for signatures, a path or a URL. Raises RuntimeUnavailable without pyarrow."""
    try:
        from mdmf_deploy.detection.outputs.signatures import Extractor, SignatureKeeper
        from mdmf_deploy.tasks.scale.locations import whole_uri, without_secrets
    except ModuleNotFoundError as error:
        raise RuntimeUnavailable(f"--keep-signatures needs {error.name}; run: {install('parquet')}") from error
    extractor = Extractor.of(detector.bundle, detector.runtime, type)
    uri = whole_uri(folder)[1]
    with without_secrets([uri]):
        return SignatureKeeper(uri, detector.settings(each_frame), extractor, resume=resume)


@contextmanager
def going_on(output: Path, settings: RunSettings, every_row: bool) -> Iterator[Resumable]:
    """Open an output that later runs can add to. An error or an interrupt says how to go on."""
    from mdmf_deploy.detection.outputs.resumable import open_resumable

    opened = open_resumable(output, settings, every_row=every_row)
    try:
        with opened:
            yield opened
    except BaseException as error:
        error.add_note(f"finished rows are in {output}; the same command goes on there")
        raise


def begin(
    output: Path, opened: Resumable, paths: Sequence[Path], verify: bool, keeper: SignatureKeeper | None = None
) -> Job:
    """Return what is to do, say so, and remove the rows and the signatures that are superseded."""
    from mdmf_deploy.detection.outputs.todo import Todo

    held = len(opened.done)
    with progress(paths, "comparing", len(paths)) as watched:
        outputs = [opened.done] if keeper is None else [opened.done, keeper.done]
        todo = Todo(paths, outputs, verify=verify, watch=watched)
    if not len(todo):
        log(f"nothing to do: {_count(todo.already)} are in {output}")
    elif held:
        again = f", {len(todo.changed)} changed or could not be read and are done again" if todo.changed else ""
        log(f"{output} has {todo.already} of {_count(len(paths))}{again}; {todo.new} are new")
    others = held - todo.already - len(todo.changed)
    if others:
        log(f"{output} keeps the rows of {_count(others)} that are not given now")
    opened.drop(todo.changed)
    if keeper is not None:
        keeper.drop(todo.changed)

    def write(key: InputKey | None, rows: Sequence[Row]) -> None:
        assert key is not None
        opened.write(key, rows)
        if keeper is not None:
            keeper.add(key)

    return Job(todo.paths(), len(todo), todo.taken(), write)


def _count(inputs: int) -> str:
    return f"{inputs} input{'s' * (inputs != 1)}"
