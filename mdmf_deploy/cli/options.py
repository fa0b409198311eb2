"""Arguments and options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mdmf_deploy.errors import UsageError

if TYPE_CHECKING:
    from mdmf_deploy.bundle.bundle import Bundle

BundleArgument = Annotated[
    str, typer.Argument(help="A .mdmf folder, or the name of one in the package, 'dinov2s' or 'starter'.")
]
OutputBundle = Annotated[
    Path | None, typer.Option("-o", "--output", help="Bundle to write; by default the one given, with --force.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Yes = Annotated[
    bool, typer.Option("--yes", help="Search even the root of a disk or your home folder, if such a folder is given.")
]
Force = Annotated[bool, typer.Option("--force", help="Replace the bundle that is there.")]


def destination(bundle: Bundle, output: Path | None, force: bool) -> Path:
    """Return the folder to write to: -o if it is given, otherwise the bundle's own.

    Raises UsageError for a bundle shipped in the package, which must not be changed, and without `force` for any folder
    that exists. Raises BundleError for anything there that is not a bundle.
    """
    from mdmf_deploy.bundle.bundle import check_destination, shipped_name

    target = output or bundle.path
    name = shipped_name(target)
    if name is not None:
        raise UsageError(f"{name!r} is part of the installed package; give -o to write a bundle of your own")
    check_destination(target)
    if target.exists() and not force:
        raise UsageError(f"{target} exists; give -o to write a new bundle, or --force to replace this one")
    return target
