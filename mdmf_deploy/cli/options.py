"""Arguments and options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mdmf_deploy.bundle import SHIPPED_BUNDLES
from mdmf_deploy.cli.kept import watch
from mdmf_deploy.errors import UsageError

if TYPE_CHECKING:
    from mdmf_deploy.bundle.bundle import Bundle

BUNDLE_VARIABLE, RUNTIME_VARIABLE = "MDMF_BUNDLE", "MDMF_RUNTIME"
# Those of mdmf_deploy.runtime.ENGINES, whose import is heavy.
RUNTIMES = ("auto", "onnxruntime", "openvino", "tensorrt", "rtx", "cuda", "ort-tensorrt", "torch", "torch-cuda")
_BUNDLE_HELP = "A .mdmf folder, or the name of one in the package, 'dinov2s' or 'starter'."


def complete_bundle(incomplete: str) -> list[str]:
    """Return the names of bundles in the package, and the bundles and folders whose path begins so, for the shell."""
    before, slash, _ = incomplete.rpartition("/")
    folder = Path(before + slash or ".")
    found = sorted(folder.iterdir()) if folder.is_dir() else []
    paths = [f"{before}{slash}{path.name}{'' if path.suffix == '.mdmf' else '/'}" for path in found if path.is_dir()]
    return [name for name in (*SHIPPED_BUNDLES, *paths) if name.startswith(incomplete)]


def complete_runtime(incomplete: str) -> list[str]:
    """Return the runtimes whose name begins so, for the shell. Of several after commas, the last counts."""
    before, comma, last = incomplete.rpartition(",")
    return [f"{before}{comma}{name}" for name in RUNTIMES if name.startswith(last)]


def complete_recipe(incomplete: str) -> list[str]:
    """Return the recipes in the package whose name begins so, for the shell. It adds files by itself."""
    from mdmf_deploy.bundle.recipe import recipe_names

    return [name for name in recipe_names() if name.startswith(incomplete)]


def runtime_option(text: str) -> Any:
    """Return the option --runtime. text: its purpose in the command, as a sentence."""
    return typer.Option(
        "--runtime",
        metavar="[auto|onnxruntime|openvino|...]",
        help=f"{text} Others: {', '.join(RUNTIMES[3:])}; `mdmf doctor` says which work here.",
        envvar=RUNTIME_VARIABLE,
        show_envvar=True,
        autocompletion=complete_runtime,
    )


BundleArgument = Annotated[str, typer.Argument(metavar="BUNDLE", help=_BUNDLE_HELP, autocompletion=complete_bundle)]
# For commands that only read.
BundleOrDefault = Annotated[
    str, typer.Argument(metavar="BUNDLE", help=_BUNDLE_HELP, envvar=BUNDLE_VARIABLE, autocompletion=complete_bundle)
]
BundleOption = Annotated[
    str,
    typer.Option(
        "--bundle",
        metavar="BUNDLE",
        help=_BUNDLE_HELP,
        envvar=BUNDLE_VARIABLE,
        show_envvar=True,
        autocompletion=complete_bundle,
    ),
]
OutputBundle = Annotated[
    Path | None,
    typer.Option("-o", "--output", metavar="BUNDLE", help="Bundle to write; by default the one given, with --force."),
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
    watch(target)
    if target.exists() and not force:
        raise UsageError(f"{target} exists; give -o to write a new bundle, or --force to replace this one")
    return target


Anonymous = Annotated[
    bool,
    typer.Option(
        "--anonymous",
        help="Store numbers in place of file names, and hashes that nobody can compute again. Later commands then "
        "cannot tell that a photograph is in it.",
    ),
]
