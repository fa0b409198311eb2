"""A connection to Ray: a cluster of this machine's own, which ends with the run, or one that is running already.

Ray reports its use to its makers, starts a dashboard and writes a token into the home, unless it is told not to. Here
it does none of these.
"""

from __future__ import annotations

import io
import logging
import os
import re
import secrets
import shutil
import signal
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from types import FrameType
from typing import Any

from mdmf_deploy import errors
from mdmf_deploy.errors import EngineError, MdmfError, RuntimeUnavailable, UsageError, install
from mdmf_deploy.hardware.host import cores, look_at_machine
from mdmf_deploy.interrupts import SIGNALS, Interrupted, held_back
from mdmf_deploy.scratch import lock
from mdmf_deploy.text import one_line

_LOG = logging.getLogger(__name__)

_STORE_PER_CORE, _LEAST_STORE, _MOST_STORE = 256 * 2**20, 512 * 2**20, 8 * 2**30
"""Bytes of shared memory for the blocks that wait between the stages. A core works on two or three of 32 MB at most."""

_PREFIX = "mdmf-ray-"
_YOUNG = 60.0  # seconds in which a folder may be made and not yet locked
_MOST_TEXT = 300
_SHARED = Path("/dev/shm")
# Its sockets lie 60 characters below its folder, and the name of a socket has at most 107.
_LONGEST_FOLDER = 40


class Complaints(logging.Handler):
    """What Ray Data says goes to the package's log, as details. Its last error is kept.

    last: its whole text, or None.
    """

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.last: str | None = None

    def emit(self, record: logging.LogRecord) -> None:
        _LOG.debug("Ray Data: %s", record.getMessage())
        if record.exc_info and record.exc_info[1] is not None:
            self.last = f"{type(record.exc_info[1]).__name__}: {record.exc_info[1]}"


class _Said(io.TextIOBase):
    """What Ray prints on standard output, such as the death of a worker, goes to the log as details."""

    def write(self, text: str, /) -> int:
        for line in text.splitlines():
            if line.strip():
                _LOG.debug("Ray: %s", line)
        return len(text)


def error_in(text: str) -> MdmfError | None:
    """Return the error of this package in the text of a worker's traceback, or None."""
    own = re.search(r"^mdmf_deploy\.errors\.(\w+): (.+)$", text, re.MULTILINE)
    return None if own is None else getattr(errors, own[1], EngineError)(own[2])


def gist(text: str) -> str:
    """Return the line of a traceback that names its error, or else its first line."""
    named = re.findall(r"^(?:[\w.]+\.)?(\w*(?:Error|Exception)\b.*)$", text, re.MULTILINE)
    lines = named or text.splitlines() or [""]
    return one_line(lines[-1] if named else lines[0])[:_MOST_TEXT]


def load_ray() -> Any:
    """Import Ray Data and return the package ray. Raises RuntimeUnavailable if it is not installed."""
    # Ray reads these when it is imported, and hands them to its processes.
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    # The history of tasks, which only the dashboard shows. It waits in the driver's memory.
    os.environ.setdefault("RAY_task_events_report_interval_ms", "0")
    try:
        import ray
        import ray.data
    except ModuleNotFoundError as error:
        raise RuntimeUnavailable(f"--engine ray needs {error.name}; run: {install('scale')}") from error
    return ray


@contextmanager
def connected(address: str | None = None) -> Iterator[Complaints]:
    """Connect to Ray, and yield its complaints.

    address: "auto" or HOST:PORT of a running cluster. None starts one here, which ends with the block.
    A process that is connected already keeps its connection, whatever the address.
    Raises RuntimeUnavailable without Ray, UsageError if there is no cluster at the address, and EngineError if none
    can be started here.
    """
    if address is None and "ray" not in sys.modules:
        # Without a token, whoever reaches this machine's ports could run programs on it. Ray would keep one in the
        # home. It reads these when it is imported.
        os.environ["RAY_AUTH_MODE"], os.environ["RAY_AUTH_TOKEN"] = "token", secrets.token_hex(32)
    ray = load_ray()
    complaints = Complaints()
    with _quiet(complaints), _signals_told_apart():
        if ray.is_initialized():
            yield complaints
        elif address is not None:
            with _signals_kept(), _stderr_aside():
                _join(ray, address)
            try:
                yield complaints
            finally:
                with held_back():
                    ray.shutdown()
        else:
            with _folder() as folder:
                try:
                    with _signals_kept(), _stderr_aside():
                        _start(ray, folder)
                    yield complaints
                finally:
                    with held_back():
                        ray.shutdown()


