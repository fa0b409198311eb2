"""Installed distributions, and the command that installs an extra of ours."""

from __future__ import annotations

from importlib import metadata


def version(distribution: str) -> str | None:
    """None if it is not installed."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def installed(distribution: str) -> bool:
    return version(distribution) is not None


def install(extra: str) -> str:
    """The command that installs an extra here."""
    command = f"pip install 'mdmf-deploy[{extra}]'"
    # The two builds of ONNX Runtime overwrite each other's files.
    return f"pip uninstall onnxruntime && {command}" if extra == "gpu" and installed("onnxruntime") else command
