"""Versions of distributions, and the command that installs an extra."""

from __future__ import annotations

import pytest

from mdmf_deploy import errors


def test_versions() -> None:
    assert errors.version("numpy")
    assert errors.version("no-such-distribution") is None
    assert errors.installed("numpy")
    assert not errors.installed("no-such-distribution")


@pytest.mark.parametrize(
    ("extra", "there", "command"),
    [
        ("openvino", True, "pip install 'mdmf-deploy[openvino]'"),
        ("rtx", True, "pip install 'mdmf-deploy[rtx]'"),
        ("gpu", False, "pip install 'mdmf-deploy[gpu]'"),
        ("gpu", True, "pip uninstall onnxruntime && pip install 'mdmf-deploy[gpu]'"),
    ],
)
def test_the_gpu_extra_replaces_the_cpu_build_of_onnxruntime(
    extra: str, there: bool, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(errors, "installed", lambda distribution: there and distribution == "onnxruntime")
    assert errors.install(extra) == command
