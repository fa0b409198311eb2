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


def shipped_name(bundle: Path) -> str | None:
    """The name of a bundle that lies where the package ships its own, however its path was given; None elsewhere."""
    folder = bundle.resolve()
    return folder.stem if folder.parent == bundled(folder.stem).resolve().parent else None


def hint(command: str, bundle: Path, *rest: str) -> str:
    """`mdmf <command> <bundle> <rest>` to run; with -o for a shipped bundle, which is not to be changed."""
    name = shipped_name(bundle)
    words = (str(bundle), *rest) if name is None else (name, *rest, "-o", "mine.mdmf")
    return f"`mdmf {command} {' '.join(words)}`"
