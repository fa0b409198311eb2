"""No name, message or manifest reaches a terminal as anything but text."""

from __future__ import annotations

import ast
import io
import json
import logging
import sys
import unicodedata
from pathlib import Path

import msgspec
import pytest
from helpers.mdmf import mdmf
from rich.console import Console

import mdmf_deploy.cli
from mdmf_deploy.cli import console
from mdmf_deploy.cli.phases import PhaseDisplay
from mdmf_deploy.detection.rows import Row, json_line, table_line
from mdmf_deploy.tasks import doctor
from mdmf_deploy.tasks.train.phases import Phase

EVIL = "\x1b]0;x\x07\x9b31m\u202egpj\u200b[red]"
SHOWN = r"\x1b]0;x\x07\xc2\x9b31m\xe2\x80\xaegpj\xe2\x80\x8b[red]"


def shows(text: str) -> bool:
    return all(one == "\n" or unicodedata.category(one) not in ("Cc", "Cf", "Cs", "Zl", "Zp") for one in text)


def test_only_the_console_prints() -> None:
    """Otherwise a new command could forget to make its text printable."""
    folder = Path(mdmf_deploy.cli.__file__).parent
    calls = [
        (path.name, node.lineno)
        for path in folder.glob("*.py")
        if path.name != "console.py"
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("print", "typer.echo", "typer.secho", "click.echo")
    ]
    assert not calls


def with_texts(bundle: Path, text: str) -> Path:
    """Write a text to wherever a bundle's manifest holds free text."""
    path = bundle / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["name"] = manifest["provenance"]["recipe"] = text
    manifest["provenance"]["libraries"] = {text: text}
    for record in manifest["verification"]:
        record["reference"] = text
        record["reasons"] = [text]
    path.write_text(json.dumps(manifest))
    return bundle


@pytest.mark.parametrize("options", [(), ("--json",)])
def test_a_manifest_is_shown_as_text(bundle_copy: Path, options: tuple[str, ...]) -> None:
    """Markup of Rich is text like any other. Characters that a terminal obeys are refused, and not shown either."""
    result = mdmf("inspect", with_texts(bundle_copy, "[red]a[/red]"), *options)
    assert result.exit_code == 0
    assert "[red]a[/red]" in result.stdout
    result = mdmf("inspect", with_texts(bundle_copy, f"{EVIL}\nbundle id     forged"), *options)
    assert result.exit_code == 2
    assert shows(result.output)
    assert "forged" not in result.output


def test_file_names_are_shown_as_text(photos: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    path = tmp_path / f"{EVIL}.jpg"
    path.write_bytes(min(photos.iterdir()).read_bytes())
    for options in ((), ("--json",), ("--list-inputs",)):
        result = mdmf("detect", path, tmp_path / "gone\u202e.jpg", "--bundle", tiny_bundle, *options)
        assert shows(result.output)
        assert (json.dumps(SHOWN)[1:-1] if options == ("--json",) else SHOWN) in result.stdout


@pytest.mark.parametrize(
    "arguments",
    [
        ["inspect", EVIL],
        ["inspect", "starter", EVIL],
        ["inspect", f"--{EVIL}"],
        [EVIL],
        ["detect", "x.jpg", "--crops", EVIL],
        ["detect", "x.jpg", "-o", f"{EVIL}.nope"],
        ["detect", f"{EVIL}*"],
        ["detect", f"@{EVIL}"],
        ["recipe", "show", EVIL],
        ["doctor", "--log-file", f"nowhere/{EVIL}"],
    ],
    ids=" ".join,
)
def test_wrong_arguments_are_shown_as_text(arguments: list[str]) -> None:
    result = mdmf(*arguments)
    assert result.exit_code == 2
    assert r"\x1b" in result.stderr or "--crops" in arguments
    assert shows(result.output)


def test_messages_and_tracebacks_are_shown_as_text_everywhere(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def diagnose() -> None:
        logging.getLogger("mdmf_deploy.anything").warning("%s\nmdmf: forged", EVIL)
        raise ValueError(EVIL)

    monkeypatch.setattr(doctor, "diagnose", diagnose)
    monkeypatch.setattr(sys, "argv", ["mdmf", "--log-file", str(tmp_path / "log"), "doctor"])
    with pytest.raises(SystemExit) as stopped:
        mdmf_deploy.cli.main()
    assert stopped.value.code == 70
    console.behave()
    logged, errors = (tmp_path / "log").read_text(), capsys.readouterr().err
    for text in (logged, errors):
        assert f"{SHOWN} mdmf: forged\n" in text
        assert f"ValueError: {SHOWN}\n" in text
        assert shows(text)


def test_a_row_is_shown_as_text_whatever_it_holds() -> None:
    row = Row(uri=EVIL, status="error", error_code="corrupt", error=f"{EVIL}\nmdmf: forged")
    assert shows(table_line(row))
    assert shows(json_line(row).decode())
    assert msgspec.json.decode(json_line(row))["error"] == row.error


def test_a_recipe_is_printed_as_it_is_unless_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    for stream, expected in ((io.StringIO(), f"# {EVIL}\n"), (Terminal(), f"# {SHOWN}\n")):
        monkeypatch.setattr(sys, "stdout", stream)
        console.print_file(f"# {EVIL}\n")
        assert stream.getvalue() == expected


def test_bars_take_no_markup_from_names(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = io.StringIO()
    terminal = Console(file=drawn, force_terminal=True, color_system=None, width=100)
    monkeypatch.setattr(console, "stderr_console", lambda: terminal)
    with console.progress(range(2), "[red]a[/nothing]\u202e", 2, shown=True) as items:
        list(items)
    assert r"[red]a[/nothing]\xe2\x80\xae" in drawn.getvalue()
    with PhaseDisplay(console=terminal) as display:
        display.follow(Phase("[red]b[/nothing]", "steps", 2))
        display.follow(Phase("[red]b[/nothing]", "steps", 2, 1))
    assert "[red]b[/nothing]" in drawn.getvalue()
