"""How commands talk: quietly, in detail, into a file, and in colour, whatever the place of the option."""

from __future__ import annotations

import io
import logging
import sys
from pathlib import Path

import pytest
from helpers.mdmf import mdmf

from mdmf_deploy.cli.console import Manners, behave, coloured, draws_bars, log
from mdmf_deploy.cli.options import RUNTIMES, complete_bundle, complete_recipe, complete_runtime
from mdmf_deploy.runtime import ENGINES
from mdmf_deploy.tasks import doctor

LOG = logging.getLogger("mdmf_deploy.anything")


@pytest.fixture(autouse=True)
def as_before() -> object:
    yield
    behave()


@pytest.fixture
def talkative(monkeypatch: pytest.MonkeyPatch) -> None:
    """`mdmf doctor` logs one message of each level, and stops."""

    def diagnose() -> None:
        LOG.debug("a detail")
        LOG.info("a message")
        log("warning: careful")
        raise OSError("an error")

    monkeypatch.setattr(doctor, "diagnose", diagnose)


@pytest.mark.parametrize(
    ("option", "shown"),
    [
        ((), ["a message", "warning: careful", "an error"]),
        (("-q",), ["warning: careful", "an error"]),
        (("-v",), ["a detail", "a message", "warning: careful", "an error"]),
    ],
)
@pytest.mark.parametrize("first", [True, False])
def test_quiet_and_verbose(option: tuple[str, ...], shown: list[str], first: bool, talkative: None) -> None:
    result = mdmf(*option, "doctor") if first else mdmf("doctor", *option)
    lines = [line for line in result.stderr.splitlines() if "Python" not in line]
    assert lines == [f"mdmf: {line}" for line in shown]


def test_one_command_does_not_change_how_the_next_one_talks(talkative: None) -> None:
    mdmf("doctor", "-q")
    assert "a message" in mdmf("doctor").stderr


@pytest.mark.parametrize("option", [(), ("-q",), ("-v",)])
@pytest.mark.parametrize("first", [True, False])
def test_the_log_file_gets_everything_with_its_time(
    option: tuple[str, ...], first: bool, talkative: None, tmp_path: Path
) -> None:
    path = tmp_path / "log"
    path.write_text("before\n")
    file = ("--log-file", path)
    mdmf(*file, "doctor", *option) if first else mdmf(*option, "doctor", *file)
    before, *lines = path.read_text().splitlines()
    assert before == "before"
    for text in ("DEBUG mdmf_deploy.anything: a detail", "a message", "warning: careful", "ERROR", "an error"):
        assert text in "\n".join(lines)
    assert all(line.startswith("20") for line in lines)


def test_a_log_file_that_cannot_be_opened_is_one_line(tmp_path: Path) -> None:
    result = mdmf("doctor", "--log-file", tmp_path)
    assert result.exit_code == 2
    assert result.stderr.startswith(f"mdmf: --log-file {tmp_path}: ")
    assert result.stderr.count("\n") == 1


def test_quiet_and_verbose_exclude_each_other() -> None:
    assert mdmf("-q", "doctor", "-v").exit_code == 2


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_disk_costs_messages_only(talkative: None) -> None:
    result = mdmf("doctor", "--log-file", "/dev/full")
    assert result.exit_code == 2
    assert result.stderr.endswith("mdmf: warning: careful\nmdmf: an error\n")
    behave()


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("terminal", "variables", "option", "expected"),
    [
        (True, {}, None, True),
        (False, {}, None, False),
        (True, {"NO_COLOR": "1"}, None, False),
        (True, {"NO_COLOR": ""}, None, True),
        (True, {"TERM": "dumb"}, None, False),
        (False, {"FORCE_COLOR": "1"}, None, True),
        (False, {"FORCE_COLOR": "0"}, None, False),
        (True, {"NO_COLOR": "1", "FORCE_COLOR": "1"}, None, False),
        (False, {"NO_COLOR": "1"}, True, True),
        (True, {"FORCE_COLOR": "1"}, False, False),
    ],
)
def test_colour(
    terminal: bool, variables: dict[str, str], option: bool | None, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    behave(Manners(colour=option))
    assert coloured(Terminal() if terminal else io.StringIO()) is expected


@pytest.mark.parametrize(
    ("term", "quiet", "drawn"), [("xterm", False, True), ("dumb", False, False), ("xterm", True, False)]
)
def test_bars(term: str, quiet: bool, drawn: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", term)
    monkeypatch.setattr(sys, "stderr", Terminal())
    behave(Manners(quiet=quiet))
    assert draws_bars() is drawn


def test_runtimes_are_those_of_the_table_and_complete() -> None:
    assert ("auto", *ENGINES) == RUNTIMES
    assert complete_runtime("o") == ["onnxruntime", "openvino", "ort-tensorrt"]
    assert complete_runtime("cuda,rt") == ["cuda,rtx"]


def test_recipes_complete_by_name() -> None:
    assert complete_recipe("s") == ["starter"]


def test_bundles_complete_by_name_and_by_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "deep" / "mine.mdmf").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert complete_bundle("d") == ["dinov2s", "deep/"]
    assert complete_bundle("deep/m") == ["deep/mine.mdmf"]
    assert complete_bundle(f"{tmp_path}/d") == [f"{tmp_path}/deep/"]
    assert complete_bundle("nowhere/x") == []


@pytest.mark.parametrize("variable", ["MDMF_BUNDLE", "MDMF_RUNTIME", "MDMF_CACHE"])
def test_environment_variables_are_shown(variable: str) -> None:
    assert variable in mdmf("--help").stdout
    if variable != "MDMF_CACHE":
        assert variable in mdmf("detect", "--help").stdout


def test_the_variable_chooses_the_runtime(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MDMF_RUNTIME", "nonsense")
    assert "runtime 'nonsense' is not known" in mdmf("detect", photos, "-q").stderr


@pytest.mark.parametrize(
    ("arguments", "option"),
    [
        (("detect", "photos", "-o", "s3://bucket/rows.csv"), "-o"),
        (("detect", "photos", "--heatmaps", "s3://bucket/maps"), "--heatmaps"),
        (("rescore", "signatures", "-o", "gs://bucket/rows.csv"), "--output"),
        (("bank", "build", "starter", "photos", "-o", "s3://bucket/new.mdmf"), "--output"),
        (("export", "checkpoint.safetensors", "--reals", "photos", "-o", "s3://bucket/new.mdmf"), "--output"),
        (("inspect", "starter", "--log-file", "https://host/log.txt"), "--log-file"),
    ],
    ids=lambda value: value if isinstance(value, str) else value[0],
)
def test_a_url_is_no_folder_of_this_machine(
    arguments: tuple[str, ...], option: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = mdmf(*arguments)
    assert result.exit_code == 2
    [line] = result.stderr.splitlines()
    assert line.startswith(f"mdmf: {option} {arguments[-1]} is a URL; give a path")
    assert not list(tmp_path.iterdir())
