"""The command line, `mdmf`: one file a command; importing it imports nothing heavy."""

from __future__ import annotations

import importlib
import io
import os
import sys
import traceback
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from mdmf_deploy.errors import MdmfError

# In the order in which --help lists them: from checkpoint to verdicts, then what looks at them.
COMMANDS = (
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

# Packages that come with an extra -> that extra.  Any other missing module is a bug.
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
    "sklearn": "export",
    "tensorrt": "gpu",
    "tensorrt_rtx": "rtx",
    "torch": "export",
}

_IO_ERROR = 2
_BUG = 70  # EX_SOFTWARE: Python's own 1 would read as "a gate failed"
_BROKEN_PIPE = 141  # as a shell reports SIGPIPE


class _Group(TyperGroup):
    """Lists commands in order; turns errors that a user can act on into one line on stderr and their exit code."""

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
            _fail(f"this needs {package}; run: pip install 'mdmf-deploy[{_EXTRAS[package]}]'", _IO_ERROR)
        except OSError as error:
            where = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, (str, bytes)) else ""
            _fail(_with_notes(f"{where}{error.strerror or error}", error), _IO_ERROR)


def _with_notes(text: str, error: Exception) -> str:
    """With what was added on the error's way, such as where finished rows are."""
    return "; ".join([text, *getattr(error, "__notes__", ())])


def _fail(text: str, exit_code: int) -> NoReturn:
    typer.echo("mdmf: " + " ".join(text.splitlines()), err=True)
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
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    """From a trained MDMF detector of AI-generated images to verdicts: bundles in, rows out.

    Example: mdmf detect photos/ -o verdicts.jsonl
    """


def _register(name: str) -> None:
    # Not bound in this module: that would hide the submodules of the same names.
    module = importlib.import_module(f"{__name__}.{name}")
    if hasattr(module, "app"):
        app.add_typer(module.app, name=name)
    else:
        app.command(name)(getattr(module, name))


for _name in COMMANDS:
    _register(_name)


def main() -> None:
    """Run the command line and leave with its exit code (README.md lists them)."""
    # Whoever needs threads makes its own; those of BLAS would only spin as they start, for 0.06 s of CPU each.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    # Blocks of 16 MB that Pillow may keep for the next large image: new ones cost a quarter of decoding it.
    os.environ.setdefault("PILLOW_BLOCKS_MAX", "8")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # no name is worth a crash, whatever the terminal's encoding
    try:
        try:
            app(prog_name="mdmf")
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        # Python flushes once more on its way out, and would complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(_BROKEN_PIPE)
    except Exception:
        traceback.print_exc()
        print("mdmf: this is a bug; please report it with the lines above", file=sys.stderr)
        sys.exit(_BUG)
