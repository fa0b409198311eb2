"""Where the rooms are: beside the package in a checkout, inside it in an installed wheel."""

from __future__ import annotations

from pathlib import Path

from mdmf_deploy.errors import UsageError

_PACKAGE = Path(__file__).resolve().parent


def room(name: str) -> Path:
    """The folder of the room `name` ("export" or "engines").

    Raises UsageError if the installation lacks it.
    """
    for candidate in (_PACKAGE / "_rooms" / name, _PACKAGE.parent / name):
        if candidate.is_dir():
            return candidate
    raise UsageError(f"room {name!r} is missing beside {_PACKAGE}; reinstall mdmf-deploy")


def bundled(name: str) -> Path:
    """The folder of a bundle shipped in the package, such as "starter"; it may not exist."""
    return _PACKAGE / "bundles" / f"{name}.mdmf"
