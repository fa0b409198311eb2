"""Every error a user can meet: one line that names the thing, what was expected, and what to do next."""

from __future__ import annotations

import errno
import re

# How libraries say that they ran out of memory: those in C++, the loader of shared libraries, PyTorch and ONNX Runtime.
_NO_MEMORY = re.compile(
    r"bad_alloc|out of memory|cannot allocate memory(?! in static TLS)|failed to map segment|"
    r"(?:can't|failed to|unable to|could not) allocate",
    re.IGNORECASE,
)
_NO_THREADS = re.compile(
    r"can't start new thread|pthread_create failed|thread constructor failed|resource temporarily unavailable",
    re.IGNORECASE,
)


class MdmfError(Exception):
    """Base of all errors raised on purpose. The command line prints its text and exits with `exit_code`."""

    exit_code = 2


class UsageError(MdmfError):
    """An argument or option that cannot be carried out as given."""


class RecipeError(MdmfError):
    """A recipe file that is missing, malformed, or names an unknown key."""


class CheckpointError(MdmfError):
    """A checkpoint that is unreadable, or whose keys or shapes are not those of the model."""


class TrainingFailed(MdmfError):
    """A training run whose loss is no longer a number, or whose detector does not depend on its bank."""

    exit_code = 1


class BundleError(MdmfError):
    """A bundle that is missing, damaged, of a newer schema, or made of parts that do not belong together."""


class BankError(MdmfError):
    """A reference bank that cannot be built, read, or used with this model."""


class CalibrationError(MdmfError):
    """A calibration that cannot be made or does not belong to its bundle."""


class QuantisationError(MdmfError):
    """A graph that cannot be rewritten in a lower precision."""


class ProfileError(MdmfError):
    """A build profile that is missing, malformed, or asks for something impossible."""


class EngineError(MdmfError):
    """An engine that cannot be built, loaded or run."""


class RuntimeUnavailable(MdmfError):
    """A runtime that is unknown or not installed on this machine."""


class CompilationFailed(MdmfError):
    """Kernel source that a compiler cannot turn into code for this GPU."""


class OutOfMemory(MdmfError):
    """Memory that cannot be allocated: a GPU's, pinned memory, or this machine's own."""


class OutOfThreads(MdmfError):
    """A thread or a process that the system does not start."""


class ShapeMismatch(MdmfError):
    """An array whose shape is not the documented one."""


class GateFailed(MdmfError):
    """A check that ran to its end and failed (`verify`, `export`, `evaluate --min-auroc`, `detect --fail-on`)."""

    exit_code = 1


class ImageError(MdmfError):
    """One input that cannot be scored. It costs its own row, never the run.

    code: stable and machine-readable, documented in docs/rows.md (for example "truncated").
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


def shortage(error: BaseException) -> MdmfError | None:
    """Return the error that says what this machine or this process's limits lack, or None if it is another error.

    Each library has exceptions of its own for it. They differ by their text alone.
    """
    if isinstance(error, MdmfError):
        return None
    number = error.errno if isinstance(error, OSError) else None
    text = " ".join(str(error).split())
    memory, threads = _NO_MEMORY.search(text), _NO_THREADS.search(text)
    if isinstance(error, MemoryError) or number == errno.ENOMEM or (number is None and memory):
        reason = _from(text, 0 if memory is None or isinstance(error, MemoryError) else memory.start())
        return OutOfMemory(
            f"out of memory{f' ({reason})' if reason else ''}; free some, raise the limit of this process (ulimit -v, "
            "or its container's), or use fewer --threads or a smaller --batch-size where the command has them"
        )
    # A fork that fails has no file. The same error of a file that is read means something else.
    if number == errno.EAGAIN and isinstance(error, OSError) and error.filename is None:
        return _too_few("processes", _from(text, 0))
    return _too_few("threads", _from(text, threads.start())) if number is None and threads else None


def _too_few(what: str, reason: str) -> OutOfThreads:
    return OutOfThreads(
        f"no more {what} can be started ({reason}); raise the limit of this user (ulimit -u, or its container's), free "
        "some memory, or use --threads 1 where the command has it"
    )


def _from(text: str, start: int) -> str:
    """Return the telling part of a library's message, which may begin with a page of C++."""
    return text[start : start + 120]


def version(distribution: str) -> str | None:
    """Return the version of an installed distribution, or None if it is not installed."""
    # Imported late: it takes longer than the rest of this package that `mdmf --help` imports.
    from importlib import metadata

    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def installed(distribution: str) -> bool:
    return version(distribution) is not None


def install(extra: str) -> str:
    """Return the command that installs an extra here."""
    command = f"pip install 'mdmf-deploy[{extra}]'"
    # The two builds of ONNX Runtime overwrite each other's files.
    return f"pip uninstall onnxruntime && {command}" if extra == "gpu" and installed("onnxruntime") else command
