from __future__ import annotations

import pytest

from mdmf_deploy import errors as packages


def test_versions() -> None:
    assert packages.version("numpy")
    assert packages.version("no-such-distribution") is None
    assert packages.installed("numpy")
    assert not packages.installed("no-such-distribution")


@pytest.mark.parametrize(
    ("extra", "there", "command"),
    [
        ("openvino", True, "pip install 'mdmf-deploy[openvino]'"),
        ("rtx", True, "pip install 'mdmf-deploy[rtx]'"),
        ("gpu", False, "pip install 'mdmf-deploy[gpu]'"),
        ("gpu", True, "pip uninstall onnxruntime && pip install 'mdmf-deploy[gpu]'"),
    ],
)
def test_the_command_takes_the_other_onnxruntime_away(
    extra: str, there: bool, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packages, "installed", lambda distribution: there and distribution == "onnxruntime")
    assert packages.install(extra) == command
