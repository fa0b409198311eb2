"""Options that every command takes, before and after its name: how it talks."""

from __future__ import annotations

import functools
import inspect
import platform
import sys
from collections.abc import Callable, Mapping
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, get_args

import typer
from typer.core import TyperCommand
from typer.models import ArgumentInfo, OptionInfo

from mdmf_deploy import __version__
from mdmf_deploy.cli.console import Manners, behave, log_details, manners
from mdmf_deploy.errors import UsageError
from mdmf_deploy.files import url_in

Quiet = Annotated[
    bool, typer.Option("-q", "--quiet", help="Show no progress bar and no messages, only warnings and errors.")
]
Verbose = Annotated[bool, typer.Option("-v", "--verbose", help="Show details: versions, timings, caches.")]
LogFile = Annotated[
    Path | None,
    typer.Option("--log-file", metavar="FILE", help="Append every message to this file, with its time and details."),
]
Color = Annotated[
    bool | None, typer.Option("--color/--no-color", help="Colour, or do not; by default on a terminal only.")
]
_VALUES = {int: "N", float: "X", str: "TEXT", Path: "PATH"}
_OPTIONS = {"quiet": (Quiet, False), "verbose": (Verbose, False), "log_file": (LogFile, None), "color": (Color, None)}


def behave_as(quiet: bool, verbose: bool, log_file: Path | None, color: bool | None) -> None:
    """Add what these options say to what was said before. Raises UsageError."""
    before = manners()
    now = Manners(
        quiet or before.quiet,
        verbose or before.verbose,
        before.log_file if log_file is None else log_file,
        before.colour if color is None else color,
    )
    if now != before:
        behave(now)


class Command(TyperCommand):
    """A command whose help gives arguments by their names alone. Typer would add Python's types, and braces."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        for parameter in self.params:
            if parameter.param_type_name == "argument":
                name = f"{parameter.metavar}{'...' if parameter.nargs != 1 else ''}"
                usage = name if parameter.required else f"[{name}]"
                parameter.metavar = name
                vars(parameter)["display_type_rich"] = lambda ctx: None
                vars(parameter)["get_usage_pieces"] = lambda ctx, usage=usage: [usage]


def _name_value(parameter: inspect.Parameter) -> None:
    """Say in help texts what an option or argument takes, in place of Python's name of the type."""
    kind, *details = get_args(parameter.annotation) or (parameter.annotation,)
    for option in details:
        if isinstance(option, ArgumentInfo):
            option.metavar = option.metavar or parameter.name.upper()
        if not isinstance(option, OptionInfo) or option.metavar is not None:
            continue
        # From list[int] | None to int.
        while get_args(kind):
            kind = get_args(kind)[0]
        if issubclass(kind, Enum):
            option.metavar = f"[{'|'.join(choice.value for choice in kind)}]"
        elif kind is not bool:
            option.metavar = _VALUES[kind]


def _refuse_urls(values: Mapping[str, Any], parameters: Mapping[str, inspect.Parameter]) -> None:
    """Raise UsageError for an option whose path is a URL. A folder named "s3:" would be made in the working folder."""
    for name, value in values.items():
        if not isinstance(value, Path) or (url := url_in(value)) is None:
            continue
        for option in get_args(parameters[name].annotation):
            if isinstance(option, OptionInfo):
                flag = (option.param_decls or [f"--{name.replace('_', '-')}"])[0]
                raise UsageError(f"{flag} {url} is a URL; give a path on this machine")


def with_manners(command: Callable[..., None]) -> Callable[..., None]:
    """Return the command with these options behind its own, for Typer to read."""

    @functools.wraps(command)
    def run(*arguments: Any, **options: Any) -> None:
        _refuse_urls(options, run.__signature__.parameters)  # type: ignore[attr-defined]
        behave_as(**{name: options.pop(name) for name in _OPTIONS})
        log_details("mdmf-deploy %s, Python %s, %s", __version__, platform.python_version(), sys.platform)
        command(*arguments, **options)

    own = inspect.signature(command, eval_str=True)
    for parameter in own.parameters.values():
        _name_value(parameter)
    common = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
        for name, (annotation, default) in _OPTIONS.items()
    ]
    run.__signature__ = own.replace(parameters=[*own.parameters.values(), *common])  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in run.__signature__.parameters.values()}  # type: ignore[attr-defined]
    return run
