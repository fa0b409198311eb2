"""The files around the package: Docker's, and those that name a version."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

import mdmf_deploy

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def test_docker_is_given_everything_that_the_wheel_is_built_from() -> None:
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert "*" in lines
    given = {line.removeprefix("!") for line in lines if line.startswith("!")}
    wheel = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]
    needed = {"pyproject.toml", PROJECT["project"]["readme"], *PROJECT["project"]["license-files"]}
    needed |= {*wheel["packages"], *wheel["force-include"]}
    for path in needed:
        assert path in given or any(path.startswith(f"{folder}/") for folder in given), path
    for path in given:
        assert (ROOT / path).exists(), path


@pytest.mark.parametrize("name", ["Dockerfile", "Dockerfile.cuda"])
def test_an_image_runs_as_nobody_and_its_command_gets_the_signals(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    (extras,) = re.findall(r"install .*'\.\[(.+)\]'", text)
    assert set(extras.split(",")) <= PROJECT["project"]["optional-dependencies"].keys()
    last = text[text.rindex("\nFROM ") :]
    assert re.search(r"^USER [1-9]\d*:[1-9]\d*$", last, re.MULTILINE)
    # A list, not a line for a shell, which would keep the signals to itself.
    assert re.search(r'^ENTRYPOINT \["mdmf"\]$', last, re.MULTILINE)


def test_every_file_names_one_version() -> None:
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    (cited,) = re.findall(r"^version: (\S+)$", citation, re.MULTILINE)
    assert {PROJECT["project"]["version"], cited} == {mdmf_deploy.__version__}
    assert mdmf_deploy.__version__ in changes


def test_ci_tests_the_lowest_versions_that_are_allowed() -> None:
    project = PROJECT["project"]
    # What `make test` installs, and what it does not choose the version of: tools, and packages without an older one.
    apart = {"torch", "ruff", "mypy", "moto"}
    tested = ["cpu", "openvino", "export", "evaluate", "scale", "heif", "jxl", "video", "provenance", "dev"]
    wanted = [*project["dependencies"], *(line for extra in tested for line in project["optional-dependencies"][extra])]
    bounds: dict[str, str] = {}
    for line in wanted:
        found = re.match(r"([\w.-]+)(?:\[.*?\])?>=([\d.]+)", line)
        assert found, f"{line} has no lower bound"
        assert bounds.setdefault(found[1], found[2]) == found[2], f"{line} has two lower bounds"
    lines = (ROOT / ".ci" / "lowest.txt").read_text(encoding="utf-8").splitlines()
    lowest = dict(line.split("==") for line in lines if not line.startswith("#"))
    for name, bound in bounds.items():
        if name not in apart and not name.startswith(("nvidia-", "tensorrt-")):
            assert lowest[name] == bound or lowest[name].startswith(f"{bound}."), name
    assert lowest.keys() <= bounds.keys()
