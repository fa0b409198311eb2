"""Commands open no socket and leave no file behind but those in the cache folder and those they are asked for.

docs/privacy.md promises it. The libraries below it have other habits.
"""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from helpers.without_sockets import supported

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "tests" / "helpers" / "without_sockets.py"
# The libraries whose imports are held to rules.
NAMED = re.compile(r"\b(onnxruntime|openvino|nncf|ray)\b")
# Passed on to a command. Everything else stays behind: the test runner's own variables, and those of CI systems, by
# which ONNX Runtime and OpenVINO recognise them, and then report nothing.
PASSED_ON = ("PATH", "PYTHONPATH", "SYSTEMROOT", "LD_LIBRARY_PATH")


def run(commands: Sequence[Sequence[object]], home: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run commands in one new process, which is killed at a socket, with this home and everything else in `folder`."""
    for name in ("here", "tmp"):
        (folder / name).mkdir()
    variables = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    variables |= dict.fromkeys(("HOME", "USERPROFILE", "LOCALAPPDATA"), str(home))
    variables |= dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(folder / "tmp"))
    return subprocess.run(
        [sys.executable, SCRIPT],
        input=json.dumps([[str(word) for word in command] for command in commands]),
        cwd=folder / "here",
        env=variables | {"PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_commands_open_no_socket_and_leave_an_empty_home_empty(
    bundle_copy: Path, photos: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("offline")
    home, written = folder / "home", folder / "mine.mdmf"
    home.mkdir()
    runtimes = ("onnxruntime", "openvino")
    one = ["--images", photos, "--seconds", 0.05, "--scenario", "single-stream"]
    done = run(
        [
            ["doctor"],
            ["inspect", bundle_copy],
            *(["verify", bundle_copy, "--runtime", name] for name in runtimes),
            ["bank", "build", bundle_copy, photos, "-o", folder / "bank.mdmf"],
            ["calibrate", bundle_copy, photos, "--fpr", 0.2, "-o", written],
            *(["detect", photos, "--bundle", written, "--runtime", name] for name in runtimes),
            ["benchmark", written, "--runtime", "onnxruntime", *one],
        ],
        home,
        folder,
    )
    assert done.returncode == 0, done.stderr
    left = [path for name in ("home", "here", "tmp") for path in (folder / name).rglob("*")]
    assert not left
    if not supported():
        pytest.skip("files were checked; sockets can be forbidden on Linux alone")


def test_a_socket_kills_the_process_of_these_tests() -> None:
    """Also one that native code opens to look up a name, in a child."""
    if not supported():
        pytest.skip("sockets can be forbidden on Linux alone")
    code = (
        f"import sys; sys.path.insert(0, {str(SCRIPT.parent)!r})\n"
        "import socket, without_sockets\n"
        "socket.socket().close()\n"
        "without_sockets.forbid_sockets()\n"
        "socket.socket(socket.AF_UNIX).close()\n"
        "print('still here', flush=True)\n"
        "socket.getaddrinfo('example.invalid', 443)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout, done.returncode < 0) == ("still here\n", True)


@pytest.mark.parametrize("home", ["missing/home", "file"])
def test_commands_need_no_home(home: str, tiny_bundle: Path, photos: Path, tmp_path: Path) -> None:
    """A file in place of the home refuses every write, to root as well."""
    (tmp_path / "file").touch()
    photo = min(photos.iterdir())
    commands = [["inspect", "starter"], ["detect", photo, "--bundle", tiny_bundle, "--runtime", "onnxruntime"]]
    done = run(commands, tmp_path / home, tmp_path)
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "missing").exists()


def imports(tree: ast.Module) -> Iterator[tuple[str, int, list[ast.With]]]:
    """Every library that a file imports: its name, the line, and the `with` statements around it."""

    def visit(node: ast.AST, around: list[ast.With]) -> Iterator[tuple[str, int, list[ast.With]]]:
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [str(node.module)]
        elif isinstance(node, ast.Call) and "import_module" in (
            getattr(node.func, "attr", None),
            getattr(node.func, "id", None),
        ):
            names = [argument.value for argument in node.args if isinstance(argument, ast.Constant)]
        for name in names:
            yield name.partition(".")[0], node.lineno, around  # type: ignore[attr-defined]
        inside = [*around, node] if isinstance(node, ast.With) else around
        for child in ast.iter_child_nodes(node):
            yield from visit(child, inside)

    yield from visit(tree, [])


def test_no_library_is_imported_before_its_reports_are_off() -> None:
    """Importing mdmf_deploy turns ONNX Runtime's off. OpenVINO and NNCF are imported inside without_telemetry().

    Ray is imported by load_ray() alone.
    """
    seen = set()
    for path in [path for room in ("mdmf_deploy", "benchmarks", "export") for path in (ROOT / room).rglob("*.py")]:
        text = path.read_text(encoding="utf-8")
        if not NAMED.search(text):  # to parse it takes longer
            continue
        found = list(imports(ast.parse(text)))
        ours = min((line for name, line, _ in found if name == "mdmf_deploy"), default=sys.maxsize)
        for name, line, around in found:
            if name == "onnxruntime" and not path.is_relative_to(ROOT / "mdmf_deploy"):
                assert ours < line, f"{path}:{line}: import mdmf_deploy first"
            elif name in ("openvino", "nncf"):
                contexts = [ast.unparse(item) for node in around for item in node.items]
                assert "without_telemetry()" in contexts, f"{path}:{line}: import it in without_telemetry()"
            elif name == "ray" and path.is_relative_to(ROOT / "mdmf_deploy"):
                assert path.name == "cluster.py", f"{path}:{line}: call load_ray(), which turns its reports off"
            seen.add(name)
    assert seen >= {"onnxruntime", "openvino", "nncf", "ray"}
