"""The command line, `mdmf`: one file per command. Importing it imports nothing heavy."""

from __future__ import annotations

import importlib
import io
import os
import sys
import traceback
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from mdmf_deploy.cli.console import log
from mdmf_deploy.errors import MdmfError, install

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
    "evaluate",
    "benchmark",
    "inspect",
    "doctor",
)

# Package -> the extra that installs it. Any other missing module is a bug.
_EXTRAS = {
    "accelerate": "export",
    "cuda": "gpu",
    "matplotlib": "export",
    "nncf": "export",
    "onnx": "export",
    "onnxruntime": "cpu",
    "onnxscript": "export",
    "openvino": "openvino",
    "pyarrow": "scale",
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

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except MdmfError as error:
            _fail(_with_notes(str(error), error), error.exit_code)
        except BrokenPipeError:
            raise typer.Exit(_BROKEN_PIPE) from None
        except ModuleNotFoundError as error:
            package = (error.name or "").partition(".")[0]
            if package not in _EXTRAS:
                raise
            _fail(f"this needs {package}; run: {install(_EXTRAS[package])}", _IO_ERROR)
        except OSError as error:
            where = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, (str, bytes)) else ""
            _fail(_with_notes(f"{where}{error.strerror or error}", error), _IO_ERROR)


def _with_notes(text: str, error: Exception) -> str:
    """Append the error's notes, for example where finished rows are."""
    return "; ".join([text, *getattr(error, "__notes__", ())])


def _fail(text: str, exit_code: int) -> NoReturn:
    log(" ".join(text.splitlines()))
    raise typer.Exit(exit_code)


app = typer.Typer(
    name="mdmf",
    cls=_Group,
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from mdmf_deploy import __version__

        typer.echo(f"mdmf {__version__}")
        raise typer.Exit


@app.callback()
def _mdmf(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Deploy a trained MDMF detector of AI-generated images: bundles in, rows out.

    Example: mdmf detect photos/ -o verdicts.jsonl
    """


def _register(name: str) -> None:
    # The functions are not bound in this module, because they would hide the submodules of the same names.
    module = importlib.import_module(f"{__name__}.{name}")
    if hasattr(module, "app"):
        app.add_typer(module.app, name=name)
    else:
        app.command(name)(getattr(module, name))


for _name in COMMANDS:
    _register(_name)


def main() -> None:
    """Run the command line and exit with its exit code (docs/rows.md lists them)."""
    # Code that needs threads starts its own. BLAS threads would only spin at start, for 0.06 s of CPU each.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    # How many 16 MB blocks Pillow keeps for the next large image. Allocating them costs a quarter of decoding it.
    os.environ.setdefault("PILLOW_BLOCKS_MAX", "8")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a name the terminal cannot encode must not crash
    try:
        try:
            app(prog_name="mdmf")
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        # Python flushes once more at exit, and would complain about the closed pipe.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(_BROKEN_PIPE)
    except Exception:
        traceback.print_exc()
        log("this is a bug; please report it with the lines above")
        sys.exit(_BUG)
