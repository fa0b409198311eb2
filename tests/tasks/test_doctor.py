"""`mdmf doctor` reports the surprises of machines unlike this one."""

from __future__ import annotations

import shutil

import msgspec
import onnxruntime
import pytest

from mdmf_deploy.hardware import host
from mdmf_deploy.tasks import doctor


@pytest.mark.parametrize(
    ("installed", "providers", "gpus", "core_limit", "expected"),
    [
        ({"onnxruntime"}, ["CPUExecutionProvider"], (), None, []),
        ({"onnxruntime-gpu"}, ["CUDAExecutionProvider"], ("NVIDIA H100",), None, []),
        ({"onnxruntime-gpu"}, ["CUDAExecutionProvider"], (), None, ["it would fall back to the CPU"]),
        ({"onnxruntime", "onnxruntime-gpu"}, [], (), None, ["overwrite each other's files"]),
        (set(), [], (), 2.0, ["2 of the 8 cores"]),
        (set(), [], (), 16.0, []),
    ],
)
def test_notes_name_what_will_not_work_as_expected(
    installed: set[str],
    providers: list[str],
    gpus: tuple[str, ...],
    core_limit: float | None,
    expected: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    here = msgspec.structs.replace(host.look_at_machine(), cores=8, core_limit=core_limit, gpus=gpus)
    monkeypatch.setattr(doctor, "look_at_machine", lambda: here)
    monkeypatch.setattr(doctor, "installed", installed.__contains__)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: providers)
    monkeypatch.setattr(shutil, "which", lambda name: "/usr/bin/nvidia-smi" if gpus else None)
    notes = doctor.diagnose().notes
    assert len(notes) == len(expected)
    assert all(text in note for text, note in zip(expected, notes, strict=True))
