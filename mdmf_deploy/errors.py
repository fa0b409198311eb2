"""Every error a user can meet: one line that names the thing, what was expected, and what to do next."""

from __future__ import annotations


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
    """GPU memory, or pinned host memory, that cannot be allocated."""


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