def _join(ray: Any, address: str) -> None:
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
        raise UsageError(
            f"--address {address}: no Ray cluster can be joined ({gist(str(error))}); start one with `ray start "
            "--head`, or leave out --address"
        ) from error


def _start(ray: Any, folder: str) -> None:
    try:
        ray.init(
            address="local",
            num_cpus=cores(),
            object_store_memory=_store(),
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            _temp_dir=folder,
            _node_ip_address="127.0.0.1",
        )
    except (OSError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
        raise EngineError(
            f"Ray does not start here ({gist(str(error))}); run again, or leave out --engine ray"
        ) from error


def _store() -> int:
    """Return the bytes of a local cluster's object store: at most a third of the memory and of the shared memory."""
    wanted = min(_MOST_STORE, max(_LEAST_STORE, _STORE_PER_CORE * cores()))
    limits = [look_at_machine().memory, shutil.disk_usage(_SHARED).total * 2 if _SHARED.is_dir() else None]
    return min([wanted, *(limit // 3 for limit in limits if limit)])


@contextmanager
def _folder() -> Iterator[str]:
    """Yield a folder for the files of a local cluster. It is removed at the end, or else by the next run."""
    temporary = tempfile.gettempdir()
    above = Path(temporary if len(temporary) <= _LONGEST_FOLDER else "/tmp")
    _remove_strays(above)
    with tempfile.TemporaryDirectory(prefix=_PREFIX, dir=above, ignore_cleanup_errors=True) as folder:
        if sys.platform == "win32":
            yield folder
            return
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            lock(descriptor)
            yield folder
        finally:
            os.close(descriptor)


def _remove_strays(above: Path) -> None:
    """Remove the folders of runs that were killed. Those of runs that live are locked."""
    if sys.platform == "win32":
        return
    for folder in above.glob(f"{_PREFIX}*"):
        try:
            descriptor = os.open(folder, os.O_RDONLY | os.O_NOFOLLOW | os.O_DIRECTORY)
        except OSError:  # another user's
            continue
        try:
            young = time.time() - os.fstat(descriptor).st_mtime < _YOUNG
            if os.fstat(descriptor).st_uid == os.getuid() and not young and lock(descriptor):
                shutil.rmtree(folder, ignore_errors=True)
        finally:
            os.close(descriptor)


@contextmanager
def _signals_kept() -> Iterator[None]:
    """Give the signals back the handlers that they had. ray.init takes SIGTERM."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            if handler is not None:
                signal.signal(number, handler)


@contextmanager
def _signals_told_apart() -> Iterator[None]:
    """Raise the interrupt of the signal that came. Ray's native code turns each into that of Ctrl-C."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    before = {number: handler for number in SIGNALS if callable(handler := signal.getsignal(number))}

    def handle(number: int, frame: FrameType | None) -> None:
        came.append(number)
        before[number](number, frame)

    try:
        for number in before:
            signal.signal(number, handle)
        yield
    except KeyboardInterrupt as error:
        if isinstance(error, Interrupted) or not came or came[0] == signal.SIGINT:
            raise
        told = Interrupted(came[0])
        for note in getattr(error, "__notes__", ()):
            told.add_note(note)
        raise told from error
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _stderr_aside() -> Iterator[None]:
    """Keep what native code prints on stderr meanwhile, and log it as details. Ray says there how it logs."""
    sys.stderr.flush()
    with tempfile.TemporaryFile() as printed:
        before = os.dup(2)
        os.dup2(printed.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(before, 2)
            os.close(before)
            printed.seek(0)
            for line in printed.read().decode("utf-8", "replace").splitlines():
                _LOG.debug("Ray: %s", line)


@contextmanager
def _quiet(complaints: Complaints) -> Iterator[None]:
    """Hear what Ray Data says, in place of the terminal."""
    logger = logging.getLogger("ray.data")
    before = [(handler, handler.level) for handler in logger.handlers if isinstance(handler, logging.StreamHandler)]
    for handler, _ in before:
        handler.setLevel(logging.CRITICAL + 1)
    logger.addHandler(complaints)
    try:
        with warnings.catch_warnings(), redirect_stdout(_Said()):
            # Advice on how to use Ray Data, and deprecations of its own making.
            warnings.filterwarnings("ignore", module=r"ray\.")
            yield
    finally:
        logger.removeHandler(complaints)
        for handler, level in before:
            handler.setLevel(level)
