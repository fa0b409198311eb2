"""Importing the command line, with all its commands, pulls in nothing heavy; installing it does not, either."""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys

import pytest

HEAVY = {
    "torch",
    "onnx",
    "onnxruntime",
    "cv2",
    "numba",
    "ray",
    "numpy",
    "PIL",
    "pyarrow",
    "sklearn",
    "matplotlib",
    "rich",
}


def imported_by(code: str) -> set[str]:
    script = f"{code}\nimport json, sys\nprint(json.dumps(sorted({{name.partition('.')[0] for name in sys.modules}})))"
    answer = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(json.loads(answer.stdout.splitlines()[-1]))


@pytest.mark.parametrize("module", ["mdmf_deploy", "mdmf_deploy.cli", "mdmf_deploy.rows", "mdmf_deploy.recipe"])
def test_import_is_light(module: str) -> None:
    assert not imported_by(f"import {module}") & HEAVY


def test_help_of_a_command_is_light() -> None:
    code = "from typer.testing import CliRunner\nfrom mdmf_deploy.cli import app\n"
    assert not imported_by(f"{code}assert CliRunner().invoke(app, ['detect', '--help']).exit_code == 0") & HEAVY - {
        "rich"
    }


def test_detecting_and_evaluating_do_without_torch() -> None:
    modules = "mdmf_deploy.detector, mdmf_deploy.evaluating, mdmf_deploy.calibrating, mdmf_deploy.machine"
    assert not imported_by(f"import {modules}") & {"torch", "onnx", "sklearn", "pyarrow", "matplotlib"}


@pytest.mark.parametrize("extra", ["", "cpu", "openvino", "scale"])
def test_what_detects_does_not_require_torch(extra: str) -> None:
    for requirement in importlib.metadata.requires("mdmf-deploy") or []:
        if "extra ==" not in requirement or f'extra == "{extra}"' in requirement.replace("'", '"'):
            assert not requirement.startswith(("torch", "transformers", "onnxscript"))
