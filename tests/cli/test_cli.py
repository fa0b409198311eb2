"""The command line as a whole: help, exit codes, and one-line errors. tests/test_docs.py checks the documents."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main
from helpers.mdmf import mdmf

import mdmf_deploy
from mdmf_deploy import cli
from mdmf_deploy.errors import GateFailed, UsageError
from mdmf_deploy.interrupts import SIGNALS
from mdmf_deploy.tasks import doctor


def commands() -> Iterator[tuple[tuple[str, ...], Any]]:
    """("bank", "build") -> its command, for every command."""
    for name, command in typer.main.get_command(cli.app).commands.items():  # type: ignore[attr-defined]
        if hasattr(command, "commands"):
            yield from (((name, sub_name), sub) for sub_name, sub in command.commands.items())
        else:
            yield (name,), command


COMMANDS = dict(commands())


def options(command: Any) -> set[str]:
    return {
        "--help",
        *(option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)),
    }


def raising(error: BaseException) -> Callable[[], None]:
    def diagnose() -> None:
        raise error

    return diagnose


def run_main(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["mdmf", *arguments])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert isinstance(stopped.value.code, int)
    return stopped.value.code


def test_every_command_is_there() -> None:
    assert {path[0] for path in COMMANDS} == set(cli.COMMANDS)


@pytest.mark.parametrize("path", COMMANDS)
def test_help_has_an_example_whose_options_exist(path: tuple[str, ...]) -> None:
    text = mdmf(*path, "--help").stdout
    example = re.search(rf"Example: (mdmf {' '.join(path)}\b.*)", COMMANDS[path].help.replace("\n", " "))
    assert "Example:" in text
    assert example
    assert set(re.findall(r"(?<=\s)--?[a-z][\w-]*", example[1])) <= options(COMMANDS[path])
    assert all(parameter.help for parameter in COMMANDS[path].params if parameter.name != "help")


@pytest.mark.parametrize("option", ["-V", "--version"])
def test_version(option: str) -> None:
    assert mdmf(option).stdout == f"mdmf {mdmf_deploy.__version__}\n"


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_help_names_values_for_people_within_80_columns(path: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """No type of Python, no braces, an upper-case name for every argument, and the variables of the environment."""
    monkeypatch.setenv("COLUMNS", "80")
    lines = mdmf(*path, "--help").stdout.splitlines()
    assert max(map(len, lines)) <= 80
    assert not re.search(r"<(list|str|path|int)\b|\{|\.\.\.\.", "\n".join(lines))
    usage = lines[0].removeprefix(f"Usage: mdmf {' '.join(path)} [OPTIONS]").split()
    assert all(re.fullmatch(r"\[?[A-Z|]+(\.\.\.)?\]?", word) for word in usage)
    variables = {"--bundle": "MDMF_BUNDLE", "--runtime": "MDMF_RUNTIME"}
    for parameter in COMMANDS[path].params:
        for option in variables.keys() & set(parameter.opts):
            assert variables[option] in " ".join(lines)
            assert parameter.shell_complete(typer.Context(COMMANDS[path]), "")


@pytest.mark.parametrize("group", [(), *sorted({path[:-1] for path in COMMANDS if len(path) > 1})], ids=" ".join)
def test_summaries_of_commands_are_whole(group: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    listed = mdmf(*group, "--help").stdout.partition("Commands:\n")[2].partition("\n\n")[0]
    assert listed
    assert "..." not in listed


def test_help_lists_commands_in_order() -> None:
    text = mdmf("--help").stdout
    assert re.findall(r"^  ([a-z]+)  ", text, re.MULTILINE) == list(cli.COMMANDS)
    assert "--install-completion" in text


@pytest.mark.parametrize("arguments", [["nope"], ["doctor", "--nope"], ["evaluate"]])
def test_wrong_usage_exits_with_2(arguments: list[str]) -> None:
    assert mdmf(*arguments).exit_code == 2


@pytest.mark.parametrize(
    ("error", "exit_code", "text"),
    [
        (UsageError("two\nlines"), 2, "mdmf: two lines"),
        (GateFailed("too bad"), 1, "mdmf: too bad"),
        (PermissionError(13, "Permission denied", "out.jsonl"), 2, "mdmf: out.jsonl: Permission denied"),
        (OSError(28, "No space left on device"), 2, "mdmf: No space left on device"),
        (
            ModuleNotFoundError("No module named 'pyarrow'", name="pyarrow.parquet"),
            2,
            "mdmf: this needs pyarrow; run: pip install 'mdmf-deploy[parquet]'",
        ),
    ],
)
def test_errors_are_one_line(
    error: Exception, exit_code: int, text: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor, "diagnose", raising(error))
    assert run_main(monkeypatch, "doctor") == exit_code
    captured = capsys.readouterr()
    assert captured.err == text + "\n"
    assert captured.out == ""


@pytest.mark.parametrize(
    ("package", "extra"),
    [
        ("onnxruntime", "cpu"),
        ("openvino", "openvino"),
        ("tensorrt", "gpu"),
        ("tensorrt_rtx", "rtx"),
        ("cuda", "gpu"),
        ("pyarrow", "parquet"),
        ("ray", "scale"),
        *((name, "export") for name in ("accelerate", "nncf", "onnx", "onnxscript", "torch")),
        *((name, "evaluate") for name in ("matplotlib", "sklearn")),
    ],
)
def test_a_missing_package_names_its_extra(
    package: str, extra: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor, "diagnose", raising(ModuleNotFoundError(f"No module named {package!r}", name=package)))
    assert run_main(monkeypatch, "doctor") == 2
    assert f"mdmf: this needs {package}; run: " in (line := capsys.readouterr().err)
    assert line.endswith(f"pip install 'mdmf-deploy[{extra}]'\n")


@pytest.mark.parametrize("error", [KeyError("x"), ModuleNotFoundError("No module named 'mdmf_x'", name="mdmf_x")])
def test_a_bug_is_a_traceback_with_its_own_exit_code(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor, "diagnose", raising(error))
    assert run_main(monkeypatch, "doctor") == 70
    stderr = capsys.readouterr().err
    assert "Traceback" in stderr
    assert stderr.endswith("mdmf: this is a bug; please report it with the lines above\n")


@pytest.mark.parametrize("number", SIGNALS)
def test_an_interrupt_is_one_line_with_its_exit_code(
    number: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor, "diagnose", lambda: signal.raise_signal(number))
    assert run_main(monkeypatch, "doctor") == 128 + number
    assert capsys.readouterr().err == "mdmf: interrupted\n"


@pytest.mark.parametrize("arguments", [("calibrate",), ("bank", "build"), ("bank", "compress"), ("verify",)])
@pytest.mark.parametrize("there", [True, False])
def test_an_interrupted_command_says_what_became_of_its_bundle(
    arguments: tuple[str, ...], there: bool, bundle_copy: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*arguments: object, **options: object) -> None:
        signal.raise_signal(signal.SIGTERM)

    for owner in ("runtime.open_engine", "tasks.bank.compress.compress_bundle"):
        monkeypatch.setattr(f"mdmf_deploy.{owner}", interrupt)
    output = bundle_copy if there else bundle_copy.with_name("new.mdmf")
    reals = (photos,) if arguments[0] in ("calibrate", "bank") and arguments[-1] != "compress" else ()
    result = mdmf(*arguments, bundle_copy, *reals, "-o", output, "--force")
    assert result.exit_code == 143
    assert result.stderr == f"mdmf: interrupted; {output} {'is unchanged' if there else 'was not written'}\n"


def test_an_interrupt_after_the_bundle_was_written_says_so(bundle_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mdmf_deploy.cli.bank.print_facts", lambda facts: signal.raise_signal(signal.SIGINT))
    result = mdmf("bank", "compress", bundle_copy, "--points", 8, "--force")
    assert result.exit_code == 130
    assert result.stderr.splitlines()[-1] == f"mdmf: interrupted; {bundle_copy} was written"


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGPIPE there")
def test_a_reader_that_goes_away_is_no_error() -> None:
    # Buffered, as it is by default: Python then flushes once more on its way out.
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    process = subprocess.Popen(
        [sys.executable, "-m", "mdmf_deploy", "inspect", "starter"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=buffered,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    stderr = process.stderr.read()
    process.stderr.close()
    assert (process.wait(), stderr) == (141, b"")


def test_output_works_in_every_encoding() -> None:
    code = (
        "import sys\nfrom mdmf_deploy import cli\nfrom mdmf_deploy.tasks import doctor\n"
        "def diagnose():\n    print('caf\\u00e9')\n    raise cli.MdmfError('caf\\u00e9')\n"
        "doctor.diagnose = diagnose\nsys.argv = ['mdmf', 'doctor']\ncli.main()"
    )
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, env=environment, check=False)
    assert (result.returncode, result.stdout) == (2, rb"caf\xe9" + os.linesep.encode())
    assert result.stderr.startswith(b"mdmf: caf")
