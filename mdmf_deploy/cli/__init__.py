"""The command line, `mdmf`: one file per command. Importing it imports nothing heavy."""

from __future__ import annotations

import importlib
import io
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from mdmf_deploy.cli.console import behave, log, log_traceback, print_text
from mdmf_deploy.cli.kept import kept, watch_nothing
from mdmf_deploy.cli.manners import Color, Command, LogFile, Quiet, Verbose, behave_as, with_manners
from mdmf_deploy.errors import MdmfError, install, shortage
from mdmf_deploy.interrupts import exit_code, raised
from mdmf_deploy.text import one_line

# In the order of --help: a first look, from a recipe to verdicts, then commands that inspect and measure.
COMMANDS = (
    "demo",
    "recipe",
    "train",
    "export",
    "build",
    "verify",
    "bank",
    "calibrate",
    "detect",
    "rescore",
    "rows",
    "evaluate",
    "benchmark",
    "inspect",
    "doctor",
)

# Package -> the extra that installs it. Any other missing module is a bug.
_EXTRAS = {
    "accelerate": "export",
    "cuda": "gpu",
    "matplotlib": "evaluate",
    "nncf": "export",
    "onnx": "export",
    "onnxruntime": "cpu",
    "onnxscript": "export",
    "openvino": "openvino",
    "pyarrow": "parquet",
    "ray": "scale",
    "sklearn": "evaluate",
    "tensorrt": "gpu",
    "tensorrt_rtx": "rtx",
    "torch": "export",
}

_IO_ERROR = 2
_BUG = 70  # EX_SOFTWARE, because Python's own 1 would mean "a gate failed"
_BROKEN_PIPE = 141  # as a shell reports SIGPIPE


class _Group(TyperGroup):
    """Commands in order. Turns an error that a user can act on into one line on stderr and its exit code."""

    def list_commands(self, ctx: Any) -> list[str]:
        return [name for name in COMMANDS if name in self.commands]

    def make_context(self, *arguments: Any, **options: Any) -> Any:
        behave()
        watch_nothing()
        with _explained():
            return super().make_context(*arguments, **options)

    def invoke(self, ctx: Any) -> Any:
        with _explained(), raised(_leave):
            return super().invoke(ctx)


@contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt as interrupt:
        _log_interrupt(interrupt)
        raise typer.Exit(exit_code(interrupt)) from None
    except MdmfError as error:
        _fail(_with_notes(str(error), error), error.exit_code)
    except BrokenPipeError:
        raise typer.Exit(_BROKEN_PIPE) from None
    except Exception as error:
        if (lacking := shortage(error)) is not None:
            _fail(_with_notes(str(lacking), error), lacking.exit_code)
        _explain(error)
        raise


def _explain(error: Exception) -> None:
    """End the command with a line and exit code 2 if a user can act on the error. Return if it is a bug."""
    if isinstance(error, ModuleNotFoundError):
        package = (error.name or "").partition(".")[0]
        if package in _EXTRAS:
            _fail(f"this needs {package}; run: {install(_EXTRAS[package])}", _IO_ERROR)
    elif isinstance(error, OSError):
        text = error.strerror or " ".join(map(str, error.args))
        where = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, (str, bytes)) else ""
        _fail(_with_notes(f"{where}{text}", error), _IO_ERROR)
    # Typer prints its own errors about arguments, which may be names of files that a shell has put in.
    elif hasattr(error, "format_message") and isinstance(message := vars(error).get("message"), str):
        vars(error)["message"] = one_line(message)


def _log_interrupt(interrupt: KeyboardInterrupt) -> None:
    log(_with_notes("interrupted", interrupt, *kept()), logging.ERROR)


def _leave(interrupt: KeyboardInterrupt) -> NoReturn:
    _log_interrupt(interrupt)
    os._exit(exit_code(interrupt))


def _with_notes(text: str, error: BaseException, *others: str) -> str:
    """Append the error's notes, for example where finished rows are, and the others."""
    return "; ".join([text, *getattr(error, "__notes__", ()), *others])


def _fail(text: str, exit_code: int) -> NoReturn:
    log(text, logging.ERROR)
    raise typer.Exit(exit_code)


app = typer.Typer(
    name="mdmf",
    cls=_Group,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Environment variables: MDMF_BUNDLE and MDMF_RUNTIME are the bundle and the runtime where none is given. "
    "MDMF_CACHE is the folder for compiled files. NO_COLOR and FORCE_COLOR are honoured.",
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from mdmf_deploy import __version__

        print_text(f"mdmf {__version__}")
        raise typer.Exit


@app.callback()
def _mdmf(
    version: Annotated[
        bool,
        typer.Option("-V", "--version", callback=_print_version, is_eager=True, help="Print the version and exit."),
    ] = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
    log_file: LogFile = None,
    color: Color = None,
) -> None:
    """Deploy a trained MDMF detector of AI-generated images: bundles in, rows out.

    Example: mdmf detect photos/ -o verdicts.jsonl
    """
    behave_as(quiet, verbose, log_file, color)


def _register(name: str) -> None:
    # The functions are not bound in this module, because they would hide the submodules of the same names.
    module = importlib.import_module(f"{__name__}.{name}")
    if hasattr(module, "app"):
        for command in module.app.registered_commands:
            command.callback, command.cls = with_manners(command.callback), Command
        app.add_typer(module.app, name=name)
    else:
        app.command(name, cls=Command)(with_manners(getattr(module, name)))


for _name in COMMANDS:
    _register(_name)


def main() -> NoReturn:
    """Run the command line and exit with its exit code (docs/rows.md lists them)."""
    # Code that needs threads starts its own. BLAS threads would only spin at start, for 0.06 s of CPU each.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    # How many 16 MB blocks Pillow keeps for the next large image. Allocating them costs a quarter of decoding it.
    os.environ.setdefault("PILLOW_BLOCKS_MAX", "8")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a name the terminal cannot encode must not crash
    behave()
    try:
        app(prog_name="mdmf")
    except SystemExit as stopped:
        code = stopped.code
    except Exception as error:
        # Outside of a command, before its arguments are known or after its end.
        if (lacking := shortage(error)) is not None:
            log(str(lacking), logging.ERROR)
            code = lacking.exit_code
        else:
            log_traceback()
            log("this is a bug; please report it with the lines above", logging.ERROR)
            code = _BUG
    try:
        sys.stdout.flush()
    except OSError as error:
        # Python flushes once more at exit, and would complain about the same error.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            code = _BROKEN_PIPE
        elif not code:
            log(f"standard output: {error.strerror}", logging.ERROR)
            code = _IO_ERROR
    sys.exit(code)
