"""Importing the command line and all its commands loads nothing heavy, and installing it requires nothing heavy."""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys
from pathlib import Path

import pytest

import mdmf_deploy

# Modules that no detection run needs, whatever the runtime.
UNUSED = {"torch", "onnx", "onnxscript", "transformers", "sklearn", "scipy", "pyarrow", "matplotlib", "nncf", "ray"}
HEAVY = UNUSED | {
    "onnxruntime",
    "openvino",
    "numpy",
    "numba",
    "llvmlite",
    "PIL",
    "cv2",
    "simplejpeg",
    "safetensors",
    "psutil",
    "rich",
    "asyncio",
    "concurrent",
    "multiprocessing",
}


def imported_by(code: str) -> set[str]:
    script = f"{code}\nimport json, sys\nprint(json.dumps(sorted({{name.partition('.')[0] for name in sys.modules}})))"
    answer = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(json.loads(answer.stdout.splitlines()[-1]))


def test_import_is_light() -> None:
    # importlib.metadata brings email. It takes as long as all our own imports.
    modules = "import mdmf_deploy, mdmf_deploy.cli, mdmf_deploy.detection.rows, mdmf_deploy.bundle.recipe"
    assert not imported_by(modules) & (HEAVY | {"email"})


def test_listing_inputs_and_the_help_of_every_command_are_light(photos: Path) -> None:
    code = (
        "import functools, typer.testing\n"
        # Typer would build its commands anew for every call, which takes 25 ms.
        "typer.testing._get_command = functools.cache(typer.testing._get_command)\n"
        "from typer.testing import CliRunner\n"
        "from mdmf_deploy.cli import COMMANDS, app\n"
        f"assert CliRunner().invoke(app, ['detect', '--list-inputs', {str(photos)!r}]).exit_code == 0\n"
        "for command in COMMANDS:\n"
        "    assert CliRunner().invoke(app, [command, '--help']).exit_code == 0\n"
    )
    assert not imported_by(code) & HEAVY


def test_detecting_and_evaluating_need_no_torch() -> None:
    tasks = "evaluate.evaluate", "calibrate", "doctor"
    modules = ", ".join(["mdmf_deploy.detection.detector", *(f"mdmf_deploy.tasks.{task}" for task in tasks)])
    assert not imported_by(f"import {modules}") & UNUSED


def test_a_triton_repository_needs_onnx_alone() -> None:
    assert imported_by("import mdmf_deploy.tasks.triton") & UNUSED == {"onnx"}


def test_detecting_one_image_imports_what_it_uses(photos: Path) -> None:
    """Load no GPU library, and no Numba, which pays only for banks far larger than the starter's."""
    command = ["detect", str(min(photos.iterdir())), "--runtime", "onnxruntime", "--json"]
    code = (
        "from typer.testing import CliRunner\n"
        "from mdmf_deploy.cli import app\n"
        f"assert CliRunner().invoke(app, {command!r}).exit_code == 0\n"
        "import sys\n"
        "assert not {'mdmf_deploy.hardware.device', 'mdmf_deploy.mmd.cuda.reduction'} & sys.modules.keys()\n"
    )
    modules = imported_by(code)
    assert "onnxruntime" in modules
    assert not modules & (UNUSED | {"openvino", "numba", "cv2", "rich", "cuda", "tensorrt", "tensorrt_rtx"})


@pytest.mark.parametrize("extra", ["", "cpu", "openvino", "scale", "triton"])
def test_light_extras_do_not_require_torch(extra: str) -> None:
    for requirement in importlib.metadata.requires("mdmf-deploy") or []:
        if "extra ==" not in requirement or f'extra == "{extra}"' in requirement.replace("'", '"'):
            assert not requirement.startswith(("torch", "transformers", "onnxscript"))


def test_the_public_names_are_listed_and_exist() -> None:
    assert dir(mdmf_deploy) == sorted(mdmf_deploy.__all__)
    for name in mdmf_deploy.__all__:
        assert getattr(mdmf_deploy, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'detect'"):
        mdmf_deploy.detect  # noqa: B018
