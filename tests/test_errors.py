"""Versions of distributions, the command that installs an extra, and what this machine lacks."""

from __future__ import annotations

import errno
import os

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


ONNX = """[ONNXRuntimeError] : 1 : FAIL : /onnxruntime/core/platform/posix/env.cc:252
pthread_create failed, error code: 11 error msg: Resource temporarily unavailable"""


@pytest.mark.parametrize(
    ("error", "lacking", "text"),
    [
        (MemoryError(), errors.OutOfMemory, "out of memory; free some"),
        (MemoryError("Unable to allocate 3 GiB"), errors.OutOfMemory, "out of memory (Unable to allocate 3 GiB); "),
        (RuntimeError("x: std::bad_alloc"), errors.OutOfMemory, "out of memory (bad_alloc); "),
        (ImportError("a.so: failed to map segment from shared object"), errors.OutOfMemory, "(failed to map segment "),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), errors.OutOfMemory, "Cannot allocate memory"),
        (RuntimeError("can't start new thread"), errors.OutOfThreads, "no more threads can be started (can't start"),
        (RuntimeError(ONNX), errors.OutOfThreads, "started (pthread_create failed, error code: 11 error msg: Resource"),
        (OSError(errno.EAGAIN, os.strerror(errno.EAGAIN)), errors.OutOfThreads, "no more processes can be started"),
    ],
)
def test_a_shortage_is_one_line_whatever_library_meets_it(
    error: Exception, lacking: type[errors.MdmfError], text: str
) -> None:
    found = errors.shortage(error)
    assert isinstance(found, lacking)
    assert text in str(found)
    assert "\n" not in str(found)
    assert found.exit_code == 2


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.EAGAIN, os.strerror(errno.EAGAIN), "a file"),
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
        ImportError("a.so: cannot allocate memory in static TLS block"),
        RuntimeError("a bug"),
        errors.OutOfMemory("out of memory on the GPU"),
    ],
)
def test_other_errors_are_no_shortage(error: Exception) -> None:
    assert errors.shortage(error) is None
